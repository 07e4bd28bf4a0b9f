/**
 * What the app's parts say to each other, and what the window may ask of the main process: its messages are checked, since
 * a page may be made to send others.
 *
 *     window   ready, continue, cancel, save     main process   continue, cancel      model's process
 *              <- progress, chunk                               <- progress, chunk, done, failed
 *
 * @typedef {Float32Array[]} Audio one array a channel
 * @typedef {{ done: number, total: number, unit: 'bytes' | 'columns' }} Progress of loading, or of a generation
 * @typedef {Omit<import('clean-lm').GenerateOptions, 'signal' | 'onProgress' | 'onCodes'> & { chunkSeconds?: number }} Options
 *   without functions and signals, which cannot be sent
 * @typedef {{ audio: Audio | null, sampleRate: number | null, options: Options }} Request null with options.promptCodes
 * @typedef {{ sampleRate: number, native: boolean }} Model native: ONNX Runtime's C API runs the graphs
 *
 * @typedef {object} Api the window's side
 * @property {() => Promise<Model>} ready resolves when the model is loaded
 * @property {(request: Request) => Promise<{ cancelled: boolean }>} continue resolves at the end; the audio comes in chunks
 * @property {() => Promise<void>} cancel
 * @property {(sound: Sound) => Promise<string | null>} save asks for a place; resolves with its path; null: not saved
 * @property {(listener: (progress: Progress) => void) => void} onProgress
 * @property {(listener: (takes: Audio[]) => void) => void} onChunk gets the next seconds of every take
 *
 * @typedef {{ name: string, audio: Audio, sampleRate: number }} Sound
 * @typedef {{ value: any } | { error: string }} Answer of the main process to the window
 *
 * @typedef {{ type: 'load', id: 0, bundle: string }} Load
 * @typedef {{ type: 'continue', id: number } & Request} Continue
 * @typedef {Load | Continue | { type: 'cancel', id: number }} ToModel id: what an answer belongs to
 * @typedef {{ type: 'progress' } & Progress} OfProgress
 * @typedef {{ type: 'chunk', takes: Audio[] }} OfChunk
 * @typedef {{ type: 'done', result: any }} OfDone
 * @typedef {{ type: 'failed', message: string }} OfFailed
 * @typedef {{ id: number } & (OfProgress | OfChunk | OfDone | OfFailed)} FromModel
 */

const OPTIONS = [
  ...['description', 'negativeDescription', 'duration', 'maxDuration', 'extendStride', 'chunkSeconds', 'seed', 'takes'],
  ...['temperature', 'topK', 'topP', 'cfgCoef', 'cfgCoefBeta', 'twoStepCfg', 'promptCodes'],
  ...['melody', 'melodySampleRate', 'styleFeatures', 'evalQ', 'excerptLength', 'excerptStart', 'musicalTime'],
]
const MOST_SAMPLES = 2 ** 28 // of a message, all channels: 1 GB, which is copied into the other process
const UNSAFE = /[\\/:*?"<>|\p{Cc}\p{Cf}]/gu // in names of files, on one system or another

/**
 * The request of "continue", with nothing else in it; throws a TypeError or RangeError. The model checks the values.
 *
 * @param {any} request
 * @returns {Request}
 */
export function validateContinue(request) {
  const { audio, sampleRate, options } = object('request', request)
  object('options', options)
  const unknown = Object.keys(options).find((name) => !OPTIONS.includes(name))
  if (unknown !== undefined) {
    throw new TypeError(`options: got ${unknown.slice(0, 60)}, expected one of ${OPTIONS.join(', ')}`)
  }
  if (sampleRate !== null && typeof sampleRate !== 'number') {
    throw new TypeError(`sampleRate: got ${kind(sampleRate)}, expected a number, or null`)
  }
  return { audio: audio === null ? null : validateAudio(audio), sampleRate, options: { ...options } }
}

/**
 * The sound of "save", its name fit for a file; throws a TypeError or RangeError. encodeWav checks the sample rate.
 *
 * @param {any} sound
 * @returns {Sound}
 */
export function validateSave(sound) {
  const { name, audio, sampleRate } = object('sound', sound)
  if (typeof name !== 'string') throw new TypeError(`name: got ${kind(name)}, expected a string`)
  const safe = name.slice(0, 100).replace(UNSAFE, '_').replace(/^\.+/, '').trim()
  return { name: safe || 'take', audio: validateAudio(audio), sampleRate }
}

/** @param {any} audio @returns {Audio} */
function validateAudio(audio) {
  if (!Array.isArray(audio) || !audio.every((channel) => channel instanceof Float32Array)) {
    throw new TypeError(`audio: got ${kind(audio)}, expected a list of one Float32Array per channel`)
  }
  const samples = audio.reduce((sum, { length }) => sum + length, 0)
  if (samples > MOST_SAMPLES) throw new RangeError(`audio: got ${samples} samples, expected ${MOST_SAMPLES} at most`)
  return audio
}

/** @param {string} name @param {any} value */
function object(name, value) {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value
  throw new TypeError(`${name}: got ${kind(value)}, expected an object`)
}

/** @param {unknown} value */
const kind = (value) => (value === null ? 'null' : Array.isArray(value) ? 'a list' : typeof value)
