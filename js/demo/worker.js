/**
 * The model in a worker, so that it does not block the page.
 *
 *     page    load          worker  loading ... loaded
 *             generate              chunk, progress ... done
 *             cancel                failed, with an AbortError
 *
 * @typedef {{ type: 'load' } & Settings} Load
 * @typedef {object} Settings
 * @property {string | Map<string, File>} source a bundle's URL, or its files by name
 * @property {'wasm' | 'webgpu'} backend
 * @property {number} threads of WASM
 * @property {string} [variant]
 * @property {boolean} secure whether the page has caches and hashes: over https or from localhost
 *
 * @typedef {object} Generate
 * @property {'generate'} type
 * @property {Float32Array[]} prompt
 * @property {number} sampleRate
 * @property {import('../src/musicgen.js').GenerateOptions & { chunkSeconds: number }} options without functions
 *
 * @typedef {object} Loaded
 * @property {number} sampleRate
 * @property {number} channels
 * @property {number} frameRate
 * @property {string | undefined} variant
 * @property {boolean} kept whether the browser has kept its files for offline use
 * @property {Paces | null} paces what to expect of this machine; null where that could not be measured
 *
 * @typedef {object} Paces seconds of audio that are generated in a second
 * @property {number} plain without a description
 * @property {number | null} text with one; null where the model takes none
 *
 * @typedef {Load | Generate | { type: 'cancel' }} ToWorker
 * @typedef {{ type: 'loading', done: number, total: number, file: string | null }} Loading
 * @typedef {{ type: 'progress', done: number, total: number, ms: number }} Progress done and total in columns, ms
 *   of a step
 * @typedef {{ type: 'chunk', audio: Float32Array[] }} Chunk
 * @typedef {{ type: 'done', codes: Int32Array[] }} Done
 * @typedef {{ type: 'failed', name: string, message: string }} Failed
 * @typedef {Loading | ({ type: 'loaded' } & Loaded) | Progress | Chunk | Done | Failed} FromWorker
 */

import { MusicGen } from '../src/index.js'

const VENDOR = new URL('../vendor/', import.meta.url)
const CACHE = 'clean-lm-bundles'
const PROBED = 25 // frames that are decoded to measure the codec: half a second

/** @type {MusicGen | undefined} */
let model
let cancelling = new AbortController()

/** @type {(message: FromWorker, transfer?: Transferable[]) => void} */
const send = (message, transfer = []) => postMessage(message, { transfer })

onmessage = async ({ data }) => {
  const message = /** @type {ToWorker} */ (data)
  try {
    if (message.type === 'load') await load(message)
    else if (message.type === 'generate') await generate(message)
    else cancelling.abort()
  } catch (error) {
    const { name = 'Error', message = String(error) } = /** @type {Error} */ (error) ?? {}
    send({ type: 'failed', name, message })
  }
}

/** @param {Load} settings */
async function load({ source, backend, threads, variant, secure }) {
  const ort = await runtime(backend, threads)
  const cache = secure && typeof source === 'string' ? await openCache() : null
  model = await MusicGen.load(source, {
    ort,
    executionProviders: [backend],
    variant,
    hashes: secure,
    ...(cache && { cache: cache.cache }),
    ...(typeof source === 'string' && { confine: new URL('..', source).href }), // bundles side by side may share files
    tokenizer: async (json) => new (await import(new URL('tokenizers.mjs', VENDOR).href)).Tokenizer(json, {}),
    onProgress: (done, total, { file }) => send({ type: 'loading', done, total, file }),
  })
  const { sampleRate, channels, frameRate, manifest } = model
  const kept = typeof source === 'string' && Boolean(cache?.complete)
  const paces = await probe(model).catch(() => null) // a generation may need less memory, and says what it lacks
  send({ type: 'loaded', sampleRate, channels, frameRate, variant: manifest.variant, kept, paces })
}

/**
 * Measure a step in the middle of a window, and the codec.
 *
 * @param {MusicGen} model
 * @returns {Promise<Paces>}
 */
async function probe({ lm, codec, text, frameRate, manifest }) {
  const columns = Math.floor((manifest.tree.model.max_duration * frameRate) / 2)
  const uniform = new Float32Array(lm.codebooks).fill(0.5)
  const decoding = (await quickest(() => codec.decode(lm.delays.map(() => new Int32Array(PROBED))))) / PROBED
  const pace = async (/** @type {Float32Array | null} */ states) => {
    const decoder = /** @type {any} */ (await lm.decoder({ capacity: columns + 1, texts: [states] }))
    try {
      const step = await quickest(() => {
        decoder.filled = columns
        return decoder.call([lm.delays.map(() => new Int32Array(1))], uniform)
      })
      return 1000 / frameRate / (step + decoding)
    } finally {
      decoder.release()
    }
  }
  return { plain: await pace(null), text: text ? await pace(new Float32Array(8 * lm.textDim)) : null } // of 8 tokens
}

/** Milliseconds of the quickest of two runs, after one that allocates memory. @param {() => Promise<unknown>} run */
async function quickest(run) {
  let least = Infinity
  for (let i = 0; i < 3; i++) {
    const start = performance.now()
    await run()
    if (i) least = Math.min(least, performance.now() - start)
  }
  return least
}

/**
 * Load ONNX Runtime from this page's server.
 *
 * @param {'wasm' | 'webgpu'} backend
 * @param {number} threads
 * @returns {Promise<import('../src/manifest.js').Ort>}
 */
async function runtime(backend, threads) {
  const folder = new URL('ort/', VENDOR).href
  const ort = await import(`${folder}ort.${backend}.min.mjs`)
  ort.env.wasm.wasmPaths = folder
  ort.env.wasm.numThreads = threads
  return ort
}

/**
 * A cache for downloads, with one version of each file. Where the disk is full, the model loads all the same, and the
 * next visit downloads it again.
 */
async function openCache() {
  const cache = await caches.open(CACHE)
  const kept = { complete: true, cache: /** @type {Cache} */ ({}) }
  kept.cache.match = (key) => cache.match(key)
  kept.cache.put = async (key, response) => {
    try {
      await cache.delete(key, { ignoreSearch: true })
      await cache.put(key, response)
    } catch {
      kept.complete = false
    }
  }
  return kept
}

/** @param {Generate} request */
async function generate({ prompt, sampleRate, options }) {
  if (!model) throw new Error('no model is loaded')
  cancelling = new AbortController()
  /** @type {Int32Array[][]} */
  const codes = []
  const stream = model.streamContinuation(prompt, sampleRate, {
    ...options,
    signal: cancelling.signal,
    onProgress: progress(),
    onCodes: (part) => codes.push(part),
  })
  for await (const audio of stream)
    send(
      { type: 'chunk', audio },
      audio.map(({ buffer }) => buffer),
    )
  send({ type: 'done', codes: codes[0].map((_, k) => Int32Array.from(codes.flatMap((part) => [...part[k]]))) })
}

/** Reports progress ten times a second, with the median time of the last steps. */
function progress() {
  let [last, reported] = [performance.now(), 0]
  /** @type {number[]} */
  const times = []
  return (/** @type {number} */ done, /** @type {number} */ total) => {
    const now = performance.now()
    if (done > 1) times.push(now - last) // the first step reads the prompt
    last = now
    if (now - reported < 100 && done < total) return
    reported = now
    const recent = times.slice(-31).sort((a, b) => a - b)
    send({ type: 'progress', done, total, ms: recent[recent.length >> 1] ?? 0 })
  }
}
