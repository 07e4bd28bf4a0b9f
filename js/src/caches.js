/**
 * Where keys and values of the columns stay between the calls of lm_inference.
 *
 * in place      the graph writes new columns into the arrays that it reads: nothing is copied (Node)
 * in the GPU    the same, in GPU buffers (WebGPU)
 * fed back      what comes out goes in again (WASM and other runtimes, which copy every input and output)
 * new columns   the graph gives new columns alone, which are copied into the arrays ("new_columns" bundles)
 *
 * What is copied at every call grows with what is filled, a block at a time.
 */

/**
 * @typedef {import('./manifest.js').Graph} Graph
 * @typedef {import('./manifest.js').Sizes} Sizes
 * @typedef {import('./manifest.js').Tensor} Tensor
 * @typedef {Record<string, Tensor>} Tensors
 */

const BLOCK = 128 // columns

/**
 * @param {Graph} graph lm_inference
 * @param {Sizes} sizes rows and capacity
 * @returns {InPlace}
 */
export function cachesFor(graph, sizes) {
  const node = typeof process !== 'undefined' && Boolean(process.versions?.node)
  if (graph.manifest.tree.cache_update === 'new_columns') return new NewColumns(graph, sizes)
  if (graph.backend === 'webgpu') return new InGpu(graph, sizes)
  return graph.backend === 'cpu' && node ? new InPlace(graph, sizes) : new FedBack(graph, sizes)
}

/** ONNX Runtime's Node.js binding writes into the arrays that it is given. */
class InPlace {
  /**
   * @param {Graph} graph
   * @param {Sizes} sizes
   */
  constructor(graph, sizes) {
    this.graph = graph
    this.sizes = sizes
    this.names = Object.keys(graph.inputs).filter((name) => name.startsWith('past_key_values.'))
    /** @type {Tensors} */
    this.past = this.allocate(sizes)
  }

  /**
   * @param {Sizes} sizes
   * @returns {Tensors}
   */
  allocate(sizes) {
    return Object.fromEntries(this.names.map((name) => [name, this.graph.zeros(name, sizes)]))
  }

  /**
   * What is fed for past_key_values.
   *
   * @param {number} filled places that are taken
   * @param {number} after places that the call will have taken
   * @returns {Tensors}
   */
  inputs(filled, after) {
    return this.past
  }

  /**
   * Where present is written; null: ONNX Runtime allocates it.
   *
   * @returns {Record<string, Tensor | null>}
   */
  outputs() {
    return Object.fromEntries(this.names.map((name) => [present(name), this.past[name]]))
  }

  /**
   * Take over what a call gave.
   *
   * @param {Tensors} results
   * @param {number} filled places that were taken before
   * @param {number} after
   */
  update(results, filled, after) {}

  /** Free what the garbage collector does not. */
  release() {}
}

class InGpu extends InPlace {
  /**
   * @param {Sizes} sizes
   * @returns {Tensors}
   */
  allocate(sizes) {
    const { ort } = this.graph
    const device = /** @type {any} */ (ort.env.webgpu.device)
    const usage = 0x80 | 0x8 | 0x4 // GPUBufferUsage: STORAGE | COPY_DST | COPY_SRC
    return Object.fromEntries(
      this.names.map((name) => {
        const { dtype, dims } = this.graph.port(name, sizes)
        const size = dims.reduce((product, n) => product * n, dtype === 'float16' ? 2 : 4)
        const buffer = device.createBuffer({ size: Math.ceil(size / 16) * 16, usage })
        return [name, ort.Tensor.fromGpuBuffer(buffer, { dataType: /** @type {any} */ (dtype), dims })]
      }),
    )
  }

  release() {
    for (const tensor of Object.values(this.past)) /** @type {any} */ (tensor.gpuBuffer).destroy()
  }
}

class FedBack extends InPlace {
  /**
   * @param {Sizes} sizes
   * @returns {Tensors}
   */
  allocate(sizes) {
    return super.allocate({ ...sizes, capacity: Math.min(sizes.capacity, BLOCK) })
  }

  /**
   * @param {number} filled
   * @param {number} after
   * @returns {Tensors}
   */
  inputs(filled, after) {
    const capacity = Math.min(this.sizes.capacity, Math.ceil(after / BLOCK) * BLOCK)
    const { past, names, sizes } = this
    if (capacity <= past[names[0]].dims[2]) return past
    const larger = super.allocate({ ...sizes, capacity })
    for (const name of names) copyColumns(past[name], larger[name], 0, filled)
    this.past = larger
    return larger
  }

  /** @returns {Record<string, Tensor | null>} */
  outputs() {
    return Object.fromEntries(this.names.map((name) => [present(name), null]))
  }

  /**
   * @param {Tensors} results
   * @param {number} filled
   * @param {number} after
   */
  update(results, filled, after) {
    for (const name of this.names) this.past[name] = results[present(name)]
  }
}

class NewColumns extends FedBack {
  /**
   * @param {Tensors} results
   * @param {number} filled
   * @param {number} after
   */
  update(results, filled, after) {
    for (const name of this.names) copyColumns(results[present(name)], this.past[name], filled, after - filled)
  }
}

/** @param {string} name */
const present = (name) => name.replace('past_key_values', 'present')

/**
 * Copy the first columns of a tensor [R, H, any, D] into another, to the place `at`.
 *
 * @param {Tensor} from
 * @param {Tensor} to
 * @param {number} at
 * @param {number} columns
 */
function copyColumns(from, to, at, columns) {
  const [rows, heads, held, width] = from.dims
  const [source, target] = /** @type {Float32Array[]} */ ([from.data, to.data])
  for (let row = 0; row < rows * heads; row++) {
    const first = row * held * width
    target.set(source.subarray(first, first + columns * width), (row * to.dims[2] + at) * width)
  }
}
