/**
 * Reads a bundle's files: from a disk, a web server or memory.
 *
 * @typedef {string | Uint8Array | ArrayBuffer | Blob} FileLike a string: a URL, which is fetched
 * @typedef {string | URL | import('./device.js').Device | Map<string, FileLike> | Record<string, FileLike> | ((name: string) => FileLike | Response | Promise<FileLike | Response>)} Source
 *   a folder's path (Node) or URL, hf:user/repo, a folder of a phone, files by name, or a function that returns a file by its name
 * @typedef {{ unit: 'bytes' | 'columns', file: string | null }} Counted what is counted: the bytes of a download, or the
 *   columns of a generation; file: the one that is read
 * @typedef {(done: number, total: number, counted: Counted) => void} OnProgress
 * @typedef {import('./manifest.js').FileEntry} FileEntry
 */

import { enlarged, partsOf, streamOf } from './downloads.js'
import { shown } from './options.js'
import { createSha256, sha256 } from './sha256.js'
import { printable } from './typed_json.js'

// Node's modules are loaded by process.getBuiltinModule: bundlers for the web try to resolve every import.
const isNode = typeof process !== 'undefined' && Boolean(process.versions?.node)
const PIECE = 2 ** 26 // bytes that are read at a time: a read of 2 GB fails in many engines
const LARGEST = 2 ** 26 // bytes of a manifest.json: ten times what the largest model has with all variants
const SMALL = 2 ** 16 // bytes that a file of unknown size gets at first
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
   * @param {{ cache?: Cache, signal?: AbortSignal, hashes?: boolean, confine?: string }} [options] cache: a browser's,
   *   where downloads are kept; hashes: whether SHA-256 is compared; confine: the folder or URL that all files lie in
   */
  constructor(source, { cache, signal, hashes = true, confine } = {}) {
    if (!['string', 'object', 'function'].includes(typeof source) || source === null) {
      throw new TypeError(`source: got ${shown(source)}, expected a folder, a URL, or files by name`)
    }
    this.source = source
    this.cache = cache
    this.signal = signal
    this.hashes = hashes
    /** in Node, the folder where the bundle is on a disk */
    this.folder = isNode ? folderOf(source) : null
    this.confine = confine
    if (confine !== undefined && this.folder === null) this._within(confine)
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
    return resolve(pathOf(this.folder), name)
  }

  /** Whether a file is on the disk. @param {string} name */
  async exists(name) {
    const { existsSync } = process.getBuiltinModule('node:fs')
    return existsSync(/** @type {string} */ (await this.path(name)))
  }

  /**
   * The whole content of a file. Throws BundleError where it is missing, or differs from the manifest.
   *
   * @param {string} name
   * @param {FileEntry} [expected] of manifest.json itself, nothing is known
   * @param {(bytes: number) => void} [onProgress] called with the bytes read since the last call
   * @returns {Promise<Uint8Array>}
   */
  async read(name, expected, onProgress) {
    const key = expected && this.cache && this._key(name, expected.sha256)
    const cached = key && (await this.cache?.match(key))
    const bytes = cached
      ? await this._collect(cached, name, expected, onProgress)
      : await this._read(name, expected, onProgress)
    this._compareSize(name, bytes.length, expected)
    if (expected && this.hashes && !cached) this._compareHash(name, await sha256(bytes), expected.sha256)
    if (key && !cached) await this.cache?.put(key, new Response(streamOf(bytes)))
    return bytes
  }

  /**
   * Compare a file on the disk with the manifest, without holding all of it in memory. Throws BundleError.
   *
   * @param {string} name
   * @param {FileEntry} expected
   * @param {(bytes: number) => void} [onProgress]
   */
  async verify(name, expected, onProgress) {
    const { createReadStream } = process.getBuiltinModule('node:fs')
    const path = /** @type {string} */ (await this.path(name))
    const size = await regularFile(path, this.confine)
    this._compareSize(name, size, expected)
    if (!this.hashes) return onProgress?.(size)
    const hash = createSha256()
    try {
      for await (const part of createReadStream(path, { highWaterMark: 2 ** 20, signal: this.signal })) {
        hash.update(part)
        onProgress?.(part.length)
      }
    } catch (error) {
      throw unreadable(path, error)
    }
    this._compareHash(name, hash.digest(), expected.sha256)
  }

  /**
   * @param {string} name
   * @param {number} found bytes
   * @param {FileEntry} [expected]
   * @param {string} [more] 'more than', where reading has stopped
   */
  _compareSize(name, found, expected, more = '') {
    if (!more && (expected ? found === expected.bytes : found <= LARGEST)) return
    const wanted = expected ? `${expected.bytes} (manifest.json); copy the bundle again` : `at most ${LARGEST}`
    throw new BundleError(`${this.label(name)}: got ${more}${found} bytes, expected ${wanted}`)
  }

  /** @param {string} name @param {string} found @param {string} expected */
  _compareHash(name, found, expected) {
    if (found === expected) return
    throw new BundleError(
      `${this.label(name)}: SHA-256 is ${found}, expected ${expected} (manifest.json); copy the bundle again`,
    )
  }

  /**
   * The URL of a file; null where the source has none. Characters of a name never become a query or another origin.
   *
   * @param {string} name
   */
  _url(name) {
    const { source, confine } = this
    if (typeof source !== 'string' && !(source instanceof URL)) return null
    const { href } = new URL(name.split('/').map(encodeURIComponent).join('/'), folderUrl(source))
    if (confine === undefined || href.startsWith(this._within(confine))) return href
    throw outside(this.label(name), confine)
  }

  /** How the URLs of a confined bundle begin. @param {string} confine */
  _within(confine) {
    const { source } = this
    const isServed = typeof source === 'string' || source instanceof URL
    if (isServed && URL.canParse(confine, globalThis.location?.href)) return folderUrl(confine).href
    const expected = isServed ? 'a URL, as the source is' : 'none: files that are given by name need none'
    throw new TypeError(`confine: got ${confine}, expected ${expected}`)
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
   * @param {FileEntry} [expected]
   * @param {(bytes: number) => void} [onProgress]
   * @returns {Promise<Uint8Array>}
   */
  async _read(name, expected, onProgress) {
    const path = await this.path(name)
    if (path !== null) return this._readDisk(path, name, expected, onProgress)
    const file = await this._find(name)
    if (file instanceof Response) {
      if (!file.ok) throw new BundleError(`${this.label(name)}: not found (HTTP ${file.status})`)
      return this._collect(file, name, expected, onProgress)
    }
    this._compareSize(name, file instanceof Blob ? file.size : file.byteLength, expected)
    if (file instanceof Blob) return this._collect(new Response(file.stream()), name, expected, onProgress)
    const bytes = file instanceof Uint8Array ? file : new Uint8Array(file)
    onProgress?.(bytes.length)
    return bytes
  }

  /**
   * @param {string} path
   * @param {string} name
   * @param {FileEntry} [expected]
   * @param {(bytes: number) => void} [onProgress]
   */
  async _readDisk(path, name, expected, onProgress) {
    const { open } = process.getBuiltinModule('node:fs/promises')
    const hint = expected ? undefined : 'expected a bundle: a folder that export/bundle.py wrote'
    const size = await regularFile(path, this.confine, hint)
    this._compareSize(name, size, expected)
    const file = await open(path).catch((error) => {
      throw unreadable(path, error)
    })
    try {
      const bytes = this._allocate(name, size)
      for (let at = 0; at < size;) {
        this.signal?.throwIfAborted()
        const { bytesRead } = await file.read(bytes, at, Math.min(PIECE, size - at))
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
    const { source } = this
    const url = this._url(name)
    if (url) return this._fetch(url, name)
    let found
    if (typeof source === 'function') found = await source(name)
    else if (source instanceof Map) found = source.get(name)
    else found = new Map(Object.entries(source)).get(name) // not what objects inherit
    if (found === undefined) throw new BundleError(`${name}: not among the given files; give all files of the bundle`)
    if (typeof found === 'string') return this._fetch(found, name)
    if ([Uint8Array, ArrayBuffer, Blob, Response].some((kind) => found instanceof kind)) return found
    throw new TypeError(`${name}: got ${shown(found)}, expected a URL, a Uint8Array, ArrayBuffer, Blob or Response`)
  }

  /** @param {string} url @param {string} name */
  async _fetch(url, name) {
    return fetch(url, { signal: this.signal }).catch((error) => {
      this.signal?.throwIfAborted()
      throw new BundleError(`${this.label(name)}: cannot be fetched: ${error.cause?.message ?? error.message}`)
    })
  }

  /**
   * The body of a response, read into one array; a second one only where the size is not known.
   *
   * @param {Response} response
   * @param {string} name
   * @param {FileEntry} [expected]
   * @param {(bytes: number) => void} [onProgress]
   */
  async _collect(response, name, expected, onProgress) {
    let bytes = this._allocate(name, expected?.bytes ?? SMALL)
    let filled = 0
    for await (const part of this._parts(response, name, expected)) {
      if (filled + part.length > bytes.length) bytes = enlarged(bytes, Math.max(filled + part.length, 2 * filled))
      bytes.set(part, filled)
      filled += part.length
      onProgress?.(part.length)
    }
    return filled === bytes.length ? bytes : bytes.slice(0, filled)
  }

  /** @param {string} name @param {number} size in bytes */
  _allocate(name, size) {
    try {
      return new Uint8Array(size)
    } catch {
      throw new BundleError(`${this.label(name)}: no memory for its ${size} bytes; load a smaller variant`)
    }
  }

  /**
   * The body of a response in parts, as they come. Throws BundleError where there are more bytes than expected, or
   * where it breaks off.
   *
   * @param {Response} response
   * @param {string} name
   * @param {FileEntry} [expected]
   * @returns {AsyncGenerator<Uint8Array, void, void>}
   */
  async *_parts(response, name, expected) {
    const most = expected?.bytes ?? LARGEST
    let bytes = 0
    for await (const part of partsOf(response, (error) => this._broken(name, error))) {
      bytes += part.length
      if (bytes > most) this._compareSize(name, most, expected, 'more than ')
      yield part
    }
  }

  /** What to throw where a download breaks off. @param {string} name @param {Error} error */
  _broken(name, error) {
    if (this.signal?.aborted) return this.signal.reason
    return new BundleError(`${this.label(name)}: the download broke off: ${error.message}; load the bundle again`)
  }
}

/**
 * The size of a file on a disk. Throws BundleError where it is missing, or lies outside of the folder `confine`, links
 * followed, and where it is a folder, a device, a pipe or a socket, which must not be opened.
 *
 * @param {string} path
 * @param {string} [confine]
 * @param {string} [hint] what to do where it is missing
 */
export async function regularFile(path, confine, hint = 'copy the bundle again, with all files that it lists') {
  const { realpath, stat } = process.getBuiltinModule('node:fs/promises')
  const [status, real] = await Promise.all([stat(path), realpath(path)]).catch((error) => {
    throw error.code === 'ENOENT' ? new BundleError(`${path}: not found; ${hint}`) : unreadable(path, error)
  })
  if (confine !== undefined && !(await isWithin(pathOf(confine), real))) throw outside(path, confine)
  if (!status.isFile()) throw new BundleError(`${path}: not a regular file; copy the bundle again`)
  return status.size
}

/** Whether a file lies in a folder. @param {string} folder @param {string} file its path without links */
async function isWithin(folder, file) {
  const { realpath } = process.getBuiltinModule('node:fs/promises')
  const { isAbsolute, relative, sep } = process.getBuiltinModule('node:path')
  const way = relative(await realpath(folder).catch(() => folder), file)
  return way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way)
}

/** @param {string} label @param {string} confine */
const outside = (label, confine) =>
  new BundleError(`${label}: lies outside of ${confine}; a bundle opened confined has its files in there`)

/** An error of the disk with its file, any other as it is. @param {string} path @param {any} error */
function unreadable(path, error) {
  if (!error.syscall && error.code !== 'ERR_INVALID_ARG_VALUE') return error
  return new BundleError(`${printable(path)}: cannot be read: ${printable(error.message)}`)
}

/** The path of a folder. @param {string | URL} folder */
function pathOf(folder) {
  const isPath = typeof folder === 'string' && !folder.startsWith('file://')
  return isPath ? folder : process.getBuiltinModule('node:url').fileURLToPath(folder)
}

/** The URL of a folder, from which its files' names go on. @param {string | URL} folder */
const folderUrl = (folder) => new URL(String(folder).replace(/\/?$/, '/'), globalThis.location?.href)

/** A bundle that cannot be used. The message names the file, what it got, and what it expected. */
export class BundleError extends Error {
  name = 'BundleError'
}
