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

import { LONGEST, shown } from './options.js'

const MOST_WINDOWS = 100_000 // a day in windows that begin every second has 86400

/**
 * The windows of a generation, computed anew each time they are iterated over; none where the prompt is already as long
 * as the whole.
 *
 * This is audiocraft's arithmetic with its rounding: the whole may come out a frame short of duration * frameRate.
 *
 * @param {number} duration seconds in all
 * @param {number} maxDuration seconds of a window
 * @param {number} extendStride seconds from one window's start to the next one's
 * @param {number} frameRate frames a second
 * @param {number} prompt frames
 * @returns {Iterable<Window>}
 */
export function windows(duration, maxDuration, extendStride, frameRate, prompt) {
  requireNumbers({ duration, maxDuration, extendStride, frameRate, prompt })
  if (!(duration <= LONGEST)) throw new RangeError(`duration: got ${duration} s, expected ${LONGEST} s (a day) or less`)
  if (duration <= maxDuration) return [{ start: 0, known: prompt, frames: Math.trunc(duration * frameRate) }]
  const stride = Math.trunc(frameRate * extendStride)
  if (!(stride > 0 && stride < Math.trunc(maxDuration * frameRate))) {
    throw new RangeError(
      `extendStride: got ${extendStride} s, expected at least ${1 / frameRate} s (a frame) ` +
        `and less than ${maxDuration} s (a window)`,
    )
  }
  const count = Math.ceil(Math.trunc(duration * frameRate) / stride)
  if (count > MOST_WINDOWS) {
    throw new RangeError(
      `extendStride: got ${extendStride} s for a duration of ${duration} s, which makes ${count} windows; ` +
        `expected ${MOST_WINDOWS} or fewer: give a longer extendStride`,
    )
  }
  const found = { [Symbol.iterator]: () => steps(duration, maxDuration, extendStride, frameRate, prompt) }
  for (const window of found)
    if (window.frames <= window.known) throw fills(duration, maxDuration, extendStride, prompt / frameRate)
  return found
}

/**
 * @param {number} duration
 * @param {number} maxDuration
 * @param {number} extendStride
 * @param {number} frameRate
 * @param {number} prompt
 * @returns {Generator<Window>}
 */
function* steps(duration, maxDuration, extendStride, frameRate, prompt) {
  const [total, stride] = [Math.trunc(duration * frameRate), Math.trunc(frameRate * extendStride)]
  let [start, known] = [0, prompt]
  while (start + known < total) {
    const frames = Math.trunc(Math.min(duration - start / frameRate, maxDuration) * frameRate)
    yield { start, known, frames }
    ;[start, known] = [start + stride, Math.max(0, frames - stride)]
  }
}

/**
 * @param {number} duration
 * @param {number} maxDuration
 * @param {number} extendStride
 * @param {number} prompt seconds
 */
const fills = (duration, maxDuration, extendStride, prompt) =>
  new RangeError(
    `the prompt fills a window: got a prompt of ${prompt} s, windows of ${maxDuration} s every ` +
      `${extendStride} s, ${duration} s in all; expected a shorter prompt or a longer maxDuration`,
  )

/** @param {Record<string, number>} values */
function requireNumbers(values) {
  for (const [name, value] of Object.entries(values)) {
    if (typeof value !== 'number') throw new TypeError(`${name}: got ${shown(value)}, expected a number`)
    const isValid = name === 'prompt' ? Number.isSafeInteger(value) && value >= 0 : value > 0 && value < Infinity
    const isStride = name === 'extendStride' && !Number.isNaN(value) // its own message has the bounds
    if (!isValid && !isStride && name !== 'duration')
      throw new RangeError(`${name}: got ${value}, expected a finite number above 0`)
  }
}
