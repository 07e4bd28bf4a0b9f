/**
 * Where keys and values of the columns stay between the calls of lm_inference.
 *
 * in place      the graph writes new columns into the arrays that it reads: nothing is copied (Node)
 * in the GPU    the same, in GPU buffers (WebGPU)
 * fed back      what comes out goes in again (WASM and other runtimes, which copy every input and output)
 * new columns   the graph gives new columns alone, which are copied into the arrays ("new_columns" bundles)
 */

/**
 * @typedef {import('./manifest.js').Graph} Graph
 * @typedef {import('./manifest.js').Sizes} Sizes
 * @typedef {import('./manifest.js').Tensor} Tensor
 * @typedef {Record<string, Tensor>} Tensors
 *
 * @typedef {object} Caches
 * @property {() => Tensors} inputs what is fed for past_key_values
 * @property {() => Record<string, Tensor | null>} outputs where present is written; null: ONNX Runtime allocates it
 * @property {(results: Tensors, filled: number, added: number) => void} update after a call
 * @property {() => void} release free what the garbage collector does not
 */

/**
 * @param {Graph} graph lm_inference
 * @param {Sizes} sizes rows and capacity
 * @returns {Caches}
 */
export function cachesFor(graph, sizes) {
  const names = Object.keys(graph.inputs).filter((name) => name.startsWith('past_key_values.'))
  if (graph.manifest.tree.cache_update === 'new_columns') return new NewColumns(graph, names, sizes)
  if (graph.backend === 'webgpu') return new InGpu(graph, names, sizes)
  return graph.backend === 'cpu' && isNode() ? new InPlace(graph, names, sizes) : new FedBack(graph, names, sizes)
}

/** ONNX Runtime's Node.js binding writes into the arrays that it is given. */
const isNode = () => typeof process !== 'undefined' && Boolean(process.versions?.node)

/** @param {string} name */
const present = (name) => name.replace('past_key_values', 'present')

/** @implements {Caches} */
class InPlace {
  /**
   * @param {Graph} graph
   * @param {string[]} names
   * @param {Sizes} sizes
   */
  constructor(graph, names, sizes) {
    /** @type {Tensors} */
    this.past = Object.fromEntries(names.map((name) => [name, graph.zeros(name, sizes)]))
    /** @type {Tensors} */
    this.present = Object.fromEntries(names.map((name) => [present(name), this.past[name]]))
  }

  inputs() {
    return this.past
  }

  /** @returns {Record<string, Tensor | null>} */
  outputs() {
    return this.present
  }

  /**
   * @param {Tensors} results
   * @param {number} filled
   * @param {number} added
   */
  update(results, filled, added) {}

  release() {}
}

/** @implements {Caches} */
class InGpu extends InPlace {
  /**
   * @param {Graph} graph
   * @param {string[]} names
   * @param {Sizes} sizes
   */
  constructor(graph, names, sizes) {
    super(graph, [], sizes)
    const device = /** @type {any} */ (graph.ort.env.webgpu.device)
    const usage = 0x80 | 0x8 | 0x4 // GPUBufferUsage: STORAGE | COPY_DST | COPY_SRC
    this.buffers = names.map((name) => {
      const { dtype, dims } = graph.port(name, sizes)
      const size = dims.reduce((product, n) => product * n, dtype === 'float16' ? 2 : 4)
      const buffer = device.createBuffer({ size: Math.ceil(size / 16) * 16, usage })
      this.past[name] = graph.ort.Tensor.fromGpuBuffer(buffer, { dataType: /** @type {any} */ (dtype), dims })
      this.present[present(name)] = this.past[name]
      return buffer
    })
  }

  release() {
    this.buffers.forEach((buffer) => buffer.destroy())
  }
}

/** @implements {Caches} */
class FedBack extends InPlace {
  /** @returns {Record<string, Tensor | null>} */
  outputs() {
    return Object.fromEntries(Object.keys(this.present).map((name) => [name, null]))
  }

  /**
   * @param {Tensors} results
   * @param {number} filled
   * @param {number} added
   */
  update(results, filled, added) {
    for (const name of Object.keys(this.past)) this.past[name] = results[present(name)]
  }
}

/** @implements {Caches} */
class NewColumns extends FedBack {
  /**
   * @param {Tensors} results
   * @param {number} filled
   * @param {number} added
   */
  update(results, filled, added) {
    for (const [name, { data, dims }] of Object.entries(this.past)) {
      const [capacity, width] = [dims[2], dims[3]]
      const [into, from] = /** @type {Float32Array[]} */ ([data, results[present(name)].data])
      for (let head = 0; head < dims[0] * dims[1]; head++) {
        const columns = from.subarray(head * added * width, (head + 1) * added * width)
        into.set(columns, (head * capacity + filled) * width)
      }
    }
  }
}
