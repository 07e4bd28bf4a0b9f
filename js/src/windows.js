/**
 * Windows: how a sound longer than the model was trained on is generated, each window continuing the one before.
 *
 *     frames   0         10        20        30        40        50
 *     window 0 ==========--------------------                          = known: the prompt
 *     window 1           ==========--------------------                - generated
 *     window 2                     ==========----------...             here: 30 frames at most, a stride of 10
 *
 * @typedef {object} Window frames of a generation that the model reads and draws without forgetting any
 * @property {number} start its first frame in the whole
 * @property {number} known its first frames, which are not generated
 * @property {number} frames of it in all
 */

/**
 * The windows of `duration` seconds that begin with `prompt` known frames; none where those are all.
 *
 * audiocraft's arithmetic, in its own floats: the whole may come out a frame short of duration * frameRate.
 *
 * @param {number} duration
 * @param {number} maxDuration
 * @param {number} extendStride
 * @param {number} frameRate
 * @param {number} prompt
 * @returns {Window[]}
 */
export function windows(duration, maxDuration, extendStride, frameRate, prompt) {
  const total = Math.trunc(duration * frameRate)
  if (duration <= maxDuration) return [{ start: 0, known: prompt, frames: total }]
  const stride = Math.trunc(frameRate * extendStride)
  if (!(stride > 0 && stride < Math.trunc(maxDuration * frameRate))) {
    throw new RangeError(
      `extendStride: got ${extendStride} s, expected ${1 / frameRate} s (a frame) or more, ` +
        `less than ${maxDuration} s (a window)`,
    )
  }
  const found = []
  let [start, known] = [0, prompt]
  while (start + known < total) {
    const frames = Math.trunc(Math.min(duration - start / frameRate, maxDuration) * frameRate)
    if (frames <= known) {
      throw new RangeError(
        `${prompt} frames of a prompt, windows of ${maxDuration} s every ${extendStride} s, ${duration} s in all: ` +
          `a window has ${frames} frames, ${known} of them known: expected more than those`,
      )
    }
    found.push({ start, known, frames })
    ;[start, known] = [start + stride, Math.max(0, frames - stride)]
  }
  return found
}
