/**
 * Audio longer than the model was trained on is generated in windows, each of which continues the one before.
 *
 *     frames   0         10        20        30        40        50
 *     window 0 ==========--------------------                          = known: the prompt
 *     window 1           ==========--------------------                - generated
 *     window 2                     ==========----------...             here: 30 frames at most, a stride of 10
 *
 * @typedef {object} Window frames that are generated with one KV cache
 * @property {number} start index of its first frame in the whole generation
 * @property {number} known how many of its frames are given: the prompt, or what the window before generated
 * @property {number} frames how many it has in all
 */

import { LONGEST } from './options.js'

const MOST_WINDOWS = 10_000

/**
 * The windows of a generation; an empty list where the prompt is already as long as the whole.
 *
 * This is audiocraft's arithmetic with its rounding: the whole may come out a frame short of duration * frameRate.
 *
 * @param {number} duration seconds in all
 * @param {number} maxDuration seconds of a window
 * @param {number} extendStride seconds from one window's start to the next one's
 * @param {number} frameRate frames a second
 * @param {number} prompt frames
 * @returns {Window[]}
 */
export function windows(duration, maxDuration, extendStride, frameRate, prompt) {
  if (!(duration <= LONGEST)) throw new RangeError(`duration: got ${duration} s, expected ${LONGEST} s (a day) or less`)
  const total = Math.trunc(duration * frameRate)
  if (duration <= maxDuration) return [{ start: 0, known: prompt, frames: total }]
  const stride = Math.trunc(frameRate * extendStride)
  if (!(stride > 0 && stride < Math.trunc(maxDuration * frameRate))) {
    throw new RangeError(
      `extendStride: got ${extendStride} s, expected at least ${1 / frameRate} s (a frame) ` +
        `and less than ${maxDuration} s (a window)`,
    )
  }
  const count = Math.ceil(total / stride)
  if (count > MOST_WINDOWS) {
    throw new RangeError(
      `extendStride: got ${extendStride} s for a duration of ${duration} s, which makes ${count} windows; ` +
        `expected ${MOST_WINDOWS} or fewer: give a longer extendStride`,
    )
  }
  const found = []
  let [start, known] = [0, prompt]
  while (start + known < total) {
    const frames = Math.trunc(Math.min(duration - start / frameRate, maxDuration) * frameRate)
    if (frames <= known) {
      throw new RangeError(
        `the prompt fills a window: got a prompt of ${prompt / frameRate} s, windows of ${maxDuration} s every ` +
          `${extendStride} s, ${duration} s in all; expected a shorter prompt or a longer maxDuration`,
      )
    }
    found.push({ start, known, frames })
    ;[start, known] = [start + stride, Math.max(0, frames - stride)]
  }
  return found
}
