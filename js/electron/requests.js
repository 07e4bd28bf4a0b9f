/** What the window may ask of the main process: its messages are checked, since a page may be made to send others. */

const OPTIONS = [
  ...['description', 'duration', 'maxDuration', 'extendStride', 'chunkSeconds', 'seed'],
  ...['temperature', 'topK', 'topP', 'cfgCoef', 'cfgCoefBeta', 'promptCodes'],
  ...['melody', 'melodySampleRate', 'evalQ', 'excerptLength', 'excerptStart'],
]
const MOST_SAMPLES = 2 ** 28 // of a message, all channels: 1 GB, which is copied into the worker

/**
 * The arguments of "continue", with nothing else in them; throws a TypeError or RangeError. The model checks the values.
 *
 * @param {any} audio one Float32Array a channel; null with options.promptCodes
 * @param {any} sampleRate
 * @param {any} options
 * @returns {{ audio: Float32Array[] | null, sampleRate: number | null, options: Record<string, any> }}
 */
export function validateContinue(audio, sampleRate, options = {}) {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new TypeError(`options: got ${kind(options)}, expected an object`)
  }
  const unknown = Object.keys(options).find((name) => !OPTIONS.includes(name))
  if (unknown !== undefined) {
    throw new TypeError(`options: got ${unknown.slice(0, 60)}, expected one of ${OPTIONS.join(', ')}`)
  }
  if (sampleRate !== null && typeof sampleRate !== 'number') {
    throw new TypeError(`sampleRate: got ${kind(sampleRate)}, expected a number, or null`)
  }
  const isAudio = Array.isArray(audio) && audio.every((channel) => channel instanceof Float32Array)
  if (audio !== null && !isAudio) {
    throw new TypeError(`audio: got ${kind(audio)}, expected a list of one Float32Array per channel, or null`)
  }
  const samples = (audio ?? []).reduce((/** @type {number} */ sum, /** @type {any} */ { length }) => sum + length, 0)
  if (samples > MOST_SAMPLES) throw new RangeError(`audio: got ${samples} samples, expected ${MOST_SAMPLES} at most`)
  return { audio, sampleRate, options: { ...options } }
}

/** @param {unknown} value */
const kind = (value) => (value === null ? 'null' : Array.isArray(value) ? 'a list' : typeof value)
