/**
 * Reads a bundle's files: from a disk, a web server or memory.
 *
 * @typedef {string | Uint8Array | ArrayBuffer | Blob} FileLike a string: a URL, which is fetched
 * @typedef {string | URL | Map<string, FileLike> | Record<string, FileLike> | ((name: string) => FileLike | Response | Promise<FileLike | Response>)} Source
 *   a folder's path (Node) or URL, hf:user/repo, files by name, or a function that returns a file by its name
 * @typedef {(done: number, total: number, file: string) => void} LoadProgress done and total in bytes
 */

import { createSha256, sha256 } from './sha256.js'

// Node's modules are loaded by process.getBuiltinModule: bundlers for the web try to resolve every import.
const isNode = typeof process !== 'undefined' && Boolean(process.versions?.node)
const PIECE = 2 ** 26 // bytes that are read or written at a time: a Response or a read of 2 GB fails in many engines
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
    const key = expected && this.cache && this._key(name, expected.sha256)
    const cached = key && (await this.cache?.match(key))
    const bytes = cached
      ? await collect(cached, onProgress, expected.bytes)
      : await this._read(name, onProgress, expected?.bytes)
    if (expected) this._compareSize(name, bytes.length, expected.bytes)
    if (expected && this.hashes && !cached) this._compareHash(name, await sha256(bytes), expected.sha256)
    if (key && !cached) await this.cache?.put(key, new Response(streamOf(bytes)))
    return bytes
  }

  /**
   * Compare a file on the disk with the manifest, without holding all of it in memory. Throws BundleError.
   *
   * @param {string} name
   * @param {{ bytes: number, sha256: string }} expected
   * @param {(bytes: number) => void} [onProgress]
   */
  async verify(name, expected, onProgress) {
    const { createReadStream } = process.getBuiltinModule('node:fs')
    const { stat } = process.getBuiltinModule('node:fs/promises')
    const path = /** @type {string} */ (await this.path(name))
    const { size } = await stat(path).catch(() => {
      throw new BundleError(`${path}: listed in manifest.json, but missing; copy the bundle again`)
    })
    this._compareSize(name, size, expected.bytes)
    if (!this.hashes) return onProgress?.(size)
    const hash = createSha256()
    for await (const part of createReadStream(path, { highWaterMark: 2 ** 20, signal: this.signal })) {
      hash.update(part)
      onProgress?.(part.length)
    }
    this._compareHash(name, hash.digest(), expected.sha256)
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

  /** The URL of a file; null where the source has none. @param {string} name */
  _url(name) {
    const { source } = this
    if (typeof source !== 'string' && !(source instanceof URL)) return null
    const base = new URL(String(source).replace(/\/?$/, '/'), globalThis.location?.href)
    return new URL(name, base).href
  }

  /** What a cache knows a file by: its URL and content. @param {string} name @param {string} hash its SHA-256 */
  _key(name, hash) {
    const url = this._url(name)
    if (!url) return null
    const key = new URL(url)
    key.searchParams.set('sha256', hash)
    return key.href
  }

  /**
   * @param {string} name
   * @param {(bytes: number) => void} [onProgress]
   * @param {number} [size] bytes that are expected
   * @returns {Promise<Uint8Array>}
   */
  async _read(name, onProgress, size) {
    const path = await this.path(name)
    if (path !== null) return this._readDisk(path, onProgress)
    const file = await this._find(name)
    if (file instanceof Response) return this._download(file, name, onProgress, size)
    const bytes =
      file instanceof Uint8Array ? file : new Uint8Array(file instanceof ArrayBuffer ? file : await file.arrayBuffer())
    onProgress?.(bytes.length)
    return bytes
  }

  /** @param {string} path @param {(bytes: number) => void} [onProgress] */
  async _readDisk(path, onProgress) {
    const { open } = process.getBuiltinModule('node:fs/promises')
    const file = await open(path).catch((error) => {
      if (error.code !== 'ENOENT') throw error
      throw new BundleError(`${path}: not found; expected a bundle: a folder that export/bundle.py wrote`)
    })
    try {
      const bytes = new Uint8Array((await file.stat()).size)
      for (let at = 0; at < bytes.length;) {
        this.signal?.throwIfAborted()
        const { bytesRead } = await file.read(bytes, at, Math.min(PIECE, bytes.length - at))
        if (!bytesRead) return bytes.subarray(0, at)
        at += bytesRead
        onProgress?.(bytesRead)
      }
      return bytes
    } finally {
      await file.close()
    }
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
   * @param {number} [size] bytes that are expected
   */
  async _download(response, name, onProgress, size) {
    if (!response.ok) throw new BundleError(`${this.label(name)}: not found (HTTP ${response.status})`)
    return collect(response, onProgress, size)
  }
}

/**
 * The body of a response, read into one array.
 *
 * @param {Response} response
 * @param {(bytes: number) => void} [onProgress]
 * @param {number} [size] bytes that are expected; then no second copy is made
 */
async function collect(response, onProgress, size) {
  let bytes = new Uint8Array(size ?? PIECE)
  let filled = 0
  for await (const part of partsOf(response)) {
    if (filled + part.length > bytes.length) bytes = enlarged(bytes, Math.max(filled + part.length, 2 * filled))
    bytes.set(part, filled)
    filled += part.length
    onProgress?.(part.length)
  }
  return filled === bytes.length ? bytes : bytes.slice(0, filled)
}

/** @param {Uint8Array} bytes @param {number} size */
function enlarged(bytes, size) {
  const larger = new Uint8Array(size)
  larger.set(bytes)
  return larger
}

/**
 * The body of a response in parts, as they come.
 *
 * @param {Response} response
 * @returns {AsyncGenerator<Uint8Array, void, void>}
 */
export async function* partsOf(response) {
  if (!response.body) {
    yield new Uint8Array(await response.arrayBuffer())
    return
  }
  const reader = response.body.getReader()
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value
}

/** @param {Uint8Array} bytes */
function streamOf(bytes) {
  let at = 0
  return new ReadableStream({
    pull(controller) {
      if (at === bytes.length) return controller.close()
      controller.enqueue(bytes.slice(at, (at = Math.min(at + PIECE, bytes.length))))
    },
  })
}

/** A bundle that cannot be used. The message names the file, what it got, and what it expected. */
export class BundleError extends Error {
  name = 'BundleError'
}
