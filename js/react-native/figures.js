/** What the variants of a bundle need of a phone, computed from manifest.json. */

/**
 * @typedef {import('clean-lm').Manifest['tree']} Tree manifest.json
 * @typedef {Tree['graphs'][string]} Entry
 *
 * @typedef {object} Figures
 * @property {string} variant
 * @property {string | null} refusal why it cannot run on a phone; null where it can
 * @property {string[]} files what is downloaded
 * @property {number} download bytes of these
 * @property {number} weights bytes of what is open without a description. They are mapped from their files
 * @property {number} text bytes that a description adds to `weights`
 * @property {number} cache bytes of the KV cache of one row, which a window without a description has when it is full
 * @property {number} guided bytes of the KV cache with a description: two rows
 */

const BYTES = /** @type {Record<string, number>} */ ({ float32: 4, float16: 2, int64: 8, int8: 1 })
const ALWAYS = ['lm_inference', 'compression_encode', 'compression_stream']
const WITH_TEXT = ['lm_condition', 'text_encoder']
const TOKENIZER = 'tokenizer.json'

/**
 * Figures of all variants, those that the bundle prefers for a CPU first.
 *
 * @param {Tree} tree
 * @returns {Figures[]}
 */
export function figuresOf(tree) {
  const names = [...(tree.backends?.cpu ?? []), ...Object.keys(tree.variants ?? {})]
  return [...new Set(names)].map((variant) => variantFigures(tree, variant))
}

/** @param {Tree} tree @param {string} variant @returns {Figures} */
function variantFigures(tree, variant) {
  const graphs = { ...tree.graphs, ...tree.variants?.[variant].graphs }
  const has = (/** @type {string} */ name) => name in tree.files
  const filesOf = (/** @type {string[]} */ wanted) =>
    wanted.filter((name) => name in graphs).flatMap((name) => [graphs[name].file, dataOf(graphs[name])].filter(has))
  const [open, text] = [filesOf(ALWAYS), filesOf(WITH_TEXT)]
  const files = [...new Set([...open, ...text, ...[TOKENIZER].filter(has)])]
  const row = cacheBytes(tree, graphs.lm_inference)
  return {
    variant,
    refusal: refusalOf(graphs),
    files,
    download: bytesOf(tree, files),
    weights: bytesOf(tree, open),
    text: bytesOf(tree, text),
    cache: row,
    guided: 2 * row,
  }
}

/** @param {Entry} entry */
const dataOf = ({ file, data }) => data ?? `${file}.data`

/** @param {Tree} tree @param {string[]} names */
const bytesOf = (tree, names) => [...new Set(names)].reduce((sum, name) => sum + tree.files[name].bytes, 0)

/**
 * Bytes of one row's KV cache for a window of max_duration.
 *
 * @param {Tree} tree
 * @param {Entry} entry lm_inference
 */
function cacheBytes({ model }, { inputs }) {
  const capacity = Math.round(model.max_duration * model.frame_rate) + Math.max(...model.delays) + 1
  const sizes = /** @type {Record<string, number>} */ ({ rows: 1, capacity })
  const caches = inputs.filter(({ name }) => name.startsWith('past_key_values.'))
  const bytes = caches.map(({ dtype, shape }) =>
    shape.reduce((/** @type {number} */ n, size) => n * (typeof size === 'string' ? sizes[size] : size), BYTES[dtype]),
  )
  return bytes.reduce((sum, n) => sum + n, 0)
}

/** The binding makes a Float16Array of a float16 output, which Hermes does not have. @param {Record<string, Entry>} graphs */
function refusalOf(graphs) {
  const used = [...ALWAYS, ...WITH_TEXT].filter((name) => name in graphs).map((name) => graphs[name])
  const isHalf = used.some(({ inputs, outputs }) => [...inputs, ...outputs].some(({ dtype }) => dtype === 'float16'))
  return isHalf ? 'float16 tensors: Hermes has no Float16Array' : null
}
