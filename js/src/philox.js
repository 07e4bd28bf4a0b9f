/**
 * Uniform random numbers that are equal in every language: Philox4x32-10, a counter-based generator of 32-bit integers
 * (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). No number depends on an earlier one.
 */

import { seed as validateSeed, whole } from './options.js'

const MOST_DRAWS = 2 ** 28 // 1 GB
const MOST_CODEBOOKS = 1_024
const MULTIPLIERS = [0xd2511f53n, 0xcd9e8d57n]
const WEYL = [0x9e3779b9, 0xbb67ae85]

/**
 * One block of four random words: ten rounds on the counter.
 *
 * @param {number[]} counter four 32-bit words
 * @param {number[]} key two 32-bit words
 * @returns {number[]} four 32-bit words
 */
export function philox4x32(counter, key) {
  let [c0, c1, c2, c3] = counter
  let [k0, k1] = key
  for (let round = 0; round < 10; round++) {
    const product0 = MULTIPLIERS[0] * BigInt(c0)
    const product1 = MULTIPLIERS[1] * BigInt(c2)
    ;[c0, c1, c2, c3] = [
      (high(product1) ^ c1 ^ k0) >>> 0,
      low(product1),
      (high(product0) ^ c3 ^ k1) >>> 0,
      low(product0),
    ]
    ;[k0, k1] = [(k0 + WEYL[0]) >>> 0, (k1 + WEYL[1]) >>> 0]
  }
  return [c0, c1, c2, c3]
}

/** @param {bigint} word */
const high = (word) => Number(word >> 32n)
/** @param {bigint} word */
const low = (word) => Number(word & 0xffffffffn)

/**
 * The uniform numbers of one take: multiples of 2^-24 in [0, 1).
 *
 * Number k of step s is word k % 4 of the block with counter (s, k div 4, 0, 0) and key (seed's low, high 32 bits).
 *
 * @param {number | bigint} seed 0 .. 2^64 - 1
 * @param {number} steps
 * @param {number} codebooks K
 * @returns {Float32Array} [steps x K]
 */
export function uniforms(seed, steps, codebooks) {
  validateSeed('seed', seed, 0)
  whole(1, MOST_CODEBOOKS, `a whole number from 1 to ${MOST_CODEBOOKS}`)('codebooks', codebooks, 0)
  const most = Math.floor(MOST_DRAWS / codebooks)
  whole(0, most, `a whole number from 0 to ${most}`)('steps', steps, 0)
  const draws = new Float32Array(steps * codebooks)
  for (let s = 0; s < steps; s++) draws.set(stepUniforms(seed, s, codebooks), s * codebooks)
  return draws
}

/**
 * The uniform numbers of one step of a take.
 *
 * @param {number | bigint} seed
 * @param {number} step
 * @param {number} codebooks K
 * @returns {Float32Array} [K]
 */
export function stepUniforms(seed, step, codebooks) {
  const key = [low(BigInt(seed)), high(BigInt(seed))]
  const draws = new Float32Array(codebooks)
  for (let block = 0; block * 4 < codebooks; block++) {
    const words = philox4x32([step, block, 0, 0], key).slice(0, codebooks - block * 4)
    words.forEach((word, i) => (draws[block * 4 + i] = (word >>> 8) * 2 ** -24))
  }
  return draws
}
