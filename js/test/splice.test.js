/** The way back from generated audio to a track; the conformance kit has Python's numbers. */

import assert from 'node:assert/strict'
import { test } from 'node:test'

import {
  amplify,
  decodeWav,
  encodeWav,
  fadeOut,
  matchLevel,
  mixLoss,
  pickChannel,
  splice,
  toSource,
  wholeFrames,
} from '../src/index.js'
import { clip } from './kit.js'

const RATE = 8000
const TRACK = clip(1, RATE)
const MADE = clip(0.5, RATE).map((channel) => channel.map((sample) => -sample))

test('a splice keeps the track to the crossfade, and what was generated after the seam', () => {
  const joined = splice(TRACK, MADE, 8000, 100, 1000)
  joined.forEach((channel, c) => {
    assert.equal(channel.length, 8000 + 4000 - 1000)
    assert.deepEqual(channel.slice(0, 7900), TRACK[c].slice(0, 7900))
    assert.deepEqual(channel.slice(8000), MADE[c].slice(1000))
  })
  assert.deepEqual(splice(TRACK, TRACK, 5000, 300), TRACK) // equal sides stay equal, their bits too
})

test('toSource gives the length that a rate asks for, and channels that are not one array', () => {
  const back = toSource(MADE[0], RATE, 44100, 2)
  assert.equal(back[0].length, 22050)
  assert.deepEqual(back[0], back[1])
  assert.notEqual(back[0], back[1])
  assert.equal(toSource([Float32Array.of(0.5)], 32000, 8001, 1)[0].length, 0) // a quarter of a sample
})

test('a level that is matched is the same at the seam, within 12 dB', () => {
  const quiet = amplify(TRACK, -7)
  const gain = matchLevel(TRACK, quiet, 8000, 8000, RATE)
  assert.ok(Math.abs(gain - 7) < 1e-4)
  assert.equal(matchLevel(TRACK, amplify(TRACK, -30), 8000, 8000, RATE), 12)
  assert.equal(matchLevel(TRACK, amplify(TRACK, -900), 8000, 8000, RATE), 0)
  assert.equal(matchLevel(TRACK, quiet, 8000, 0, RATE), 0)
})

test('a fade ends in silence, and leaves what is before', () => {
  const [faded] = fadeOut(TRACK, 800)
  assert.deepEqual(faded.slice(0, 7200), TRACK[0].slice(0, 7200))
  assert.ok(Math.abs(faded[7999]) < 1e-9)
  assert.deepEqual(fadeOut(TRACK, 0), TRACK)
})

test('channels: one of them, and what their mix loses', () => {
  assert.deepEqual(pickChannel(TRACK, 'right'), [TRACK[1]])
  assert.equal(pickChannel(TRACK, 'mix'), TRACK)
  assert.ok(mixLoss([TRACK[0], TRACK[0]]) < 1e-9)
  assert.equal(mixLoss([TRACK[0], TRACK[0].map((sample) => -sample)]), 120)
})

test('a prompt is cut to whole frames from either end', () => {
  const codec = { sampleRate: 32000, hop: 640 }
  const ending = wholeFrames(TRACK, RATE, codec)
  assert.equal(wholeFrames([TRACK[0].subarray(0, 399)], RATE, codec)[0].length, 320)
  assert.deepEqual(ending[0], TRACK[0].slice(8000 - 8000))
  assert.deepEqual(wholeFrames([TRACK[0].subarray(0, 399)], RATE, codec, 'start')[0], TRACK[0].slice(0, 320))
  assert.deepEqual(wholeFrames([TRACK[0].subarray(0, 399)], RATE, codec)[0], TRACK[0].slice(79, 399))
})

test('refused by name', () => {
  const cut =
    (/** @type {any[]} */ ...rest) =>
    () =>
      splice(.../** @type {[any, any, any, any]} */ ([TRACK, MADE, ...rest]))
  assert.throws(cut(8001, 0), /seamSamples: got 8001, expected a whole number from 0 to 8000, the source's length/)
  assert.throws(cut(8000, 0, 4001), /leadSamples: got 4001, expected .* 4000, the generated audio's length/)
  assert.throws(cut(8000, -1, 10), /crossfadeSamples: got -1/)
  assert.throws(cut(8000, '5', 10), /crossfadeSamples: got "5", expected a number/)
  assert.throws(() => splice(TRACK, [MADE[0]], 10, 0), /generated: got 1 channels, expected 2, .* toSource first/)
  assert.throws(() => toSource(TRACK, RATE, 0, 2), /sourceRate: got 0/)
  assert.throws(() => toSource(TRACK, RATE, RATE, 0), /sourceChannels: got 0/)
  assert.throws(() => toSource(TRACK, RATE, RATE, 3), /got 2 channels, expected 1, or 3 or more/)
  assert.throws(() => amplify(TRACK, NaN), /gain: got NaN, expected -1000 to 1000 dB/)
  assert.throws(() => fadeOut(TRACK, 8001), /samples: got 8001, expected .* the length of the audio/)
  assert.throws(
    () => pickChannel(TRACK, /** @type {any} */ ('both')),
    /channel: got "both", expected one of left, right/,
  )
  assert.throws(() => pickChannel([TRACK[0]], 'left'), /channel: got "left", expected mix: the audio has 1 channel/)
  assert.throws(
    () => wholeFrames(TRACK, RATE, { sampleRate: 1, hop: 1 }, /** @type {any} */ ('middle')),
    /from: got "middle"/,
  )
  assert.throws(() => mixLoss([]), /audio: got Array of 0/)
})

test('WAV files of every format read back as they were written', () => {
  const steps = /** @type {const} */ ([
    ['pcm16', 2 ** 15],
    ['pcm24', 2 ** 23],
  ])
  for (const [format, scale] of steps) {
    const audio = TRACK.map((channel) => channel.map((sample) => Math.round(sample * scale) / scale + 0))
    const file = encodeWav(audio, RATE, format)
    assert.deepEqual(decodeWav(file), { audio, sampleRate: RATE })
    assert.deepEqual(encodeWav(decodeWav(file).audio, RATE, format), file)
  }
  const loud = TRACK.map((channel) => channel.map((sample) => sample * 5))
  assert.deepEqual(decodeWav(encodeWav(loud, RATE, 'float32')).audio, loud)
})

test('PCM is rounded to the nearest, ties to even, and clipped', () => {
  const half = (/** @type {number} */ n) => (n + 0.5) / 2 ** 15
  const audio = Float32Array.of(half(0), half(1), half(-1), half(-2), half(2), 1, -1, 2)
  const found = decodeWav(encodeWav(audio, RATE)).audio[0].map((sample) => sample * 2 ** 15)
  assert.deepEqual([...found], [0, 2, 0, -2, 2, 32767, -32768, 32767])
  const [deep] = decodeWav(encodeWav(Float32Array.of(1, -1, 3 / 2 ** 24, -3 / 2 ** 24), RATE, 'pcm24')).audio
  assert.deepEqual([...deep.map((sample) => sample * 2 ** 23)], [2 ** 23 - 1, -(2 ** 23), 2, -2])
})

test('a WAV file is as long as its header says, padded to an even number of bytes', () => {
  const file = encodeWav(Float32Array.of(0.1, 0.2, 0.3), RATE, 'pcm24')
  const view = new DataView(file.buffer)
  assert.deepEqual([file.length, view.getUint32(4, true), view.getUint32(40, true)], [54, 46, 9])
  const float = new DataView(encodeWav(Float32Array.of(0.1), RATE, 'float32').buffer)
  assert.deepEqual([float.getUint16(20, true), float.getUint16(34, true), float.getUint32(46, true)], [3, 32, 1])
  assert.throws(
    () => encodeWav(TRACK, RATE, /** @type {any} */ ('pcm32')),
    /format: got "pcm32", expected one of pcm16/,
  )
  assert.throws(() => encodeWav([Float32Array.of(NaN)], RATE), /audio: got NaN or infinity/)
})
