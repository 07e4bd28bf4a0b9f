/**
 * The delay pattern: codebook k lags by delays[k] columns, so that it is drawn after the codebooks below it.
 *
 *     column s  0 1 2 3 4 5 6 7      codebook k at column s holds frame t = s - 1 - delays[k]
 *     k=0       # 0 1 2 3 # # #      # = special token, where t < 0 or t >= T
 *     k=1       # # 0 1 2 3 # #      T = 4 frames and delays 0..3 make T + 3 + 1 = 8 columns
 *     k=2       # # # 0 1 2 3 #
 *     k=3       # # # # 0 1 2 3
 */

/** A code that is still to be generated. */
export const UNKNOWN = -1

/**
 * Lay P known frames out in columns: [K][P] -> [K][T + max(delays) + 1].
 *
 * @param {ArrayLike<ArrayLike<number>>} codes known frames of every codebook
 * @param {number[]} delays
 * @param {number} frames T, of which those after the known ones are UNKNOWN
 * @param {number} special what stands where no frame is
 * @returns {Int32Array[]}
 */
export function delay(codes, delays, frames, special) {
  const columns = frames + Math.max(...delays) + 1
  return delays.map((lag, k) => {
    const row = new Int32Array(columns).fill(special)
    row.fill(UNKNOWN, lag + 1, lag + 1 + frames)
    row.set(codes[k], lag + 1)
    return row
  })
}

/**
 * Read the frames back: [K][T + max(delays) + 1] -> [K][T].
 *
 * @param {Int32Array[]} columns
 * @param {number[]} delays
 */
export function undelay(columns, delays) {
  const frames = columns[0].length - Math.max(...delays) - 1
  return delays.map((lag, k) => columns[k].slice(lag + 1, lag + 1 + frames))
}

/**
 * How many columns a prompt of P frames makes known before the first that has a frame to generate.
 *
 * @param {number} promptFrames
 * @param {number[]} delays
 */
export function prefillLength(promptFrames, delays) {
  return promptFrames + Math.min(...delays) + 1
}
