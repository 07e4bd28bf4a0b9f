/** What a prompt's takes begin with: the rows of one KV cache, each copied to several rows of another one. */

/**
 * @typedef {import('./session.js').Graph} Graph
 * @typedef {import('./session.js').Tensor} Tensor
 * @typedef {ReturnType<typeof import('./kv_cache.js').createCache>} Cache
 */

/**
 * Copy the first columns of a cache of R rows into one of R x takes rows, which is empty.
 *
 * @param {Graph} graph lm_inference
 * @param {Cache} from
 * @param {Cache} to
 * @param {number} filled columns, the prefix among them
 * @param {number} takes
 */
export function copyRows(graph, from, to, filled, takes) {
  const [sources, targets] = [from.inputs(filled, filled), to.inputs(0, filled)]
  const copy = graph.backend === 'webgpu' ? gpuCopier(graph) : copier()
  for (const [name, source] of Object.entries(sources)) {
    const target = targets[name]
    const [rows, heads, capacity, dim] = target.dims
    for (let at = 0; at < rows * heads; at++) {
      const [row, head] = [Math.floor(at / heads), at % heads]
      const first = (Math.floor(row / takes) * heads + head) * source.dims[2] * dim
      copy.add(source, first, target, at * capacity * dim, filled * dim)
    }
  }
  copy.finish()
}

/** Copies numbers of tensors in memory. */
function copier() {
  return {
    /** @param {Tensor} source @param {number} from @param {Tensor} target @param {number} to @param {number} count */
    add(source, from, target, to, count) {
      const [read, written] = /** @type {Float32Array[]} */ ([source.data, target.data])
      written.set(read.subarray(from, from + count), to)
    },
    finish() {},
  }
}

/** Copies numbers of tensors in GPU buffers. @param {Graph} graph */
function gpuCopier({ ort }) {
  const device = /** @type {any} */ (ort.env).webgpu.device
  const encoder = device.createCommandEncoder()
  return {
    /** @param {Tensor} source @param {number} from @param {Tensor} target @param {number} to @param {number} count */
    add(source, from, target, to, count) {
      const bytes = source.type === 'float16' ? 2 : 4
      const buffers = /** @type {any[]} */ ([source, target]).map((tensor) => tensor.gpuBuffer)
      encoder.copyBufferToBuffer(buffers[0], from * bytes, buffers[1], to * bytes, count * bytes)
    },
    finish() {
      device.queue.submit([encoder.finish()])
    },
  }
}
