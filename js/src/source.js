/**
 * Where a bundle's files come from.
 *
 * @typedef {string | Uint8Array | ArrayBuffer | Blob} FileLike a string: a path or URL that `ort` itself opens
 * @typedef {string | URL | Map<string, FileLike> | Record<string, FileLike> | ((name: string) => FileLike | Response | Promise<FileLike | Response>)} Source
 *   a folder (Node), the URL of one, files by their names, or a function of a name
 * @typedef {(done: number, total: number, file: string) => void} LoadProgress bytes
 * @typedef {{ path: string } | { bytes: Uint8Array }} Found
 */

// Node's own modules come from process.getBuiltinModule: bundlers for the web would look for an import of them.
const isNode = typeof process !== 'undefined' && Boolean(process.versions?.node)
const isUrl = /^[a-z][a-z0-9+.-]+:\/\// // and no C:\\

/**
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
   * @param {{ cache?: Cache, signal?: AbortSignal, hashes?: boolean }} [options] cache: of the browser, where downloads stay
   */
  constructor(source, { cache, signal, hashes = true } = {}) {
    this.source = source
    this.cache = cache
    this.signal = signal
    this.hashes = hashes
    /** in Node, the folder on a disk */
    this.folder = isNode ? folderOf(source) : null
  }

  /** How errors call a file. @param {string} name */
  label(name) {
    const { source } = this
    return typeof source === 'string' || source instanceof URL ? `${String(source).replace(/\/$/, '')}/${name}` : name
  }

  /**
   * Where a file lies, without reading it; null where it is not on a disk.
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
   * A file's content, whole. Throws BundleError where it is missing or not what the manifest says.
   *
   * @param {string} name
   * @param {{ bytes: number, sha256: string }} [expected]
   * @param {(bytes: number) => void} [onProgress] bytes that have come since
   * @returns {Promise<Uint8Array>}
   */
  async read(name, expected, onProgress) {
    const key = expected && this.cache && this._url(name, expected.sha256)
    const kept = key && (await this.cache?.match(key))
    const bytes = kept ? new Uint8Array(await kept.arrayBuffer()) : await this._read(name, onProgress)
    if (kept) onProgress?.(bytes.length)
    if (expected && bytes.length !== expected.bytes) {
      throw new BundleError(`${this.label(name)}: ${bytes.length} bytes, manifest.json says ${expected.bytes}`)
    }
    if (expected && this.hashes && !kept) await this._compare(name, await sha256(bytes), expected.sha256)
    if (key && !kept) await this.cache?.put(key, new Response(/** @type {BodyInit} */ (bytes)))
    return bytes
  }

  /**
   * Check a file that stays on the disk, read in pieces.
   *
   * @param {string} name
   * @param {{ bytes: number, sha256: string }} expected
   */
  async check(name, expected) {
    const { createReadStream } = process.getBuiltinModule('node:fs')
    const { stat } = process.getBuiltinModule('node:fs/promises')
    const { createHash } = process.getBuiltinModule('node:crypto')
    const path = /** @type {string} */ (await this.path(name))
    const found = await stat(path).catch(() => {
      throw new BundleError(`${path}: listed in manifest.json, but not there; copy the bundle again`)
    })
    if (found.size !== expected.bytes) {
      throw new BundleError(`${path}: ${found.size} bytes, manifest.json says ${expected.bytes}`)
    }
    if (!this.hashes) return
    const hash = createHash('sha256')
    for await (const part of createReadStream(path, { highWaterMark: 2 ** 20, signal: this.signal })) hash.update(part)
    await this._compare(name, hash.digest('hex'), expected.sha256)
  }

  /** @param {string} name @param {string} found @param {string} expected */
  async _compare(name, found, expected) {
    if (found !== expected) {
      throw new BundleError(`${this.label(name)}: sha256 is ${found}, manifest.json says ${expected}; copy it again`)
    }
  }

  /** @param {string} name @param {string} [version] */
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
        throw new BundleError(`${path}: not found; a bundle is the folder that export/bundle.py writes`)
      })
      onProgress?.(bytes.length)
      return bytes
    }
    const found = await this._find(name)
    if (found instanceof Response) return this._download(found, name, onProgress)
    const bytes =
      found instanceof Uint8Array
        ? found
        : new Uint8Array(found instanceof ArrayBuffer ? found : await found.arrayBuffer())
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
    if (found === undefined) throw new BundleError(`${name}: not among the files given; a bundle has all of its folder`)
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

/** A bundle that cannot be used: says which file, what was found and what was expected. */
export class BundleError extends Error {
  name = 'BundleError'
}

/** @param {Uint8Array} bytes */
async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError(
      'sha256: this page is not a secure context (https or localhost), where browsers have no crypto.subtle: ' +
        'serve it so, or pass { hashes: false }',
    )
  }
  const digest = await crypto.subtle.digest('SHA-256', /** @type {BufferSource} */ (bytes))
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('')
}
