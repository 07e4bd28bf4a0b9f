/**
 * The KV cache of a generation: where lm_inference finds the keys and values of earlier columns, and where it puts new
 * ones. How much is copied depends on the runtime and on the graph:
 *
 *     NativeCache      Node      the graph writes new columns into the arrays that it reads: nothing is copied
 *     InPlaceCache     Node      the same, but onnxruntime-node returns a copy of every output
 *                      phones    the same; onnxruntime-react-native returns the arrays themselves
 *     GpuCache         WebGPU    the same in GPU buffers: nothing is copied
 *     FeedbackCache    WASM      every run copies all inputs and outputs: each call's outputs are the next one's inputs
 *     AppendCache      any       graphs with cache_update "new_columns" output the new columns only; they are copied in
 *
 * A copy costs more the larger the arrays are, so they start with BLOCK columns and grow by BLOCK, up to the capacity.
 * Where nothing is copied, they have the whole capacity at once.
 */

/**
 * @typedef {import('./session.js').Graph} Graph
 * @typedef {import('./session.js').Sizes} Sizes
 * @typedef {import('./session.js').Tensor} Tensor
 * @typedef {Record<string, Tensor>} Tensors
 */

const BLOCK = 128 // columns

/**
 * The cache that fits the graph and the runtime.
 *
 * @param {Graph} graph lm_inference
 * @param {Sizes} sizes rows and capacity
 * @returns {InPlaceCache}
 */
export function createCache(graph, sizes) {
  const isNode = typeof process !== 'undefined' && Boolean(process.versions?.node)
  const isPhone = 'react-native' in (graph.ort.env?.versions ?? {})
  if (graph.manifest.tree.cache_update === 'new_columns') return new AppendCache(graph, sizes)
  if (graph.backend === 'webgpu') return new GpuCache(graph, sizes)
  if (graph.native) return new NativeCache(graph, sizes)
  return graph.backend === 'cpu' && (isNode || isPhone)
    ? new InPlaceCache(graph, sizes)
    : new FeedbackCache(graph, sizes)
}

/** The base of all caches. It is complete for Node and phones, whose bindings write outputs into the arrays that they are given. */
class InPlaceCache {
  /**
   * @param {Graph} graph
   * @param {Sizes} sizes
   */
  constructor(graph, sizes) {
    this.graph = graph
    this.sizes = sizes
    this.names = Object.keys(graph.inputs).filter((name) => name.startsWith('past_key_values.'))
    /** @type {Tensors} */
    this.past = this.allocate(Math.min(sizes.capacity, BLOCK))
  }

  /**
   * @param {number} capacity columns
   * @returns {Tensors}
   */
  allocate(capacity) {
    return Object.fromEntries(this.names.map((name) => [name, this.graph.zeros(name, { ...this.sizes, capacity })]))
  }

  /**
   * The past_key_values inputs of the next call, grown to hold its columns.
   *
   * @param {number} filled columns in the cache before the call
   * @param {number} filledAfter columns in the cache after the call
   * @returns {Tensors}
   */
  inputs(filled, filledAfter) {
    const { past, names, sizes } = this
    if (filledAfter <= past[names[0]].dims[2]) return past
    const larger = this.allocate(Math.min(sizes.capacity, Math.ceil(filledAfter / BLOCK) * BLOCK))
    for (const name of names) copyColumns(past[name], larger[name], 0, filled)
    this.past = larger
    return larger
  }

  /**
   * Where the call writes its `present` outputs; null: ONNX Runtime allocates them.
   *
   * @returns {Record<string, Tensor | null>}
   */
  outputs() {
    return Object.fromEntries(this.names.map((name) => [presentName(name), this.past[name]]))
  }

  /**
   * Take over the outputs of a call.
   *
   * @param {Tensors} results
   * @param {number} filled columns in the cache before the call
   * @param {number} filledAfter
   */
  update(results, filled, filledAfter) {}

  /** Free what the garbage collector does not. */
  release() {}
}

class NativeCache extends InPlaceCache {
  /** @returns {Tensors} */
  allocate() {
    return super.allocate(this.sizes.capacity)
  }
}

class GpuCache extends InPlaceCache {
  /** The whole capacity at once: GPU buffers are not copied, so growing would save nothing. @returns {Tensors} */
  allocate() {
    const { ort } = this.graph
    const device = /** @type {any} */ (ort.env.webgpu.device)
    const usage = 0x80 | 0x8 | 0x4 // GPUBufferUsage: STORAGE | COPY_DST | COPY_SRC
    return Object.fromEntries(
      this.names.map((name) => {
        const { dtype, dims } = this.graph.resolve(name, this.sizes)
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

class FeedbackCache extends InPlaceCache {
  /** @returns {Record<string, Tensor | null>} */
  outputs() {
    return Object.fromEntries(this.names.map((name) => [presentName(name), null]))
  }

  /**
   * @param {Tensors} results
   * @param {number} filled
   * @param {number} filledAfter
   */
  update(results, filled, filledAfter) {
    for (const name of this.names) this.past[name] = results[presentName(name)]
  }
}

class AppendCache extends FeedbackCache {
  /**
   * @param {Tensors} results
   * @param {number} filled
   * @param {number} filledAfter
   */
  update(results, filled, filledAfter) {
    for (const name of this.names) {
      copyColumns(results[presentName(name)], this.past[name], filled, filledAfter - filled)
    }
  }
}

/** The output that updates a cache input. @param {string} name */
const presentName = (name) => name.replace('past_key_values', 'present')

/**
 * Copy the first columns of a cache tensor [R, H, C, D] into another one, from its column `at` on.
 *
 * @param {Tensor} from
 * @param {Tensor} to
 * @param {number} at
 * @param {number} columns
 */
function copyColumns(from, to, at, columns) {
  const [rows, heads, capacity, dim] = from.dims
  const [source, target] = /** @type {Float32Array[]} */ ([from.data, to.data])
  for (let row = 0; row < rows * heads; row++) {
    const first = row * capacity * dim
    target.set(source.subarray(first, first + columns * dim), (row * to.dims[2] + at) * dim)
  }
}
