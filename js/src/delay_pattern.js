/**
 * The delay pattern: codebook k lags by delays[k] columns, so that its code of a frame is sampled after those of the
 * codebooks with smaller delays.
 *
 *     column s  0 1 2 3 4 5 6 7      codebook k at column s holds frame t = s - 1 - delays[k]
 *     k=0       # 0 1 2 3 # # #      # = special token, where t < 0 or t >= T
 *     k=1       # # 0 1 2 3 # #      T = 4 frames and delays 0..3 make T + 3 + 1 = 8 columns
 *     k=2       # # # 0 1 2 3 #
 *     k=3       # # # # 0 1 2 3
 */

import { whole } from './options.js'

const MOST_FRAMES = 2 ** 30
/** A code that is not generated yet. */
export const UNKNOWN = -1

/**
 * Lay out P known frames in columns: [K][P] -> [K][T + max(delays) + 1].
 *
 * @param {ArrayLike<ArrayLike<number>>} codes known frames of every codebook
 * @param {number[]} delays
 * @param {number} frames T; those after the P known ones become UNKNOWN
 * @param {number} special token for places without a frame
 * @returns {Int32Array[]}
 */
export function delay(codes, delays, frames, special) {
  whole(0, MOST_FRAMES, `a whole number from 0 to ${MOST_FRAMES}`)('frames', frames, 0)
  const known = codes[0]?.length
  if (!(known <= frames)) throw new RangeError(`codes: got ${known} frames, expected ${frames} or fewer`)
  const columns = frames + Math.max(...delays) + 1
  return delays.map((lag, k) => {
    const row = new Int32Array(columns).fill(special)
    row.fill(UNKNOWN, lag + 1, lag + 1 + frames)
    row.set(codes[k], lag + 1)
    return row
  })
}

/**
 * The inverse: columns back to frames, [K][T + max(delays) + 1] -> [K][T].
 *
 * @param {Int32Array[]} columns
 * @param {number[]} delays
 */
export function undelay(columns, delays) {
  const frames = columns[0].length - Math.max(...delays) - 1
  return delays.map((lag, k) => columns[k].slice(lag + 1, lag + 1 + frames))
}

/**
 * How many columns the first call reads: all before the first one with a code to generate.
 *
 * @param {number} promptFrames
 * @param {number[]} delays
 */
export function prefillLength(promptFrames, delays) {
  return promptFrames + Math.min(...delays) + 1
}
