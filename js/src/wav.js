/**
 * WAV files, as libsndfile reads and writes them.
 *
 * @typedef {import('./audio.js').AudioChannels} AudioChannels
 * @typedef {'pcm16' | 'pcm24' | 'float32'} WavFormat how a sample is stored
 */

import { MOST_CHANNELS, validateSamples } from './audio.js'
import { sampleRate as validateRate, shown } from './options.js'

const LARGEST = 2 ** 32 - 100 // bytes of samples: sizes have 32 bits
const [PCM, FLOAT, EXTENSIBLE] = [1, 3, 0xfffe]

/** @type {Record<WavFormat, { tag: number, bytes: number, write: (view: DataView, at: number, sample: number) => void }>} */
const FORMATS = {
  pcm16: { tag: PCM, bytes: 2, write: (view, at, sample) => view.setInt16(at, integer(sample, 2 ** 15), true) },
  pcm24: {
    tag: PCM,
    bytes: 3,
    write: (view, at, sample) => {
      const value = integer(sample, 2 ** 23)
      view.setUint16(at, value & 0xffff, true)
      view.setInt8(at + 2, value >> 16)
    },
  },
  float32: { tag: FLOAT, bytes: 4, write: (view, at, sample) => view.setFloat32(at, sample, true) },
}

/**
 * A sample as an integer, what decodeWav divided by its scale: rounded to the nearest, ties to even, and clipped.
 *
 * @param {number} sample
 * @param {number} scale
 */
function integer(sample, scale) {
  const value = sample * scale
  const below = Math.floor(value)
  const rest = value - below
  const rounded = rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below
  return Math.max(-scale, Math.min(scale - 1, rounded))
}

/**
 * Encode as a WAV file. PCM clips samples outside -1 .. 1, float32 keeps them. What decodeWav read from a file of the
 * same format is written back bit for bit.
 *
 * @param {Float32Array | AudioChannels} audio
 * @param {number} sampleRate
 * @param {WavFormat} [format]
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function encodeWav(audio, sampleRate, format = 'pcm16') {
  const channels = validateSamples('audio', audio)
  validateRate('sampleRate', sampleRate)
  if (!Object.hasOwn(FORMATS, format)) {
    throw new TypeError(`format: got ${shown(format)}, expected one of ${Object.keys(FORMATS).join(', ')}`)
  }
  const { tag, bytes, write } = FORMATS[format]
  const samples = channels[0].length
  const size = samples * channels.length * bytes
  if (size > LARGEST) {
    const most = Math.floor(LARGEST / bytes)
    throw new RangeError(
      `audio: got ${channels.length} x ${samples} samples, a WAV file holds ${most}; write it in parts`,
    )
  }
  const head = header(tag, channels.length, sampleRate, bytes, samples)
  const view = new DataView(new ArrayBuffer(head.length + size + (size % 2))) // chunks have even lengths
  new Uint8Array(view.buffer).set(head)
  view.setUint32(4, view.byteLength - 8, true)
  let at = head.length
  for (let i = 0; i < samples; i++) {
    for (const channel of channels) {
      write(view, at, channel[i])
      at += bytes
    }
  }
  return new Uint8Array(view.buffer)
}

/**
 * What stands before the samples. Formats other than PCM have an extension without content, and the number of samples.
 *
 * @param {number} tag
 * @param {number} channels
 * @param {number} sampleRate
 * @param {number} bytes of a sample
 * @param {number} samples of a channel
 */
function header(tag, channels, sampleRate, bytes, samples) {
  const view = new DataView(new ArrayBuffer(tag === PCM ? 44 : 58))
  let at = 0
  const text = (/** @type {string} */ name) => [...name].forEach((c) => view.setUint8(at++, c.charCodeAt(0)))
  const short = (/** @type {number} */ value) => (view.setUint16(at, value, true), (at += 2))
  const long = (/** @type {number} */ value) => (view.setUint32(at, value, true), (at += 4))
  text('RIFF')
  long(0) // the size of the rest
  text('WAVEfmt ')
  long(tag === PCM ? 16 : 18)
  short(tag)
  short(channels)
  long(sampleRate)
  long(sampleRate * channels * bytes)
  short(channels * bytes)
  short(bytes * 8)
  if (tag !== PCM) {
    short(0)
    text('fact')
    long(4)
    long(samples)
  }
  text('data')
  long(samples * channels * bytes)
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
      const isExtensible = format === EXTENSIBLE && size >= 26 && at + 34 <= file.length
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
 * @param {number} format PCM or FLOAT
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
