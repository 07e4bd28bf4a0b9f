/**
 * Concatenate typed arrays of one kind.
 *
 * @template {Float32Array | Int32Array} T
 * @param {T[]} arrays at least one
 * @returns {T}
 */
export function join(arrays) {
  const size = arrays.reduce((sum, array) => sum + array.length, 0)
  const all = /** @type {T} */ (arrays[0] instanceof Float32Array ? new Float32Array(size) : new Int32Array(size))
  arrays.reduce((at, array) => (all.set(array, at), at + array.length), 0)
  return all
}
