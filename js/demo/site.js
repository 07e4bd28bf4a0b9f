/**
 * Which files the demo's server has: those of the page's folders, and those that the bundles' manifests list.
 *
 *     demo/  src/  vendor/  bundles/NAME/  loop.wav  sw.js      sw.js is at the root, so that it handles all requests
 *
 * A manifest is not believed: its names must stay in the folders of the bundles that are served.
 */

import { readdirSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { basename, dirname, join, posix, relative, resolve, sep } from 'node:path'
import { fileURLToPath } from 'node:url'

import { printable } from '../src/typed_json.js'

/**
 * @typedef {{ path: string, roots: string[] }} Listed a file, and the real folders in which it must be
 * @typedef {Map<string, Listed | Buffer>} Files by their path under the server's root; a Buffer is the content itself
 * @typedef {{ name: string, folder: string }} Bundle its name in URLs, and its folder's absolute path
 */

const here = dirname(fileURLToPath(import.meta.url))
const source = resolve(here, '../src')
const modules = createRequire(import.meta.url)
const ort = dirname(modules.resolve('onnxruntime-web'))
const tokenizers = dirname(modules.resolve('@huggingface/tokenizers'))

const ORT = /^ort\.(wasm|webgpu)\.min\.mjs$|^ort-wasm-simd-threaded(\.asyncify)?\.(mjs|wasm)$/
const NOT_SERVED = /^(serve\.js|site\.js|export\.js|sw\.js|tsconfig\.json|README\.md)$/
const LARGEST_MANIFEST = 2 ** 24 // bytes

/** The list of files, read again where a manifest or one of the page's folders has changed. */
export class Site {
  /**
   * Throws an Error of one line if a bundle or the loop cannot be served.
   *
   * @param {string[]} folders of bundles
   * @param {string} [loop] a WAV file
   */
  constructor(folders, loop) {
    this.bundles = named(folders)
    this.loop = loop && resolve(loop)
    this.stamp = this._stamp()
    this.listed = this._list()
  }

  /** The files as they are now; where a manifest is broken, as they were before. @returns {Files} */
  files() {
    const stamp = this._stamp()
    if (stamp === this.stamp) return this.listed
    this.stamp = stamp
    try {
      this.listed = this._list()
    } catch (error) {
      const message = printable(/** @type {Error} */ (error).message)
      console.error(`${message}; the files listed before are still served`)
    }
    return this.listed
  }

  /** What changes with the list: the manifests, and the page's folders. */
  _stamp() {
    const watched = [here, source, ...this.bundles.map(({ folder }) => join(folder, 'manifest.json'))]
    const stats = watched.map((path) => statSync(path, { throwIfNoEntry: false }))
    return stats.map((found) => (found ? `${found.ino} ${found.size} ${found.mtimeMs}` : 'none')).join(', ')
  }

  /** @returns {Files} */
  _list() {
    /** @type {Files} */
    const files = new Map([
      ...listed('demo', here, (name) => !NOT_SERVED.test(name)),
      ...listed('src', source, (name) => name.endsWith('.js')),
      ...listed('vendor/ort', ort, (name) => ORT.test(name)),
      ['vendor/tokenizers.mjs', { path: join(tokenizers, 'tokenizers.min.mjs'), roots: [realpathSync(tokenizers)] }],
      ['sw.js', { path: join(here, 'sw.js'), roots: [realpathSync(here)] }],
    ])
    const names = this.bundles.map(({ name }) => name)
    files.set('bundles/index.json', Buffer.from(JSON.stringify({ bundles: names, loop: Boolean(this.loop) })))
    const roots = this.bundles.map(({ folder }) => realOf(folder) ?? folder)
    for (const bundle of this.bundles) addBundle(files, bundle, this.bundles, roots)
    if (this.loop) files.set('loop.wav', { path: this.loop, roots: [requireFile(this.loop)] })
    return files
  }
}

/**
 * Bundles by their folders' names; throws where one has none, or two have the same.
 *
 * @param {string[]} folders
 * @returns {Bundle[]}
 */
function named(folders) {
  const bundles = folders.map((folder) => ({ name: basename(resolve(folder)), folder: resolve(folder) }))
  bundles.forEach(({ name, folder }, i) => {
    if (!name || name === 'index.json') throw new Error(`${folder}: cannot be served by this name; rename the folder`)
    const same = bundles.slice(0, i).find((other) => other.name === name)
    if (same) throw new Error(`${folder}: the bundle ${same.folder} has the same name; rename one of the folders`)
  })
  return bundles
}

/**
 * The files of a folder, not of those in it.
 *
 * @param {string} prefix
 * @param {string} folder
 * @param {(name: string) => boolean} wanted
 * @returns {[string, Listed][]}
 */
function listed(prefix, folder, wanted) {
  const names = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isFile() && wanted(entry.name))
  const roots = [realpathSync(folder)]
  return names.map(({ name }) => [`${prefix}/${name}`, { path: join(folder, name), roots }])
}

/**
 * Add the files of a bundle's manifest, with those it shares with another bundle ("../first/text_encoder.onnx"), and the
 * manifest as it was read: the server never sends one that is half-written.
 *
 * @param {Files} files
 * @param {Bundle} bundle
 * @param {Bundle[]} bundles all of them
 * @param {string[]} roots their real folders
 */
function addBundle(files, bundle, bundles, roots) {
  const { name, folder } = bundle
  const manifest = join(folder, 'manifest.json')
  const content = readManifest(manifest, roots)
  for (const file of namesOf(content, manifest)) {
    const path = resolve(folder, file)
    const url = posix.join('bundles', name, file)
    const owner = [bundle, ...bundles].find((one) => within(path, one.folder))
    const isShared = owner && url === posix.join('bundles', owner.name, ...relative(owner.folder, path).split(sep))
    if (!isShared || file.includes('\\')) throw outside(manifest, file)
    if (realOf(path) && !realWithin(path, roots)) throw outside(manifest, file)
    files.set(url, { path, roots })
  }
  files.set(posix.join('bundles', name, 'manifest.json'), content)
}

/** @param {string} manifest @param {string} file */
const outside = (manifest, file) =>
  new Error(
    `${manifest}: lists ${shown(file)}, which is no regular file in a folder of the bundles that are served; ` +
      'expected a file of its own folder, or of another --bundle beside it',
  )

/**
 * @param {string} path
 * @param {string[]} roots
 */
function readManifest(path, roots) {
  const expected = 'expected a bundle: a folder that export/bundle.py wrote'
  const real = realWithin(path, roots)
  if (!real) throw new Error(`${path}: not a file of this folder; ${expected}`)
  const { size } = statSync(real)
  if (size > LARGEST_MANIFEST) throw new Error(`${path}: got ${size} bytes, at most ${LARGEST_MANIFEST}; ${expected}`)
  return readFileSync(real)
}

/**
 * The names that a manifest lists.
 *
 * @param {Buffer} content
 * @param {string} path
 * @returns {string[]}
 */
function namesOf(content, path) {
  const expected = 'expected a bundle: a folder that export/bundle.py wrote'
  /** @type {any} */
  let manifest
  try {
    manifest = JSON.parse(content.toString('utf8'))
  } catch (error) {
    const { message } = /** @type {Error} */ (error)
    throw new Error(`${path}: not valid JSON: ${message.replace(/\s+/g, ' ').slice(0, 200)}; ${expected}`)
  }
  const files = manifest?.files
  if (typeof files !== 'object' || files === null || Array.isArray(files)) {
    throw new Error(`${path}: "files" is ${shown(files)}, expected an object of files by name; ${expected}`)
  }
  return Object.keys(files)
}

/**
 * The real path of a listed file; undefined where it is gone, is no regular file, or is a link that leads out.
 *
 * @param {Listed} file
 */
export const realFile = ({ path, roots }) => realWithin(path, roots)

/**
 * The real path of a regular file within one of some real folders; undefined where there is none.
 *
 * @param {string} path
 * @param {string[]} roots
 */
function realWithin(path, roots) {
  const real = realOf(path)
  if (!real || !roots.some((root) => within(real, root))) return undefined
  return statSync(real, { throwIfNoEntry: false })?.isFile() ? real : undefined
}

/** The path without links; undefined where nothing is there. @param {string} path */
function realOf(path) {
  try {
    return realpathSync(path)
  } catch {
    return undefined // also a name with a zero byte, a loop of links, or a folder that cannot be read
  }
}

/** Whether a path is a folder's, or the folder itself. @param {string} path @param {string} folder */
const within = (path, folder) => path === folder || path.startsWith(folder.endsWith(sep) ? folder : folder + sep)

/**
 * The real path of a regular file that the user named; throws where it is none.
 *
 * @param {string} path
 */
export function requireFile(path) {
  const real = realOf(path)
  if (real && statSync(real).isFile()) return real
  throw new Error(`${path}: ${real ? 'not a regular file' : 'not found'}; expected the path of a file`)
}

/** @param {unknown} value cut, on one line */
function shown(value) {
  const text = JSON.stringify(value) ?? String(value)
  return text.length > 100 ? `${text.slice(0, 97)}...` : text
}
