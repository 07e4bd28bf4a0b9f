/** Bars and beats: Python's numbers, and generations that are whole bars. */

import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { before, describe, test } from 'node:test'

import * as node from 'onnxruntime-node'

import { closeLoop, fadeIn, MusicalTime, MusicGen } from '../src/index.js'
import { framesOf, secondsOf } from '../src/musical_time.js'
import { windows } from '../src/windows.js'
import { BUNDLE, clip } from './kit.js'

const ort = /** @type {any} */ (node)
/** What tests/test_musical_time.py wrote. */
const PYTHON = JSON.parse(await readFile(new URL('musical_time.json', import.meta.url), 'utf8'))

/** A Python MusicalTime. @param {any} given */
const musicalTime = ({ bpm, prompt_bars, bars, beats_per_bar, offset }) =>
  new MusicalTime({ bpm, promptBars: prompt_bars, bars, beatsPerBar: beats_per_bar, offset })

describe('arithmetic', () => {
  test('every number of 60 grids is that of Python', () => {
    assert.equal(PYTHON.grids.length, 60)
    for (const grid of PYTHON.grids) {
      const { given, rate, samples, resolved, seconds_of: frames } = grid
      const time = musicalTime(given)
      const upTo20 = (/** @type {(n: number) => number} */ number) => Array.from({ length: 20 }, (_, n) => number(n))
      const free = [null, given.bars].map((bars) => musicalTime({ ...given, prompt_bars: null, bars }))
      const found = {
        ...grid,
        bar: time.bar,
        lines: upTo20((n) => time.line(n, rate)),
        lengths: upTo20((n) => time.length(n, rate)),
        from_end: Object.values(time.prompt(samples, rate)),
        from_start: Object.values(time.prompt(samples, rate, 'start')),
        resolved: [
          ...resolved.slice(0, 2),
          free.map((one) => one.resolved(resolved[0], resolved[1])).map(({ promptBars, bars }) => [promptBars, bars]),
        ],
        seconds_of: [...frames.slice(0, 2), secondsOf(frames[0], frames[1])],
      }
      assert.deepEqual(found, grid)
    }
  })

  test('fades and closed loops are those of Python', () => {
    const audio = PYTHON.audio.map((/** @type {number[]} */ channel) => Float32Array.from(channel))
    for (const [found, wanted] of [
      [fadeIn(audio, 20), PYTHON.fade_in],
      [closeLoop(audio, 34, 16), PYTHON.close_loop],
    ]) {
      assert.equal(found.length, 2)
      found.forEach((/** @type {Float32Array} */ channel, /** @type {number} */ c) => {
        assert.equal(channel.length, wanted[c].length)
        channel.forEach((sample, i) => assert.ok(Math.abs(sample - wanted[c][i]) < 2e-7, `sample ${i} of channel ${c}`))
      })
    }
  })

  test('a closed loop is refused where there is nothing to close it with', () => {
    const audio = clip(1, 8000)
    assert.throws(() => closeLoop(audio, 8001, 0), /samples: got 8001, expected .* 8000, the length of the audio/)
    assert.throws(() => closeLoop(audio, 7990, 11), /crossfadeSamples: got 11, .* 0 to 10, half of the loop, and the/)
    assert.throws(() => closeLoop(audio, 20, 11), /crossfadeSamples: got 11, expected a whole number from 0 to 10/)
    assert.throws(() => fadeIn(audio, 8001), /samples: got 8001/)
  })

  test('frames hold the bars, and the prompt ends with one', () => {
    const codec = { sampleRate: 32000, hop: 640 }
    const time = new MusicalTime({ bpm: 174 })
    const { prompt, all, first, length } = framesOf(time, 2, 5, codec)
    assert.equal(first + time.length(2, 32000), prompt * 640)
    assert.ok(first < 640 && length === time.length(5, 32000))
    assert.ok(all * 640 >= first + length && (all - 1) * 640 < first + length)
    assert.deepEqual(framesOf(new MusicalTime({ bpm: 120 }), 1, 2, codec), {
      ...{ prompt: 100, all: 200, first: 0, length: 128_000 },
    })
  })

  test('a grid is copied, and frozen', () => {
    const time = new MusicalTime({ bpm: 100 })
    assert.deepEqual(new MusicalTime(time), time)
    assert.deepEqual({ ...time }, { bpm: 100, promptBars: null, bars: null, beatsPerBar: 4, offset: 0 })
    assert.throws(() => Object.assign(time, { bpm: 5 }), TypeError)
    assert.throws(() => time.prompt(9, 9), /promptBars: got null/)
  })
})

describe('refused by name', () => {
  /** @type {[any, typeof TypeError | typeof RangeError, RegExp][]} */
  const WRONG = [
    [{ bpm: 'auto' }, TypeError, /bpm: got "auto", expected beats a minute: JavaScript has no estimate of the tempo/],
    [{}, TypeError, /bpm: got undefined, expected a number: beats a minute, 20 to 500/],
    [{ bpm: '120' }, TypeError, /bpm: got "120"/],
    [{ bpm: 0 }, RangeError, /bpm: got 0, expected beats a minute, 20 to 500/],
    [{ bpm: NaN }, RangeError, /bpm: got NaN/],
    [{ bpm: 120, bars: 0 }, RangeError, /bars: got 0, expected a whole number from 1 to 10000/],
    [{ bpm: 120, promptBars: 1.5 }, RangeError, /promptBars: got 1\.5/],
    [{ bpm: 120, promptBars: 4, bars: 4 }, RangeError, /bars: got 4, expected more than the prompt's 4/],
    [{ bpm: 120, beatsPerBar: 33 }, RangeError, /beatsPerBar: got 33/],
    [{ bpm: 120, offset: -1 }, RangeError, /offset: got -1/],
    [{ bpm: 120, prompt_bars: 4 }, TypeError, /musicalTime: unknown option prompt_bars, .*; did you mean promptBars\?/],
    [null, TypeError, /musicalTime: got null, expected an object of options/],
  ]
  for (const [grid, Kind, message] of WRONG) {
    test(message.source, () =>
      assert.throws(
        () => new MusicalTime(grid),
        (/** @type {any} */ error) => error instanceof Kind && message.test(error.message),
      ),
    )
  }

  test('a track that is too short', () => {
    const time = new MusicalTime({ bpm: 120, promptBars: 4, offset: 0.5 })
    assert.throws(
      () => time.prompt(7000, 1000),
      /promptBars: got 4, the track has 3 whole bars of 2\.000 s from 0\.5 s/,
    )
    assert.throws(() => new MusicalTime({ ...time, offset: 50 }).prompt(7000, 1000), /has 0 whole bars/)
  })
})

describe('generations', () => {
  const RATE = 44100
  const TIME = { bpm: 367, promptBars: 2, bars: 4, beatsPerBar: 2 } // of bars that are no whole frames: 0.327 s
  const TRACK = clip(1, RATE) // three bars and a bit

  /** @type {MusicGen} */
  let model
  before(async () => {
    model = await MusicGen.load(BUNDLE, { ort })
  })

  /** @param {AsyncIterable<Float32Array[]>} chunks */
  async function joined(chunks) {
    const all = []
    for await (const [channel] of chunks) all.push(...channel)
    return Float32Array.from(all)
  }

  /** @param {Float32Array} found @param {Float32Array} wanted @param {number} [within] */
  function assertClose(found, wanted, within = 1e-5) {
    assert.equal(found.length, wanted.length)
    found.forEach((sample, i) => assert.ok(Math.abs(sample - wanted[i]) <= within, `sample ${i}`))
  }

  test('a continuation is whole bars from the first bar line of its prompt', async () => {
    const time = new MusicalTime(TIME)
    const { audio, codes } = await model.generateContinuation(TRACK, RATE, { musicalTime: TIME, seed: 4 })
    assert.equal(audio[0].length, time.length(4, model.sampleRate))

    // by hand: the last frames before the third bar line, at the track's rate
    const { prompt, first, length, all } = framesOf(time, 2, 4, model.codec)
    const end = time.line(3, RATE)
    const samples = (prompt * 640 * RATE) / model.sampleRate
    const part = TRACK.map((channel) => channel.slice(end - samples, end))
    assert.equal(part[0].length, samples)
    const plain = await model.generateContinuation(part, RATE, { duration: (all + 0.5) / model.frameRate, seed: 4 })
    assert.deepEqual(codes, plain.codes)
    assertClose(audio[0], plain.audio[0].slice(first, first + length), 0)
  })

  test('streams are the same bars, in chunks', async () => {
    const options = { musicalTime: new MusicalTime(TIME), seed: 4 }
    const { audio } = await model.generateContinuation(TRACK, RATE, options)
    const chunks = model.streamContinuation(TRACK, RATE, { ...options, chunkSeconds: 0.1 })
    assertClose(await joined(chunks), audio[0])
    const free = { musicalTime: { bpm: 367, bars: 3 }, seed: 4 }
    const generated = await model.generate(free)
    assert.equal(generated.audio[0].length, new MusicalTime({ bpm: 367 }).length(3, model.sampleRate))
    assertClose(await joined(model.stream({ ...free, chunkSeconds: 0.5 })), generated.audio[0])
  })

  test('what is not said is as many bars as fit; a track that begins with its bars is silent before them', async () => {
    const time = new MusicalTime({ bpm: 367, bars: 5 })
    const track = clip(time.bar, RATE)
    const options = { seed: 4, takes: 2 }
    const { takes } = await model.generateContinuation(track, RATE, { ...options, musicalTime: time })
    for (const { audio } of takes) assert.equal(audio[0].length, time.length(5, model.sampleRate))
    const { prompt, all: frames } = framesOf(time, 1, 5, model.codec)
    const samples = (prompt * 640 * RATE) / model.sampleRate
    const padded = track.map((channel) => Float32Array.of(...Array(samples - channel.length).fill(0), ...channel))
    assert.ok(padded[0].length > track[0].length)
    const duration = (frames + 0.5) / model.frameRate
    const plain = await model.generateContinuation(padded, RATE, { ...options, duration })
    assert.deepEqual(takes[1].codes, plain.takes[1].codes)
  })

  test('without a prompt and a number of bars, they are those of the duration, one at least', async () => {
    const { duration } = model
    try {
      for (const [seconds, bars] of [
        [1.5, 3],
        [1.4, 2],
        [0.1, 1],
      ]) {
        model.duration = seconds
        const { audio } = await model.generate({ musicalTime: { bpm: 120, beatsPerBar: 1 } })
        assert.equal(audio[0].length, bars * 16_000)
      }
    } finally {
      model.duration = duration
    }
  })

  test('the prompt is brought to whole frames from any rate', async () => {
    /** @type {number[]} */
    const encoded = []
    const { encode } = model.codec
    model.codec.encode = (audio) => (encoded.push(audio[0].length), encode.call(model.codec, audio))
    try {
      for (const rate of [8000, 11025, 32000, 44100, 48001])
        await model.generateContinuation(clip(0.9, rate), rate, { musicalTime: TIME })
    } finally {
      model.codec.encode = encode
    }
    assert.deepEqual(encoded, Array(5).fill(framesOf(new MusicalTime(TIME), 2, 4, model.codec).prompt * 640))
  })

  test('bars in several windows lose no frame', async () => {
    const time = new MusicalTime({ ...TIME, bpm: 346, bars: 12 }) // the exact duration would be a frame short
    const options = { musicalTime: time, maxDuration: 1.3, extendStride: 0.46 }
    const { audio } = await model.generateContinuation(TRACK, RATE, options)
    assert.equal(audio[0].length, time.length(12, model.sampleRate))
    for (let frames = 80; frames < 1500; frames++) {
      const last = [...windows((frames + 0.5) / 50, 1.3, 0.46, 50, 10)].at(-1)
      assert.equal(Number(last?.start) + Number(last?.frames), frames)
    }
  })

  test('refused: another length, and bars that are not there', async () => {
    const call = (/** @type {any} */ options) => model.generateContinuation(TRACK, RATE, options)
    await assert.rejects(call({ musicalTime: TIME, duration: 9 }), /duration: got 9 s and musicalTime, whose bars are/)
    await assert.rejects(call({ musicalTime: 174 }), /musicalTime: got 174, expected an object/)
    await assert.rejects(call({ musicalTime: { bpm: 'auto' } }), /bpm: got "auto"/)
    await assert.rejects(call({ musicalTime: { bpm: 60, promptBars: 1 } }), /the track has 0 whole bars of 4\.000 s/)
    await assert.rejects(
      call({ musicalTime: TIME, maxDuration: 0.5 }),
      /promptBars: got 0\.66 s, expected less than max/,
    )
    const long = { bpm: 20, bars: 10_000, beatsPerBar: 32 }
    await assert.rejects(model.generate({ musicalTime: long }), /musicalTime: got 960000\.?\d* s, expected .* 86400 s/)
    await assert.rejects(model.generate({ musicalTime: TIME }), /promptBars: got 2, expected null: there is no prompt/)
    const promptCodes = model.lm.delays.map(() => [1, 2])
    const coded = { musicalTime: TIME, promptCodes }
    await assert.rejects(model.generateContinuation(null, null, coded), /promptCodes: got musicalTime too, but codes/)
    await assert.rejects(model.stream({ musicalTime: TIME }).next(), /promptBars: got 2/)
  })
})
