/**
 * Node: what comes from the Hugging Face hub, in the user's cache folder. A bundle's folder consists of hard links:
 *
 *     files/{sha256}   bundles/{sha256 of manifest.json}/{name}   revisions/{user}--{repo}/{revision}
 */

import { regularFile } from './files.js'
import { createSha256 } from './sha256.js'

const HASH = /^[0-9a-f]{64}$/

/** Files by their SHA-256, each there as a whole or not at all. */
export class Store {
  /** @param {string} [folder] */
  constructor(folder) {
    this.fs = process.getBuiltinModule('node:fs/promises')
    this.paths = process.getBuiltinModule('node:path')
    this.root = folder ?? this.paths.join(userCache(), 'clean-lm')
  }

  /** @param {string} sha256 */
  _file(sha256) {
    return this.paths.join(this.root, 'files', sha256)
  }

  /** @param {string} repo @param {string} revision */
  _revision(repo, revision) {
    return this.paths.join(this.root, 'revisions', repo.replace('/', '--'), encodeURIComponent(revision))
  }

  /** @param {string} hash of manifest.json */
  _bundle(hash) {
    return this.paths.join(this.root, 'bundles', hash)
  }

  /**
   * The folder of a bundle; its manifest.json is written, and remembered as that of a revision.
   *
   * @param {string} repo
   * @param {string} revision
   * @param {Uint8Array} manifest
   */
  async openBundle(repo, revision, manifest) {
    const hash = createSha256()
    hash.update(manifest)
    const sha256 = hash.digest()
    await this._write(this.paths.join(this._bundle(sha256), 'manifest.json'), (write) => write(manifest))
    await this._write(this._revision(repo, revision), (write) => write(new TextEncoder().encode(sha256)))
    return this._bundle(sha256)
  }

  /** The last manifest.json of a revision; null where there is none. @param {string} repo @param {string} revision */
  async manifest(repo, revision) {
    try {
      const sha256 = String(await this._read(this._revision(repo, revision)))
      return HASH.test(sha256) ? await this._read(this.paths.join(this._bundle(sha256), 'manifest.json')) : null
    } catch {
      return null
    }
  }

  /** @param {string} path of a file that this wrote */
  async _read(path) {
    await regularFile(path, this.root)
    return this.fs.readFile(path)
  }

  /** @param {string} sha256 @param {(write: (part: Uint8Array) => Promise<unknown>) => Promise<unknown>} fill */
  async add(sha256, fill) {
    await this._write(this._file(sha256), fill)
  }

  /**
   * Let `path` be a file of the store; false where the store does not have it. The link is hard, or else a copy: ONNX
   * Runtime does not follow symbolic links out of a model's folder.
   *
   * @param {string} sha256
   * @param {string} path
   */
  async link(sha256, path) {
    const exists = (/** @type {string} */ file) => this.fs.access(file).then(() => true, () => false) // prettier-ignore
    if (await exists(path)) return true
    const file = this._file(sha256)
    if (!(await exists(file))) return false
    await this.fs.mkdir(this.paths.dirname(path), { recursive: true })
    await this.fs.link(file, path).catch(async (error) => {
      if (error.code === 'EEXIST') return
      const partial = partialOf(path)
      await this.fs.copyFile(file, partial)
      await this.fs.rename(partial, path)
    })
    return true
  }

  /** @param {string} sha256 @param {string} path */
  async remove(sha256, path) {
    await this.fs.rm(path, { force: true })
    await this.fs.rm(this._file(sha256), { force: true })
  }

  /**
   * Write a file beside its place, and move it there when it is complete.
   *
   * @param {string} path
   * @param {(write: (part: Uint8Array) => Promise<unknown>) => Promise<unknown>} fill
   */
  async _write(path, fill) {
    await this.fs.mkdir(this.paths.dirname(path), { recursive: true })
    const partial = partialOf(path)
    try {
      const file = await this.fs.open(partial, 'wx')
      try {
        await fill((part) => file.writeFile(part))
        await file.sync()
      } finally {
        await file.close()
      }
      await this.fs.rename(partial, path)
    } finally {
      await this.fs.rm(partial, { force: true })
    }
  }
}

/** @param {string} path */
const partialOf = (path) => `${path}.partial-${process.pid}-${crypto.getRandomValues(new Uint32Array(1))[0]}`

/** The folder where this user's programs keep what they can download again. */
function userCache() {
  const { join } = process.getBuiltinModule('node:path')
  const home = process.getBuiltinModule('node:os').homedir()
  const { XDG_CACHE_HOME, LOCALAPPDATA } = process.env
  if (XDG_CACHE_HOME) return XDG_CACHE_HOME
  if (process.platform === 'darwin') return join(home, 'Library', 'Caches')
  return process.platform === 'win32' ? (LOCALAPPDATA ?? join(home, 'AppData', 'Local')) : join(home, '.cache')
}
