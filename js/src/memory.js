/** What a generation needs of memory beside the weights, and whether this device has it: asked before it is allocated. */

/**
 * @typedef {import('./session.js').Graph} Graph
 * @typedef {import('./windows.js').Window} Window
 * @typedef {import('./generation.js').Sampling} Sampling
 *
 * @typedef {object} Request what is going to be generated
 * @property {number} batch
 * @property {number} passes rows of a take: conditioned, and unconditional ones
 * @property {number} capacity columns of a window
 * @property {number} text tokens of the longest text
 * @property {number} frames of the whole
 * @property {number} codebooks
 */

const BYTES = /** @type {Record<string, number>} */ ({ float32: 4, float16: 2, int64: 8, int8: 1 })
const WASM = 2 ** 32 // bytes that WebAssembly can address
const BROWSER = 2 ** 33 // browsers do not say what they have; one array holds no more in any of them
const CODES = 16 // bytes of a code: in the window's columns, in the whole, and in copies of both
const AUDIO_COPIES = 2 // the codec's pieces, and the whole

/**
 * Throw a RangeError if this device cannot hold the caches and codes of a generation.
 *
 * @param {string} name the option that the message names
 * @param {Graph} graph lm_inference
 * @param {Request} request
 */
export function requireCaches(name, graph, request) {
  const { batch, passes, capacity, text, frames, codebooks } = request
  const sizes = { rows: batch * passes, texts: batch, text, capacity, batch, prefix: 0 }
  const caches = Object.keys(graph.inputs).filter((input) => /^(past|cross)_key_values\./.test(input))
  const bytes = caches.map((input) => tensorBytes(graph, input, sizes))
  // a GPU and the C API write in place; the other sessions return a copy of what they wrote
  const copies = graph.backend === 'webgpu' || graph.native ? 1 : 2
  const total = copies * bytes.reduce((sum, n) => sum + n, 0)
  const words = `KV caches of ${batch * passes} rows and ${capacity} columns`
  if (graph.backend === 'wasm') requireBytes(name, total, words, WASM)
  if (graph.backend === 'webgpu')
    requireBytes(name, Math.max(0, ...bytes), `a buffer of the ${words}`, bufferLimit(graph))
  requireBytes(name, total + batch * codebooks * frames * CODES, `codes, and ${words}`)
}

/**
 * Throw a RangeError if this device cannot hold audio.
 *
 * @param {string} name the option that the message names
 * @param {number} samples of all channels
 * @param {string} words what it is
 */
export function requireAudio(name, samples, words) {
  requireBytes(name, samples * 4 * AUDIO_COPIES, words)
}

/** How many groups of rows a generation has, at most. @param {Sampling} sampling @param {boolean} isConditioned */
export function passesOf({ cfgCoef, cfgCoefBeta }, isConditioned) {
  if (!isConditioned) return 1
  if (cfgCoefBeta !== null) return 3
  return cfgCoef === 1 ? 1 : 2
}

/**
 * Bytes of a tensor; a size that is not known counts as 1.
 *
 * @param {Graph} graph
 * @param {string} name
 * @param {Record<string, number>} sizes
 */
function tensorBytes(graph, name, sizes) {
  const { dtype, dims } = graph.resolve(name, sizes)
  return dims.reduce((product, size) => product * (size ?? 1), BYTES[dtype] ?? 4)
}

/** @param {Graph} graph */
function bufferLimit({ ort }) {
  const { device } = /** @type {any} */ (ort.env?.webgpu ?? {})
  return device?.limits?.maxBufferSize ?? BROWSER
}

/** Bytes that this process can still have. */
function availableMemory() {
  const { process } = globalThis
  return process?.availableMemory?.() || BROWSER
}

/**
 * @param {string} name
 * @param {number} bytes
 * @param {string} words what needs them
 * @param {number} [available]
 */
function requireBytes(name, bytes, words, available = availableMemory()) {
  if (bytes <= available) return
  throw new RangeError(
    `${name}: needs ${gigabytes(bytes)} of memory for ${words}, ${gigabytes(available)} can be had; ` +
      'expected less: fewer takes, or a shorter duration or window',
  )
}

/** @param {number} bytes */
const gigabytes = (bytes) => `${(bytes / 1e9).toPrecision(3)} GB`
