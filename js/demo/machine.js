/** What this browser can run, how fast, and messages where it cannot. */

import { pace } from './takes.js'

/**
 * @typedef {import('./bundles.js').Tree} Tree
 * @typedef {object} Machine
 * @property {boolean} secure https or localhost
 * @property {number} threads that WASM may use
 * @property {{ name: string, half: boolean } | null} gpu half: whether it computes float16
 * @property {number | undefined} memory bytes, a lower bound; undefined in browsers that do not report it
 */

/** @returns {Promise<Machine>} */
export async function inspect() {
  const { gpu, hardwareConcurrency = 1, deviceMemory } = /** @type {any} */ (navigator)
  const adapter = await gpu?.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null)
  const name = [adapter?.info?.vendor, adapter?.info?.architecture].filter(Boolean).join(' ')
  return {
    secure: isSecureContext,
    threads: crossOriginIsolated ? Math.min(4, hardwareConcurrency) : 1, // more would only compete for memory bandwidth
    gpu: adapter ? { name, half: adapter.features.has('shader-f16') } : null,
    memory: deviceMemory && deviceMemory * 2 ** 30,
  }
}

/**
 * @param {string} wanted "auto", "webgpu" or "wasm"
 * @param {Machine} machine
 * @returns {{ backend: 'webgpu' | 'wasm', note: string }}
 */
export function backendFor(wanted, { gpu, secure, threads }) {
  if (gpu && wanted !== 'wasm') return { backend: 'webgpu', note: '' }
  if (!secure) {
    const missing = 'no WebGPU, one thread, no microphone, nothing kept for offline use'
    return {
      backend: 'wasm',
      note: `This page was loaded over plain http: ${missing}. Over https or from localhost it has all of them.`,
    }
  }
  const one = threads === 1 ? ' It uses one thread: the server does not send the headers that more threads need.' : ''
  if (wanted === 'wasm') return { backend: 'wasm', note: one.trim() }
  return {
    backend: 'wasm',
    note: `No WebGPU in this browser: the model runs on the processor (WebAssembly), slower.${one}`,
  }
}

/**
 * The variant to load: the wanted one, or the first that the bundle prefers for the backend and that the GPU can run.
 *
 * @param {Tree} tree
 * @param {'webgpu' | 'wasm'} backend
 * @param {Machine} machine
 * @param {string} [wanted]
 */
export function variantFor(tree, backend, { gpu }, wanted) {
  const variants = tree.variants ?? {}
  if (wanted && wanted in variants) return wanted
  const canRun = (/** @type {string} */ name) =>
    backend === 'wasm' || (variants[name]?.cache !== 'int8' && (gpu?.half || !isFloat16(variants[name])))
  const preferred = [...(tree.backends?.[backend] ?? []), tree.variant ?? '', ...Object.keys(variants)]
  return preferred.find((name) => name in variants && canRun(name)) ?? tree.variant
}

/** @param {import('./bundles.js').Variant} [variant] */
const isFloat16 = (variant) => variant?.graphs.lm_inference?.inputs.some(({ dtype }) => dtype === 'float16')

/**
 * A warning for a model that may not fit into memory; "" where it will.
 *
 * @param {number} bytes size of its files
 * @param {'webgpu' | 'wasm'} backend
 * @param {Machine} machine
 */
export function memoryNote(bytes, backend, { memory }) {
  const needed = 2.5 * bytes + 3e8 // files, their copy in ONNX Runtime, packed weights; ONNX Runtime itself
  const room = Math.min(memory ? 0.8 * memory : Infinity, backend === 'wasm' ? 2 ** 32 : Infinity)
  if (needed < room) return ''
  return `This model may not fit: it needs about ${gigabytes(needed)} of memory, about ${gigabytes(room)} are available. If it fails, choose smaller weights.`
}

/**
 * What the user may expect before anything is generated; "" where it is not known.
 *
 * @param {import('./worker.js').Paces | null} paces
 */
export function paceNote(paces) {
  if (!paces) return ''
  const { plain, text } = paces
  const expected = `About ${pace(plain)} real time on this machine${text ? `, ${pace(text)} with a description` : ''}.`
  return Math.min(plain, text ?? plain) < 1 ? `${expected} Below 1× it pauses while it plays.` : expected
}

/** @param {number} bytes */
const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(1)} GB`

/**
 * An error's message, with what to do about it.
 *
 * @param {unknown} error
 */
export function explain(error) {
  const { name, message } = error instanceof Error ? error : new Error(String(error))
  if (
    /alloc|out of memory|memory access|too little memory|QuotaExceeded|device (is|was) lost/i.test(`${name} ${message}`)
  ) {
    return `Not enough memory for this model. Choose smaller weights under “Runs on”, or close other tabs. (${message})`
  }
  if (/failed to fetch|networkerror|load failed|importing a module|imported module/i.test(message)) {
    return 'The server does not answer, and the file is not kept for offline use.'
  }
  return message
}
