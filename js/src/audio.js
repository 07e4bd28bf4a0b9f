/**
 * Sample rate and channel conversion, as audiocraft converts a prompt before the codec.
 *
 * @typedef {Float32Array[]} AudioChannels one Float32Array a channel, all equally long
 */

import { sampleRate as validateRate, shown } from './options.js'

export const MOST_CHANNELS = 64
const PIECE = 2 ** 22 // products between two pauses: some milliseconds
const ZEROS = 24 // zero crossings of the windowed sinc on each side
const ROLLOFF = 0.945 // cutoff as a fraction of the Nyquist frequency

/**
 * Convert channels, then the sample rate: only channels that are kept are resampled.
 *
 * @param {AudioChannels} audio
 * @param {number} fromRate
 * @param {number} toRate
 * @param {number} toChannels
 */
export function convertAudio(audio, fromRate, toRate, toChannels) {
  return convertChannels(audio, toChannels).map((channel) => resample(channel, fromRate, toRate))
}

/**
 * convertAudio, with a pause every few milliseconds.
 *
 * @param {AudioChannels} audio
 * @param {number} fromRate
 * @param {number} toRate
 * @param {number} toChannels
 * @param {() => Promise<void>} pause
 * @returns {Promise<AudioChannels>}
 */
export async function convertAudioInPieces(audio, fromRate, toRate, toChannels, pause) {
  const converted = []
  for (const channel of convertChannels(audio, toChannels)) {
    const work = resampling(channel, fromRate, toRate)
    let step = work.next()
    for (; !step.done; step = work.next()) await pause()
    converted.push(step.value)
  }
  return converted
}

/**
 * To mono by the mean; from mono by copying; otherwise the first channels are kept.
 *
 * @param {AudioChannels} audio
 * @param {number} channels
 */
export function convertChannels(audio, channels) {
  if (channels === 1 && audio.length > 1) {
    return [audio[0].map((_, i) => audio.reduce((sum, channel) => sum + channel[i], 0) / audio.length)]
  }
  if (audio.length === 1) return Array.from({ length: channels }, () => audio[0])
  if (channels > audio.length) {
    throw new RangeError(`audio: got ${audio.length} channels, expected 1, or ${channels} or more; mix it first`)
  }
  return audio.slice(0, channels)
}

/**
 * Windowed-sinc resampling.
 *
 * x(t) between samples is the sum of x[i] sinc(pi (i - t)), cut off at the lower rate's Nyquist and windowed by cos^2
 * (J. O. Smith, Digital Audio Resampling), with julius' sizes: 24 zeros, rolloff 0.945, edges repeated, every kernel
 * summing to 1 and computed in float32: the resampler of the codec's training data.
 *
 *     input   |. . . . . . .|. . . . . . .|.      a period has `before` samples in and `after` out: the rates / gcd
 *     output  |0   1   2    |0   1   2    |0      phase i of every period has the same kernel
 *
 * @param {Float32Array} wav
 * @param {number} fromRate
 * @param {number} toRate
 * @param {{ length?: number, exact?: boolean }} [options] length: samples of the result; default: julius',
 *   floor(samples * toRate / fromRate). exact: kernels computed in float64
 * @returns {Float32Array}
 */
export function resample(wav, fromRate, toRate, options) {
  const work = resampling(wav, fromRate, toRate, options)
  let step = work.next()
  while (!step.done) step = work.next()
  return step.value
}

/**
 * resample, which yields after each PIECE of its work.
 *
 * @param {Float32Array} wav
 * @param {number} fromRate
 * @param {number} toRate
 * @param {{ length?: number, exact?: boolean }} [options]
 * @returns {Generator<void, Float32Array, void>}
 */
function* resampling(wav, fromRate, toRate, { length: wanted, exact = false } = {}) {
  for (const rate of [fromRate, toRate]) {
    if (!(rate >= 1 && rate === Math.trunc(rate))) {
      throw new RangeError(`sample rates: got ${fromRate} and ${toRate}, expected positive whole numbers`)
    }
  }
  const divisor = gcd(fromRate, toRate)
  const [before, after] = [fromRate / divisor, toRate / divisor]
  if (before === after) return wav
  const width = Math.ceil((ZEROS * before) / (Math.min(before, after) * ROLLOFF))
  const length = wanted ?? Math.floor(Math.fround((after * wav.length) / before)) // rounded to float32, as in julius
  const padded = new Float32Array(wav.length + 2 * width + before + 1).fill(wav[wav.length - 1])
  padded.fill(wav[0], 0, width)
  padded.set(wav, width)
  const output = new Float32Array(length)
  let products = 0
  for (let phase = 0; phase < Math.min(after, length); phase++) {
    const first = Math.floor((phase * before) / after)
    const kernel = sincKernel(first, phase, before, after, width, exact)
    for (let at = phase, start = first; at < length; at += after, start += before) {
      let sum = 0
      for (let i = 0; i < kernel.length; i++) sum += padded[start + i] * kernel[i]
      output[at] = sum
      products += kernel.length
      if (products < PIECE) continue
      products = 0
      yield
    }
    products += 20 * kernel.length // its sines and cosines
    if (products < PIECE) continue
    products = 0
    yield
  }
  return output
}

/**
 * The weights of the input samples first - width .. first + width + 1 for one output phase.
 *
 * @param {number} first
 * @param {number} phase
 * @param {number} before
 * @param {number} after
 * @param {number} width
 * @param {boolean} exact in float64
 */
function sincKernel(first, phase, before, after, width, exact) {
  const f = exact ? Number : Math.fround
  const kernel = new (exact ? Float64Array : Float32Array)(2 * width + 2)
  let sum = 0
  for (let i = 0; i < kernel.length; i++) {
    let t = f(f((first - width + i) / before) + f(-phase / after))
    t = f(t * f(Math.min(before, after) * ROLLOFF))
    t = f(Math.max(-ZEROS, Math.min(ZEROS, t)) * f(Math.PI))
    const window = f(Math.cos(f(f(t / ZEROS) / 2)))
    kernel[i] = f((t === 0 ? 1 : f(f(Math.sin(t)) / t)) * f(window * window))
    sum += kernel[i]
  }
  return Float32Array.from(kernel, (weight) => weight / sum)
}

/**
 * @param {number} a
 * @param {number} b
 * @returns {number}
 */
const gcd = (a, b) => (b ? gcd(b, a % b) : a)

/**
 * Audio as one array a channel; throws where it is empty, not finite, or has no sample rate.
 *
 * @param {string} name of the argument
 * @param {Float32Array | AudioChannels | null} audio
 * @param {string} rateName of the argument
 * @param {unknown} sampleRate
 * @returns {AudioChannels}
 */
export function validateAudio(name, audio, rateName, sampleRate) {
  const channels = validateSamples(name, audio)
  validateRate(rateName, sampleRate)
  return channels
}

/**
 * Audio as one array a channel; throws where it is empty or not finite.
 *
 * @param {string} name of the argument
 * @param {Float32Array | AudioChannels | null} audio
 * @returns {AudioChannels}
 */
export function validateSamples(name, audio) {
  const channels = validateChannels(name, audio)
  if (channels.some((channel) => channel.some((sample) => !Number.isFinite(sample)))) {
    throw new RangeError(`${name}: got NaN or infinity, expected finite samples`)
  }
  return channels
}

/**
 * Audio as one array a channel, of equal length and not empty; throws where it is anything else.
 *
 * @param {string} name of the argument
 * @param {Float32Array | AudioChannels | null} audio
 * @returns {AudioChannels}
 */
function validateChannels(name, audio) {
  const channels = audio instanceof Float32Array ? [audio] : audio
  const expected = 'a Float32Array, or a list of one per channel, of equal length and not empty'
  const samples = channels?.[0]?.length
  const isChannel = (/** @type {unknown} */ c) => c instanceof Float32Array && c.length === samples
  if (!Array.isArray(channels) || !samples || !channels.every(isChannel)) {
    const first = /** @type {any} */ (Array.isArray(channels) ? channels[0] : channels)
    const integers = ArrayBuffer.isView(first) && !(first instanceof Float32Array || first instanceof Float64Array)
    const hint = integers ? '; divide PCM by its full scale, and pass codes as promptCodes' : ''
    const list = Array.isArray(channels) && channels.length ? `a list of ${shown(first)}` : shown(audio)
    throw new TypeError(`${name}: got ${list}, expected ${expected}${hint}`)
  }
  if (channels.length > MOST_CHANNELS) {
    throw new RangeError(
      `${name}: got ${channels.length} channels of ${samples} samples, expected one array per channel; ` +
        'interleaved samples have to be taken apart first',
    )
  }
  return channels
}
