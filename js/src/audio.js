/**
 * Sample rate and channel conversion, as audiocraft converts a prompt before the codec, and WAV files.
 *
 * @typedef {Float32Array[]} AudioChannels one Float32Array a channel, all equally long
 */

import { sampleRate as validateRate, shown } from './options.js'

const MOST_CHANNELS = 64
const LARGEST_WAV = 2 ** 32 - 100 // bytes of samples: sizes have 32 bits
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
 * @returns {Float32Array} floor(samples * toRate / fromRate) samples
 */
export function resample(wav, fromRate, toRate) {
  const work = resampling(wav, fromRate, toRate)
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
 * @returns {Generator<void, Float32Array, void>}
 */
function* resampling(wav, fromRate, toRate) {
  for (const rate of [fromRate, toRate]) {
    if (!(rate >= 1 && rate === Math.trunc(rate))) {
      throw new RangeError(`sample rates: got ${fromRate} and ${toRate}, expected positive whole numbers`)
    }
  }
  const divisor = gcd(fromRate, toRate)
  const [before, after] = [fromRate / divisor, toRate / divisor]
  if (before === after) return wav
  const width = Math.ceil((ZEROS * before) / (Math.min(before, after) * ROLLOFF))
  const length = Math.floor(Math.fround((after * wav.length) / before)) // rounded to float32, as in julius
  const padded = new Float32Array(wav.length + 2 * width + before + 1).fill(wav[wav.length - 1])
  padded.fill(wav[0], 0, width)
  padded.set(wav, width)
  const output = new Float32Array(length)
  let products = 0
  for (let phase = 0; phase < Math.min(after, length); phase++) {
    const first = Math.floor((phase * before) / after)
    const kernel = sincKernel(first, phase, before, after, width)
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
 */
function sincKernel(first, phase, before, after, width) {
  const f = Math.fround
  const kernel = new Float32Array(2 * width + 2)
  let sum = 0
  for (let i = 0; i < kernel.length; i++) {
    let t = f(f((first - width + i) / before) + f(-phase / after))
    t = f(t * f(Math.min(before, after) * ROLLOFF))
    t = f(Math.max(-ZEROS, Math.min(ZEROS, t)) * f(Math.PI))
    const window = f(Math.cos(f(f(t / ZEROS) / 2)))
    kernel[i] = f((t === 0 ? 1 : f(f(Math.sin(t)) / t)) * f(window * window))
    sum += kernel[i]
  }
  return kernel.map((weight) => weight / sum)
}

/**
 * @param {number} a
 * @param {number} b
 * @returns {number}
 */
const gcd = (a, b) => (b ? gcd(b, a % b) : a)

/**
 * Encode as a 16-bit PCM WAV file; samples outside -1 .. 1 are clipped.
 *
 * @param {AudioChannels} audio
 * @param {number} sampleRate
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function encodeWav(audio, sampleRate) {
  validateChannels('audio', audio)
  validateRate('sampleRate', sampleRate)
  const [channels, samples] = [audio.length, audio[0].length]
  const size = samples * channels * 2
  if (size > LARGEST_WAV) {
    throw new RangeError(
      `audio: got ${channels} x ${samples} samples, a WAV file holds ${LARGEST_WAV / 2}; write it in parts`,
    )
  }
  const view = new DataView(new ArrayBuffer(44 + size))
  /** @type {(at: number, text: string) => void} */
  const write = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)))
  write(0, 'RIFF')
  view.setUint32(4, 36 + size, true)
  write(8, 'WAVEfmt ')
  view.setUint32(16, 16, true)
  view.setUint16(20, 1, true) // PCM
  view.setUint16(22, channels, true)
  view.setUint32(24, sampleRate, true)
  view.setUint32(28, sampleRate * channels * 2, true)
  view.setUint16(32, channels * 2, true)
  view.setUint16(34, 16, true)
  write(36, 'data')
  view.setUint32(40, size, true)
  for (let i = 0, at = 44; i < samples; i++) {
    for (const channel of audio) {
      view.setInt16(at, Math.max(-32768, Math.min(32767, Math.round(channel[i] * 32768))), true)
      at += 2
    }
  }
  return new Uint8Array(view.buffer)
}

/**
 * Decode a WAV file: PCM of 8 to 32 bits, or floats. A browser's decodeAudioData reads more formats, but resamples.
 *
 * @param {Uint8Array} file
 * @returns {{ audio: AudioChannels, sampleRate: number }}
 */
export function decodeWav(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  const tag = (/** @type {number} */ at) => String.fromCharCode(...file.subarray(at, at + 4))
  if (file.length < 12 || tag(0) !== 'RIFF' || tag(8) !== 'WAVE') throw new TypeError('not a WAV file: no RIFF header')
  let [format, channels, sampleRate, bits] = [0, 0, 0, 0]
  for (let at = 12; at + 8 <= file.length;) {
    const [name, size] = [tag(at), view.getUint32(at + 4, true)]
    if (name === 'fmt ' && size >= 16 && at + 24 <= file.length) {
      format = view.getUint16(at + 8, true)
      channels = view.getUint16(at + 10, true)
      sampleRate = view.getUint32(at + 12, true)
      bits = view.getUint16(at + 22, true)
      const isExtensible = format === 0xfffe && size >= 26 && at + 34 <= file.length
      if (isExtensible) format = view.getUint16(at + 32, true) // the format is the start of its GUID
    } else if (name === 'data') {
      requireFormat(channels, sampleRate)
      const read = sampleReader(view, format, bits)
      const bytes = (channels * bits) / 8
      const frames = Math.floor(Math.min(size, file.length - at - 8) / bytes)
      const audio = Array.from({ length: channels }, (_, channel) => {
        const samples = new Float32Array(frames)
        for (let i = 0; i < frames; i++) samples[i] = read(at + 8 + i * bytes + (channel * bits) / 8)
        return samples
      })
      return { audio, sampleRate }
    }
    at += 8 + size + (size % 2)
  }
  throw new TypeError('not a WAV file: no data chunk')
}

/**
 * @param {number} channels
 * @param {number} sampleRate
 */
function requireFormat(channels, sampleRate) {
  if (channels < 1 || channels > MOST_CHANNELS) {
    throw new TypeError(
      `not a WAV file: got ${channels} channels, expected 1 to ${MOST_CHANNELS} in a chunk before data`,
    )
  }
  validateRate('WAV file: sample rate', sampleRate)
}

/**
 * A function that reads the sample at a byte offset.
 *
 * @param {DataView} view
 * @param {number} format 1: PCM, 3: floats
 * @param {number} bits
 * @returns {(at: number) => number}
 */
function sampleReader(view, format, bits) {
  const readers = /** @type {Record<string, (at: number) => number>} */ ({
    '1/8': (at) => view.getUint8(at) / 128 - 1,
    '1/16': (at) => view.getInt16(at, true) / 2 ** 15,
    '1/24': (at) => ((view.getUint16(at, true) << 8) | (view.getInt8(at + 2) << 24)) / 2 ** 31,
    '1/32': (at) => view.getInt32(at, true) / 2 ** 31,
    '3/32': (at) => view.getFloat32(at, true),
    '3/64': (at) => view.getFloat64(at, true),
  })
  const reader = readers[`${format}/${bits}`]
  if (!reader) throw new TypeError(`WAV format ${format} with ${bits} bits is not supported; convert it to 16-bit PCM`)
  return reader
}

/**
 * Audio as one array a channel; throws where it is empty, not finite, or has no sample rate.
 *
 * @param {'audio' | 'melody'} name of the argument
 * @param {Float32Array | AudioChannels | null} audio
 * @param {unknown} sampleRate
 * @returns {AudioChannels}
 */
export function validateAudio(name, audio, sampleRate) {
  const channels = validateChannels(name, audio)
  if (channels.some((channel) => channel.some((sample) => !Number.isFinite(sample)))) {
    throw new RangeError(`${name}: got NaN or infinity, expected finite samples`)
  }
  validateRate(name === 'audio' ? 'sampleRate' : 'melodySampleRate', sampleRate)
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
