/**
 * Bundles of the Hugging Face hub: `hf:user/repo` or `hf:user/repo@revision`.
 *
 *     GET {endpoint}/{repo}/resolve/{revision}/{file}       redirects to where the file is stored
 *
 * All files are those of the commit that manifest.json came from. They are kept by their SHA-256: in a browser in a Cache,
 * in Node in the user's cache folder, where a bundle's folder consists of hard links:
 *
 *     files/{sha256}   bundles/{sha256 of manifest.json}/{name}   revisions/{user}--{repo}/{revision}
 */

import { BundleError, Files, partsOf } from './files.js'
import { createSha256 } from './sha256.js'

/**
 * @typedef {import('./manifest.js').FileEntry} FileEntry
 * @typedef {import('./manifest.js').ManifestTree} ManifestTree
 * @typedef {(bytes: number) => void} Progress called with the bytes since the last call
 */

const ENDPOINT = 'https://huggingface.co'
const BROWSER_CACHE = 'clean-lm'
const SOURCE = /^hf:([A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+(?:\/[\w.-]+)*))?$/
const FILE = /^\w[\w.-]*(\/\w[\w.-]*)*$/ // no way out of the repository: no "..", no leading slash or dot, no drive
const HASH = /^[0-9a-f]{64}$/
const COMMIT = /^[0-9a-f]{40}$/

/**
 * Whether a source is a repository of the hub.
 *
 * @param {import('./files.js').Source} source
 * @returns {source is string}
 */
export const isHub = (source) => typeof source === 'string' && source.startsWith('hf:')

/**
 * @param {string} source
 * @returns {{ repo: string, revision: string }}
 */
function parse(source) {
  const [, repo, revision = 'main'] = SOURCE.exec(source) ?? []
  if (!repo || `${repo}/${revision}`.split('/').some((part) => part.includes('..'))) {
    throw new BundleError(`${source}: expected hf:user/repo or hf:user/repo@revision`)
  }
  return { repo, revision }
}

/** A bundle's files in a repository of the hub. */
export class HubFiles extends Files {
  /**
   * @param {string} source hf:user/repo@revision
   * @param {import('./manifest.js').LoadOptions} options
   */
  constructor(source, options) {
    super(source, options)
    const { repo, revision } = parse(source)
    const { HF_ENDPOINT, HF_TOKEN } = globalThis.process?.env ?? {}
    this.repo = repo
    this.revision = revision
    this.endpoint = (options.endpoint ?? HF_ENDPOINT ?? ENDPOINT).replace(/\/+$/, '')
    this.token = options.token ?? HF_TOKEN
    /** what files are read from: the commit of manifest.json */
    this.commit = revision
    this.folder = null // until manifest.json is read, and outside Node
    this.store = globalThis.process?.versions?.node ? new Store(options.cacheFolder) : null
    /** names that are in `folder`, and were compared with the manifest @type {Set<string>} */
    this.verified = new Set()
  }

  /**
   * Throw BundleError where a manifest names a file outside of the repository, or none that can be compared.
   *
   * @param {ManifestTree} tree
   */
  confine(tree) {
    const graphs = [tree, ...Object.values(tree.variants ?? {})].flatMap((part) => Object.values(part.graphs ?? {}))
    const named = graphs.flatMap(({ file, data }) => (data === undefined ? [file] : [file, data]))
    for (const name of [...Object.keys(tree.files ?? {}), ...named]) {
      if (typeof name !== 'string' || !FILE.test(name)) {
        throw new BundleError(
          `${this.label('manifest.json')}: names ${JSON.stringify(name)}, expected files of ${this.repo}`,
        )
      }
    }
    for (const [name, { bytes, sha256 }] of Object.entries(tree.files ?? {})) {
      if (Number.isSafeInteger(bytes) && bytes >= 0 && HASH.test(sha256)) continue
      throw new BundleError(`${this.label('manifest.json')}: the size or SHA-256 of ${name} is none`)
    }
  }

  /** @override @param {string} name @param {FileEntry} [expected] @param {Progress} [onProgress] */
  async read(name, expected, onProgress) {
    if (!expected) return this._readManifest(name)
    if (this.store) {
      await this.verify(name, expected, onProgress)
      return this._readDisk(/** @type {string} */ (await this.path(name)))
    }
    this.cache ??= await browserCache()
    return super.read(name, expected, onProgress)
  }

  /**
   * In Node, download a file where it is missing, and compare it with the manifest where it is not.
   *
   * @override
   * @param {string} name
   * @param {FileEntry} expected
   * @param {Progress} [onProgress]
   */
  async verify(name, expected, onProgress) {
    if (this.verified.has(name)) return
    const path = /** @type {string} */ (await this.path(name))
    const store = /** @type {Store} */ (this.store)
    if (await store.link(expected.sha256, path)) {
      try {
        await super.verify(name, expected, onProgress)
        this.verified.add(name)
        return
      } catch (error) {
        if (!(error instanceof BundleError)) throw error
        await store.remove(expected.sha256, path) // damaged: downloaded again
      }
    }
    await store.add(expected.sha256, (write) => this._save(name, expected, write, onProgress))
    await store.link(expected.sha256, path)
    this.verified.add(name)
  }

  /**
   * Download a file in parts; throws BundleError where it differs from the manifest.
   *
   * @param {string} name
   * @param {FileEntry} expected
   * @param {(part: Uint8Array) => Promise<unknown>} write
   * @param {Progress} [onProgress]
   */
  async _save(name, expected, write, onProgress) {
    const hash = createSha256()
    let bytes = 0
    for await (const part of partsOf(await this._find(name))) {
      bytes += part.length
      if (bytes > expected.bytes) break
      hash.update(part)
      await write(part)
      onProgress?.(part.length)
    }
    this._compareSize(name, bytes, expected.bytes)
    this._compareHash(name, hash.digest(), expected.sha256)
  }

  /**
   * manifest.json, from the hub, or as it was last read where the hub cannot be reached.
   *
   * @param {string} name
   */
  async _readManifest(name) {
    const { store, repo, revision } = this
    this.cache ??= store ? undefined : await browserCache()
    const key = `${this.endpoint}/${repo}/resolve/${encodeURIComponent(revision)}/${name}`
    /** @type {Uint8Array} */
    let bytes
    try {
      const response = await this._find(name)
      const commit = response.headers.get('x-repo-commit') ?? ''
      if (COMMIT.test(commit)) this.commit = commit
      bytes = new Uint8Array(await response.arrayBuffer())
      await this.cache?.put(key, new Response(/** @type {BodyInit} */ (bytes)))
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error
      const kept = store ? await store.manifest(repo, revision) : await (await this.cache?.match(key))?.arrayBuffer()
      if (!kept) throw new BundleError(error.message)
      bytes = new Uint8Array(kept)
    }
    if (store) this.folder = await store.openBundle(repo, revision, bytes)
    return bytes
  }

  /** @override @param {string} name @returns {Promise<Response>} */
  async _find(name) {
    const { repo, commit, token, signal } = this
    const url = `${this.endpoint}/${repo}/resolve/${encodeURIComponent(commit)}/${name}`
    const headers = token ? { authorization: `Bearer ${token}` } : undefined // not sent on to other hosts
    const response = await fetch(url, { headers, signal }).catch((error) => {
      signal?.throwIfAborted()
      throw new Unreachable(`${url}: cannot be reached: ${error.cause?.message ?? error.message}`)
    })
    if (response.ok) return response
    await response.body?.cancel()
    const message = `${this.label(name)}: ${this._explain(response)} (HTTP ${response.status})`
    throw new (response.status >= 500 ? Unreachable : BundleError)(message)
  }

  /** Why the hub did not give a file, and what to do. @param {Response} response */
  _explain({ status, headers }) {
    const { repo, revision, token, endpoint } = this
    const code = headers.get('x-error-code')
    if (code === 'GatedRepo') return `access is gated; accept the terms on ${endpoint}/${repo}, and pass a token`
    if (status === 401 || status === 403 || code === 'RepoNotFound') {
      const advice = token ? 'the token gives no access to it' : 'check its name, or pass a token'
      return `the repository does not exist or is private; ${advice}`
    }
    if (code === 'RevisionNotFound') return `the repository has no revision ${revision}`
    if (status === 404) return 'not in the repository; expected a bundle that export/hub.py --push uploaded'
    return status === 429 ? 'too many requests; try again later' : 'the hub failed; try again later'
  }

  /** @override @param {string} _name @param {string} sha256 */
  _key(_name, sha256) {
    return `${this.endpoint}/sha256/${sha256}`
  }
}

/** The hub gives no answer. */
class Unreachable extends BundleError {}

/** A cache of the browser that does without room; undefined where there is none. @returns {Promise<Cache | undefined>} */
async function browserCache() {
  const cache = await globalThis.caches?.open(BROWSER_CACHE).catch(() => undefined) // not in every context
  if (!cache) return undefined
  const put = (/** @type {any} */ key, /** @type {Response} */ response) => cache.put(key, response).catch(() => {})
  return /** @type {any} */ ({ match: (/** @type {any} */ key) => cache.match(key), put })
}

/** Node: files by their SHA-256, each there as a whole or not at all. */
class Store {
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
      const sha256 = await this.fs.readFile(this._revision(repo, revision), 'utf8')
      return HASH.test(sha256) ? await this.fs.readFile(this.paths.join(this._bundle(sha256), 'manifest.json')) : null
    } catch {
      return null
    }
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
