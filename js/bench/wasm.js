/**
 * The cost of a step in onnxruntime-web's WASM backend, which copies every input and output in each run: a KV cache of
 * full capacity against one that grows in blocks.
 *
 *   python demo/checkpoint.py --size small --layers 6 --out build/six
 *   python export/lm.py --ckpt build/six/state_dict.bin --out build/six/standard --attention standard --variant dynamic
 *   node js/bench/wasm.js build/six/standard [another bundle ...]
 *
 * Prints the CPU time of one thread in ms, a median. Wall time depends more on what else runs.
 */

import { readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import * as ort from 'onnxruntime-web'

const ROUNDS = 7
const CAPACITY = 1504 // 30 s and the largest delay, to a multiple of 32
const BLOCK = 128 // columns by which a growing cache grows
const FILLED = [100, 750, 1490]
const TOKENS = 12 // of the text
const ARRAYS = { float32: Float32Array, float16: Uint16Array, int8: Int8Array, int64: BigInt64Array }

/** @typedef {{name: string, session: ort.InferenceSession, graph: any, inPlace: boolean}} Opened */
/** @typedef {{rows: number, filled: number, capacity: number}} Sizes one row: no text; two rows: a text, and its unconditional row */

async function main() {
  const folders = process.argv.slice(2)
  if (!folders.length) throw new Error('usage: node js/bench/wasm.js BUNDLE [BUNDLE ...]')
  ort.env.wasm.numThreads = 1
  ort.env.logLevel = 'error'
  const opened = (await Promise.all(folders.map(open))).flat()
  for (const one of opened) await measure(one, { rows: 2, filled: 64, capacity: BLOCK }, 30) // until V8 has compiled it
  console.log(['rows', 'filled', ...opened.flatMap(({ name }) => [`${name} full`, 'growing'])].join('\t'))
  for (const rows of [1, 2])
    for (const filled of FILLED) {
      const times = []
      for (const one of opened)
        for (const capacity of [CAPACITY, Math.ceil((filled + 1) / BLOCK) * BLOCK])
          times.push((await measure(one, { rows, filled, capacity }, ROUNDS)).toFixed(1))
      console.log([rows, filled, ...times].join('\t'))
    }
}

/**
 * Open every variant of a bundle.
 * @param {string} folder
 * @returns {Promise<Opened[]>}
 */
async function open(folder) {
  const manifest = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8'))
  const opened = []
  for (const [variant, { graphs }] of Object.entries(manifest.variants ?? { fp32: manifest })) {
    const graph = graphs.lm_inference
    const data = { path: `${graph.file}.data`, data: new Uint8Array(readFileSync(join(folder, `${graph.file}.data`))) }
    const model = readFileSync(join(folder, graph.file))
    const session = await ort.InferenceSession.create(model, { executionProviders: ['wasm'], externalData: [data] })
    const inPlace = manifest.cache_update === 'in_place'
    opened.push({ name: `${basename(folder)} ${variant}`, session, graph, inPlace })
  }
  return opened
}

/**
 * The median CPU time of a step in ms.
 * @param {Opened} one
 * @param {Sizes} sizes
 * @param {number} rounds
 */
async function measure({ session, graph, inPlace }, sizes, rounds) {
  const feeds = inputs(graph, sizes)
  const presents = session.outputNames.filter((name) => name.startsWith('present.'))
  const times = []
  for (let round = 0; round <= rounds; round++) {
    const before = process.cpuUsage()
    const results = await session.run(feeds, ['next_codes', ...presents])
    for (const name of presents) {
      const past = name.replace('present', 'past_key_values')
      if (inPlace) feeds[past] = results[name]
      else write(feeds[past], results[name], sizes.filled)
    }
    const { user, system } = process.cpuUsage(before)
    if (round) times.push((user + system) / 1000) // the first one allocates memory
  }
  return times.sort((a, b) => a - b)[times.length >> 1]
}

/**
 * Write new columns [R, H, S, D] into a cache [R, H, C, D] from `position` on.
 * @param {ort.Tensor} cache
 * @param {ort.Tensor} columns
 * @param {number} position
 */
function write(cache, columns, position) {
  const [rows, heads, capacity, dim] = cache.dims
  const size = columns.dims[2] * dim
  const [into, from] = /** @type {Float32Array[]} */ ([cache.data, columns.data])
  for (let head = 0; head < rows * heads; head++)
    into.set(from.subarray(head * size, (head + 1) * size), (head * capacity + position) * dim)
}

/**
 * The inputs of one step: codes, cache and texts are zeros.
 * @param {any} graph lm_inference of a manifest
 * @param {Sizes} sizes
 * @returns {Record<string, ort.Tensor>}
 */
function inputs(graph, { rows, filled, capacity }) {
  const guided = rows > 1
  const sizes = /** @type {Record<string, number>} */ ({
    rows,
    capacity,
    columns: 1,
    batch: 1,
    texts: guided ? 1 : 0,
    text: guided ? TOKENS : 1,
    prefix: 0,
  })
  const values = /** @type {Record<string, any>} */ ({
    position: BigInt(filled),
    uniform: 0.5,
    cfg_coef: 3,
    temperature: 1,
    top_k: 250n,
  })
  const feeds = /** @type {Record<string, ort.Tensor>} */ ({})
  for (const { name, dtype, shape } of graph.inputs) {
    const dims = shape.map((/** @type {string} */ size) => sizes[size] ?? size)
    const data = new /** @type {any} */ (ARRAYS)[dtype](
      dims.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1),
    )
    if (name in values) data.fill(values[name])
    feeds[name] = new ort.Tensor(dtype, data, dims)
  }
  return feeds
}

await main()
process.exit(0) // ONNX Runtime's threads would keep the process alive
