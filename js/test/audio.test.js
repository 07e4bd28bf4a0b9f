import assert from 'node:assert/strict'
import { test } from 'node:test'

import { convertAudio, convertAudioInPieces, resample } from '../src/audio.js'
import { fromFloat16, toFloat16 } from '../src/float16.js'
import { decodeWav, encodeWav } from '../src/wav.js'
import { clip } from './kit.js'

test('encodeWav and decodeWav agree within half a 16-bit step', () => {
  const audio = clip(0.1, 8000)
  const read = decodeWav(encodeWav(audio, 8000))
  assert.equal(read.sampleRate, 8000)
  read.audio.forEach((channel, c) => channel.forEach((x, i) => assert.ok(Math.abs(x - audio[c][i]) <= 0.5 / 32768)))
})

test('encodeWav clips at full scale', () => {
  const { audio } = decodeWav(encodeWav([Float32Array.of(2, -2, 0)], 8000))
  assert.deepEqual([...audio[0]], [32767 / 32768, -1, 0])
})

/** @param {number} format @param {number} bits @param {number[]} data */
function wav(format, bits, data) {
  const file = new Uint8Array(54 + data.length)
  const view = new DataView(file.buffer)
  const put = (/** @type {number} */ at, /** @type {string} */ text) => file.set(Buffer.from(text), at)
  put(0, 'RIFF')
  put(8, 'WAVEfmt ')
  view.setUint32(16, 16, true)
  view.setUint16(20, format, true)
  view.setUint16(22, 1, true)
  view.setUint32(24, 8000, true)
  view.setUint16(34, bits, true)
  put(36, 'odd ') // an unknown chunk of odd length, and its padding byte
  view.setUint32(40, 1, true)
  put(46, 'data')
  view.setUint32(50, data.length, true)
  file.set(data, 54)
  return file
}

test('decodeWav reads every sample format, and says what it does not read', () => {
  const cases = /** @type {[number, number, number[], number[]][]} */ ([
    [1, 8, [0, 128, 192], [-1, 0, 0.5]],
    [1, 16, [0, 128, 0, 64], [-1, 0.5]],
    [1, 24, [0, 0, 128, 0, 0, 64], [-1, 0.5]],
    [1, 32, [0, 0, 0, 128, 0, 0, 0, 64], [-1, 0.5]],
    [3, 32, [0, 0, 128, 191, 0, 0, 0, 63], [-1, 0.5]],
    [3, 64, [0, 0, 0, 0, 0, 0, 224, 63], [0.5]],
  ])
  for (const [format, bits, data, expected] of cases) {
    assert.deepEqual([...decodeWav(wav(format, bits, data)).audio[0]], expected, `${format}/${bits}`)
  }
  assert.throws(() => decodeWav(wav(6, 8, [1])), /WAV format 6 with 8 bits is not supported; convert it to 16-bit PCM/)
  assert.throws(() => decodeWav(new Uint8Array(100)), /not a WAV file: no RIFF header/)
  assert.throws(() => decodeWav(wav(1, 16, []).subarray(0, 45)), /not a WAV file: no data chunk/)
})

test('a WAV file that is cut, changed or empty is refused in one line, or read', () => {
  const good = encodeWav(clip(0.01, 8000), 8000)
  let random = 7
  const next = (/** @type {number} */ most) => (random = (random * 48271) % 2147483647) % most
  let read = 0
  for (let i = 0; i < 400; i++) {
    const file = good.slice(0, i % 2 ? next(good.length) : undefined)
    for (let n = 0; n < 3 && file.length; n++) file[next(Math.min(48, file.length))] = next(256)
    try {
      const { audio, sampleRate } = decodeWav(file)
      assert.ok(audio.length && sampleRate >= 1 && audio.every((channel) => channel.length <= good.length))
      read++
    } catch (error) {
      assert.match(String(error), /^(Type|Range)Error: (not a )?WAV (file|format)[^\n]*$/)
    }
  }
  assert.ok(read > 10)
})

test('encodeWav refuses what is no audio', () => {
  const encode = (/** @type {any} */ audio, /** @type {any} */ rate) => () => encodeWav(audio, rate)
  assert.throws(encode([], 8000), /audio: got Array of 0, expected a Float32Array/)
  assert.throws(encode([[0.5]], 8000), /audio: got a list of Array of 1/)
  assert.throws(encode(clip(0.01, 8000), 0), /sampleRate: got 0, expected samples per second/)
})

test('a conversion in pieces equals the one at once, and can be left', async () => {
  const audio = clip(2, 44_101)
  let pauses = 0
  const pieces = await convertAudioInPieces(audio, 44_101, 32_000, 2, async () => void pauses++)
  assert.deepEqual(pieces, convertAudio(audio, 44_101, 32_000, 2))
  assert.ok(pauses > 2)
  const leave = async () => {
    throw new Error('left')
  }
  await assert.rejects(convertAudioInPieces(audio, 44_101, 32_000, 2, leave), /left/)
})

test('channels and rates that cannot be converted are refused', () => {
  assert.throws(
    () => convertAudio([...clip(1, 100), ...clip(1, 100)], 100, 100, 5),
    /audio: got 4 channels, expected 1, or 5 or more/,
  )
  assert.throws(() => resample(new Float32Array(9), 0.5, 100), /sample rates: got 0.5 and 100/)
})

test('toFloat16 rounds to the nearest, ties to even', () => {
  const cases = [
    [0, 0],
    [-0, 0x8000],
    [1, 0x3c00],
    [-2, 0xc000],
    [65504, 0x7bff],
    [65519.996, 0x7bff],
    [65520, 0x7c00],
    [Infinity, 0x7c00],
    [1 + 2 ** -11, 0x3c00], // a tie, down to even
    [1 + 3 * 2 ** -11, 0x3c02], // a tie, up to even
    [2 ** -14, 0x0400],
    [2 ** -24, 0x0001],
    [2 ** -25, 0x0000], // a tie between 0 and the smallest subnormal
    [3 * 2 ** -25, 0x0002],
    [2 ** -14 - 2 ** -26, 0x0400], // rounds up to the smallest normal number
  ]
  assert.deepEqual(
    [...toFloat16(Float32Array.from(cases, ([value]) => value))],
    cases.map(([, half]) => half),
  )
  assert.ok(Number.isNaN(fromFloat16(toFloat16(Float32Array.of(NaN)))[0]))
  const all = Uint16Array.from({ length: 0x10000 }, (_, half) => half).filter((half) => (half & 0x7fff) <= 0x7c00)
  assert.deepEqual(toFloat16(fromFloat16(all)), all)
})
