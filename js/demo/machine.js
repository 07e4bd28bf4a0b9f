/** What this browser can run, and what to say where it cannot. */

/**
 * @typedef {import('./bundles.js').Tree} Tree
 * @typedef {object} Machine
 * @property {boolean} secure https or localhost
 * @property {number} threads that WASM may use
 * @property {{ name: string, half: boolean } | null} gpu half: it computes float16
 * @property {number | undefined} memory in bytes, at least; not every browser tells
 */

/** @returns {Promise<Machine>} */
export async function inspect() {
  const { gpu, hardwareConcurrency = 1, deviceMemory } = /** @type {any} */ (navigator)
  const adapter = await gpu?.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null)
  const name = [adapter?.info?.vendor, adapter?.info?.architecture].filter(Boolean).join(' ')
  return {
    secure: isSecureContext,
    threads: crossOriginIsolated ? Math.min(4, hardwareConcurrency) : 1, // more contend for memory, not for work
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
    const lost = 'no WebGPU, one thread, no microphone, nothing kept for offline use'
    return {
      backend: 'wasm',
      note: `This page came by plain http: ${lost}. By https or localhost it has all of these.`,
    }
  }
  const one = threads === 1 ? ' On one thread: its server does not send the headers that more would need.' : ''
  if (wanted === 'wasm') return { backend: 'wasm', note: one.trim() }
  return {
    backend: 'wasm',
    note: `No WebGPU in this browser: the model runs on the processor (WebAssembly), slower.${one}`,
  }
}

/**
 * The variant that is opened: the one asked for, or the first that the bundle prefers for the backend and the GPU
 * computes.
 *
 * @param {Tree} tree
 * @param {'webgpu' | 'wasm'} backend
 * @param {Machine} machine
 * @param {string} [wanted]
 */
export function variantFor(tree, backend, { gpu }, wanted) {
  const variants = tree.variants ?? {}
  if (wanted && wanted in variants) return wanted
  const computed = (/** @type {string} */ name) =>
    backend === 'wasm' || (variants[name]?.cache !== 'int8' && (gpu?.half || !halves(variants[name])))
  const preferred = [...(tree.backends?.[backend] ?? []), tree.variant ?? '', ...Object.keys(variants)]
  return preferred.find((name) => name in variants && computed(name)) ?? tree.variant
}

/** @param {import('./bundles.js').Variant} [variant] */
const halves = (variant) => variant?.graphs.lm_inference?.inputs.some(({ dtype }) => dtype === 'float16')

/**
 * What is said before a model is loaded that will hardly fit; "" where it will.
 *
 * @param {number} bytes of its files
 * @param {'webgpu' | 'wasm'} backend
 * @param {Machine} machine
 */
export function memoryNote(bytes, backend, { memory }) {
  const needed = 2.5 * bytes + 3e8 // a file, its copy in ONNX Runtime, what is packed of it; ONNX Runtime itself
  const room = Math.min(memory ? 0.8 * memory : Infinity, backend === 'wasm' ? 2 ** 32 : Infinity)
  if (needed < room) return ''
  return `This model may not fit: it needs about ${gigabytes(needed)}, and there are about ${gigabytes(room)}. Choose smaller weights if it fails.`
}

/** @param {number} bytes */
const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(1)} GB`

/**
 * An error in words that say what to do.
 *
 * @param {unknown} error
 */
export function explain(error) {
  const { name, message } = error instanceof Error ? error : new Error(String(error))
  if (
    /alloc|out of memory|memory access|too little memory|QuotaExceeded|device (is|was) lost/i.test(`${name} ${message}`)
  ) {
    return `Too little memory for this model. Choose smaller weights under “Runs on”, or close other tabs. (${message})`
  }
  if (/failed to fetch|networkerror|load failed|importing a module|imported module/i.test(message)) {
    return 'The server does not answer, and what was asked for is not kept for offline use yet.'
  }
  return message
}
