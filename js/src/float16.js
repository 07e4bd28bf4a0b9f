/** Half precision. Where JavaScript has no Float16Array, ONNX Runtime takes float16 as bits in a Uint16Array. */

const float = new Float32Array(1)
const bits = new Uint32Array(float.buffer)

/**
 * Round to the nearest float16, ties to even; from 65520 on, infinity.
 *
 * @param {Float32Array} values
 * @returns {Uint16Array} their bits
 */
export function toFloat16(values) {
  return Uint16Array.from(values, (value) => {
    float[0] = value
    const sign = (bits[0] >>> 16) & 0x8000
    const magnitude = bits[0] & 0x7fffffff
    if (magnitude >= 0x47800000) return sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00) // 65536 and above, infinity, NaN
    if (magnitude < 0x38800000) {
      float[0] = Math.abs(value) + 0.5 // subnormal halves are multiples of 2^-24, as are floats in 0.5 .. 1
      return sign | (bits[0] - 0x3f000000)
    }
    return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
  })
}

/**
 * @param {Uint16Array} halves their bits
 * @returns {Float32Array}
 */
export function fromFloat16(halves) {
  return Float32Array.from(halves, (half) => {
    const [sign, exponent, fraction] = [half & 0x8000 ? -1 : 1, (half >>> 10) & 31, half & 1023]
    if (exponent === 31) return fraction ? NaN : sign * Infinity
    return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction)
  })
}
