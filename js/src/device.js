/**
 * A bundle's files in a folder of a phone. ONNX Runtime opens them by their paths and maps their weights; JavaScript reads
 * manifest.json and tokenizer.json, and nothing else.
 *
 * React Native has no file system of its own, so the app passes one in, for example expo-file-system's:
 *
 *     const device = { folder: folder.uri, file: (name) => new File(folder, name) }
 *     const model = await MusicGen.load(device, { ort })
 */

import { BundleError, Files } from './files.js'

/**
 * @typedef {object} DeviceFile expo-file-system's File is one
 * @property {boolean} exists
 * @property {number} size in bytes
 * @property {() => Promise<Uint8Array>} bytes its content
 * @property {(algorithm: 'SHA-256') => Promise<string>} digest in hexadecimal
 *
 * @typedef {{ folder: string, file: (name: string) => DeviceFile }} Device folder: its path, or a file: URL
 */

/** @param {unknown} source @returns {source is Device} */
export const isDevice = (source) =>
  typeof (/** @type {any} */ (source)?.folder) === 'string' && typeof (/** @type {any} */ (source).file) === 'function'

export class DeviceFiles extends Files {
  /**
   * @param {Device} device
   * @param {import('./manifest.js').LoadOptions} options
   */
  constructor(device, options) {
    super(device.folder.replace(/\/*$/, ''), { ...options, cache: undefined, confine: undefined })
    this.device = device
    this.folder = String(this.source)
  }

  /** @param {string} name */
  async path(name) {
    this._requireInside(name)
    const path = this.folder.replace(/^file:\/\//, '')
    return `${path === this.folder ? path : decodeURIComponent(path)}/${name}`
  }

  /** @param {string} name */
  async exists(name) {
    return this.device.file(name).exists
  }

  /**
   * Compare a file with the manifest; the platform hashes it, not JavaScript. Throws BundleError.
   *
   * @param {string} name
   * @param {import('./files.js').FileEntry} expected
   * @param {(bytes: number) => void} [onProgress]
   */
  async verify(name, expected, onProgress) {
    const { size } = this._file(name)
    this._compareSize(name, size, expected)
    if (this.hashes) this._compareHash(name, (await this._file(name).digest('SHA-256')).toLowerCase(), expected.sha256)
    onProgress?.(size)
  }

  /**
   * @param {string} name
   * @param {import('./files.js').FileEntry} [expected]
   * @param {(bytes: number) => void} [onProgress]
   */
  async _read(name, expected, onProgress) {
    const file = this._file(name)
    this._compareSize(name, file.size, expected)
    const bytes = await file.bytes()
    onProgress?.(bytes.length)
    return bytes
  }

  /** A phone's bundles are always confined to their folders. @param {string} name */
  _requireInside(name) {
    if (!name.split('/').includes('..') && !name.startsWith('/')) return
    throw new BundleError(`${this.label(name)}: lies outside of the bundle's folder; copy all files into it`)
  }

  /** @param {string} name */
  _file(name) {
    this._requireInside(name)
    const file = this.device.file(name)
    if (!file.exists) throw new BundleError(`${this.label(name)}: not found; download the bundle again`)
    return file
  }
}
