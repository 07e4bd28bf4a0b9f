/** Bundles: served with the page, or opened from a folder. */

/**
 * @typedef {{ file: string, data?: string, inputs: { name: string, dtype: string }[] }} Entry
 * @typedef {{ graphs: Record<string, Entry>, cache?: string }} Variant
 * @typedef {object} Tree the part of manifest.json that the page reads
 * @property {Record<string, Entry>} graphs
 * @property {Record<string, { bytes: number }>} files
 * @property {string} [variant]
 * @property {Record<string, Variant>} [variants]
 * @property {Record<string, string[]>} [backends] the variants that each backend prefers
 * @property {{ sample_rate: number, frame_rate: number, channels: number }} model
 * @property {{ duration: number, top_k: number, temperature: number, cfg_coef: number }} defaults
 *
 * @typedef {{ name: string, source: string | Map<string, File>, tree: Tree }} Bundle
 */

const ROOT = new URL('../bundles/', import.meta.url)

/** What the server has: names of bundles, and whether there is a demo loop. @returns {Promise<{ bundles: string[], loop: boolean }>} */
export async function served() {
  const response = await fetch(new URL('index.json', ROOT)).catch(() => null)
  return response?.ok ? response.json() : { bundles: [], loop: false }
}

/** @param {string} name @returns {Promise<Bundle>} */
export async function openServed(name) {
  const source = new URL(`${encodeURIComponent(name)}/`, ROOT).href
  const response = await fetch(`${source}manifest.json`)
  if (!response.ok) throw new TypeError(`The server has no bundle “${name}” (HTTP ${response.status}).`)
  return { name, source, tree: validate(await response.text(), name) }
}

/**
 * The bundles in a folder: one, or several that share files.
 *
 * @param {Iterable<File>} files with their paths, as an input of folders gives them
 * @returns {Promise<Bundle[]>}
 */
export async function openFolder(files) {
  const all = Array.from(files, (file) => ({ file, path: file.webkitRelativePath || file.name }))
  const manifests = all.filter(({ path }) => /(^|\/)manifest\.json$/.test(path))
  if (!manifests.length) {
    throw new TypeError(
      'This folder is not a bundle: it has no manifest.json. A bundle is a folder that export/bundle.py wrote.',
    )
  }
  return Promise.all(
    manifests.map(async ({ file, path }) => {
      const folder = path.split('/').slice(0, -1)
      const name = folder.at(-1) ?? 'bundle'
      const tree = validate(await file.text().catch(() => ''), name)
      return { name, source: new Map(all.map(({ file, path }) => [relative(folder, path.split('/')), file])), tree }
    }),
  )
}

/** A path relative to a folder, as its manifest names it. @param {string[]} folder @param {string[]} path */
function relative(folder, path) {
  let shared = 0
  while (shared < folder.length && folder[shared] === path[shared]) shared++
  return [...folder.slice(shared).map(() => '..'), ...path.slice(shared)].join('/')
}

/**
 * The part of manifest.json that the page reads; throws a TypeError where it is not as the page expects it.
 *
 * @param {string} text
 * @param {string} name
 * @returns {Tree}
 */
export function validate(text, name) {
  /** @type {any} */
  let tree
  try {
    tree = JSON.parse(text)
  } catch {
    throw new TypeError(`“${name}” is not a bundle: its manifest.json is not valid JSON. It may be half-written.`)
  }
  if (tree?.format !== 'clean_lm')
    throw new TypeError(`“${name}” is not a bundle: its manifest.json is not clean_lm’s.`)
  if (!tree.graphs?.compression_stream)
    throw new TypeError(`“${name}” contains no codec, so it cannot make sound: export it with one.`)
  const isRecord = (/** @type {any} */ value) => typeof value === 'object' && value !== null && !Array.isArray(value)
  const variants = tree.variants ?? {}
  const graphs = [tree, ...(isRecord(variants) ? Object.values(variants) : [null])].map((one) => one?.graphs)
  const entries = graphs.flatMap((one) => (isRecord(one) ? Object.values(one) : [null]))
  const isEntry = (/** @type {any} */ one) =>
    typeof one?.file === 'string' && ['string', 'undefined'].includes(typeof one.data) && Array.isArray(one.inputs)
  const sizes = isRecord(tree.files) ? Object.values(tree.files) : [null]
  const numbers = [tree.model?.sample_rate, tree.model?.frame_rate, tree.model?.channels, tree.defaults?.duration]
  const isWhole = entries.every(isEntry) && sizes.every((/** @type {any} */ file) => Number.isFinite(file?.bytes))
  if (!isWhole || !numbers.every(Number.isFinite))
    throw new TypeError(`“${name}” is damaged: its manifest.json lacks fields, or has others. Export it again.`)
  return tree
}

/** How many bytes are read to load a variant. @param {Tree} tree @param {string} [variant] */
export function sizeOf(tree, variant) {
  const { compression_decode: _, ...graphs } = { ...tree.graphs, ...tree.variants?.[variant ?? '']?.graphs }
  const parts = new Set(Object.values(graphs).flatMap(({ file, data }) => [file, data ?? `${file}.data`]))
  const read = Object.entries(tree.files).filter(([name]) => parts.has(name))
  return read.reduce((sum, [, { bytes }]) => sum + bytes, 0)
}

/**
 * The files that were dropped, and all files in dropped folders.
 *
 * @param {DataTransfer} dropped
 * @returns {Promise<{ files: File[], folder: boolean }>}
 */
export async function dropped({ items, files }) {
  const entries = Array.from(items, (item) => item.webkitGetAsEntry?.())
  const folders = entries.filter((entry) => entry?.isDirectory)
  if (!folders.length) return { files: [...files], folder: false }
  const found = await Promise.all(folders.map((entry) => walk(/** @type {FileSystemDirectoryEntry} */ (entry))))
  return { files: found.flat(), folder: true }
}

/** @param {FileSystemDirectoryEntry} folder @returns {Promise<File[]>} */
async function walk(folder) {
  const reader = folder.createReader()
  /** @type {FileSystemEntry[]} */
  const entries = []
  while (true) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))
    if (!some.length) break
    entries.push(...some)
  }
  const found = entries.map(async (entry) => {
    if (entry.isDirectory) return walk(/** @type {FileSystemDirectoryEntry} */ (entry))
    const file = await new Promise((resolve, reject) =>
      /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject),
    )
    Object.defineProperty(file, 'webkitRelativePath', { value: entry.fullPath.slice(1) }) // browsers leave it empty for dropped files
    return [file]
  })
  return (await Promise.all(found)).flat()
}
