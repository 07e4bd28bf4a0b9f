/**
 * Reads a bundle's files: from a disk, a web server or memory.
 *
 * @typedef {string | Uint8Array | ArrayBuffer | Blob} FileLike a string: a URL, which is fetched
 * @typedef {string | URL | Map<string, FileLike> | Record<string, FileLike> | ((name: string) => FileLike | Response | Promise<FileLike | Response>)} Source
 *   a folder's path (Node) or URL, files by name, or a function that returns a file by its name
 * @typedef {(done: number, total: number, file: string) => void} LoadProgress done and total in bytes
 */

// Node's modules are loaded by process.getBuiltinModule: bundlers for the web try to resolve every import.
const isNode = typeof process !== 'undefined' && Boolean(process.versions?.node)
const isUrl = /^[a-z][a-z0-9+.-]+:\/\// // does not match C:\\

/**
 * The folder that a source names; null where it is not on a disk.
 *
 * @param {Source} source
 * @returns {string | URL | null}
 */
function folderOf(source) {
  if (source instanceof URL || (typeof source === 'string' && isUrl.test(source))) {
    return String(source).startsWith('file:') ? new URL(source) : null
  }
  return typeof source === 'string' ? source : null
}

/** A bundle's files by name. */
export class Files {
  /**
   * @param {Source} source
   * @param {{ cache?: Cache, signal?: AbortSignal, hashes?: boolean }} [options] cache: a browser's, where downloads are
   *   kept; hashes: whether SHA-256 is compared
   */
  constructor(source, { cache, signal, hashes = true } = {}) {
    this.source = source
    this.cache = cache
    this.signal = signal
    this.hashes = hashes
    /** in Node, the folder where the bundle is on a disk */
    this.folder = isNode ? folderOf(source) : null
  }

  /** A file's name in error messages. @param {string} name */
  label(name) {
    const { source } = this
    return typeof source === 'string' || source instanceof URL ? `${String(source).replace(/\/$/, '')}/${name}` : name
  }

  /**
   * The absolute path of a file; null where it is not on a disk.
   *
   * @param {string} name
   * @returns {Promise<string | null>}
   */
  async path(name) {
    if (this.folder === null) return null
    const { resolve } = process.getBuiltinModule('node:path')
    const { fileURLToPath } = process.getBuiltinModule('node:url')
    return resolve(typeof this.folder === 'string' ? this.folder : fileURLToPath(this.folder), name)
  }

  /**
   * The whole content of a file. Throws BundleError where it is missing, or differs from the manifest.
   *
   * @param {string} name
   * @param {{ bytes: number, sha256: string }} [expected]
   * @param {(bytes: number) => void} [onProgress] called with the bytes read since the last call
   * @returns {Promise<Uint8Array>}
   */
  async read(name, expected, onProgress) {
    const key = expected && this.cache && this._url(name, expected.sha256)
    const cached = key && (await this.cache?.match(key))
    const bytes = cached ? new Uint8Array(await cached.arrayBuffer()) : await this._read(name, onProgress)
    if (cached) onProgress?.(bytes.length)
    if (expected) this._compareSize(name, bytes.length, expected.bytes)
    if (expected && this.hashes && !cached) this._compareHash(name, await sha256(bytes), expected.sha256)
    if (key && !cached) await this.cache?.put(key, new Response(/** @type {BodyInit} */ (bytes)))
    return bytes
  }

  /**
   * Compare a file on the disk with the manifest, without holding all of it in memory. Throws BundleError.
   *
   * @param {string} name
   * @param {{ bytes: number, sha256: string }} expected
   */
  async verify(name, expected) {
    const { createReadStream } = process.getBuiltinModule('node:fs')
    const { stat } = process.getBuiltinModule('node:fs/promises')
    const { createHash } = process.getBuiltinModule('node:crypto')
    const path = /** @type {string} */ (await this.path(name))
    const { size } = await stat(path).catch(() => {
      throw new BundleError(`${path}: listed in manifest.json, but missing; copy the bundle again`)
    })
    this._compareSize(name, size, expected.bytes)
    if (!this.hashes) return
    const hash = createHash('sha256')
    for await (const part of createReadStream(path, { highWaterMark: 2 ** 20, signal: this.signal })) hash.update(part)
    this._compareHash(name, hash.digest('hex'), expected.sha256)
  }

  /** @param {string} name @param {number} found @param {number} expected */
  _compareSize(name, found, expected) {
    if (found === expected) return
    throw new BundleError(
      `${this.label(name)}: got ${found} bytes, expected ${expected} (manifest.json); copy the bundle again`,
    )
  }

  /** @param {string} name @param {string} found @param {string} expected */
  _compareHash(name, found, expected) {
    if (found === expected) return
    throw new BundleError(
      `${this.label(name)}: SHA-256 is ${found}, expected ${expected} (manifest.json); copy the bundle again`,
    )
  }

  /** The URL of a file; null where the source has none. @param {string} name @param {string} [version] for caches */
  _url(name, version) {
    const { source } = this
    if (typeof source !== 'string' && !(source instanceof URL)) return null
    const base = new URL(String(source).replace(/\/?$/, '/'), globalThis.location?.href)
    const url = new URL(name, base)
    if (version) url.searchParams.set('sha256', version)
    return url.href
  }

  /**
   * @param {string} name
   * @param {(bytes: number) => void} [onProgress]
   * @returns {Promise<Uint8Array>}
   */
  async _read(name, onProgress) {
    const path = await this.path(name)
    if (path !== null) {
      const { readFile } = process.getBuiltinModule('node:fs/promises')
      const bytes = await readFile(path, { signal: this.signal }).catch((error) => {
        if (error.code !== 'ENOENT') throw error
        throw new BundleError(`${path}: not found; expected a bundle: a folder that export/bundle.py wrote`)
      })
      onProgress?.(bytes.length)
      return bytes
    }
    const file = await this._find(name)
    if (file instanceof Response) return this._download(file, name, onProgress)
    const bytes =
      file instanceof Uint8Array ? file : new Uint8Array(file instanceof ArrayBuffer ? file : await file.arrayBuffer())
    onProgress?.(bytes.length)
    return bytes
  }

  /** @param {string} name @returns {Promise<Exclude<FileLike, string> | Response>} */
  async _find(name) {
    const { source, signal } = this
    const url = this._url(name)
    if (url) return fetch(url, { signal })
    let found
    if (typeof source === 'function') found = await source(name)
    else if (source instanceof Map) found = source.get(name)
    else found = /** @type {Record<string, FileLike>} */ (source)[name]
    if (found === undefined) throw new BundleError(`${name}: not among the given files; give all files of the bundle`)
    return typeof found === 'string' ? fetch(found, { signal }) : found
  }

  /**
   * @param {Response} response
   * @param {string} name
   * @param {(bytes: number) => void} [onProgress]
   */
  async _download(response, name, onProgress) {
    if (!response.ok) throw new BundleError(`${this.label(name)}: not found (HTTP ${response.status})`)
    if (!response.body) return new Uint8Array(await response.arrayBuffer())
    const parts = []
    let size = 0
    const reader = response.body.getReader()
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value)
      size += part.value.length
      onProgress?.(part.value.length)
    }
    const bytes = new Uint8Array(size)
    parts.reduce((at, part) => (bytes.set(part, at), at + part.length), 0)
    return bytes
  }
}

/** A bundle that cannot be used. The message names the file, what it got, and what it expected. */
export class BundleError extends Error {
  name = 'BundleError'
}

/** @param {Uint8Array} bytes */
async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError(
      'SHA-256: crypto.subtle is missing, because this page is not a secure context; ' +
        'serve it over https or from localhost, or pass { hashes: false }',
    )
  }
  const digest = await crypto.subtle.digest('SHA-256', /** @type {BufferSource} */ (bytes))
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('')
}
