/** Options and prompts are refused by name, before anything is generated or allocated. */

import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import * as node from 'onnxruntime-node'

import { delay, MusicGen, uniforms, windows } from '../src/index.js'
import { bundleFiles, BUNDLE, clip, KIT } from './kit.js'

const ort = /** @type {any} */ (node)
const RATE = 44100
const PROMPT = clip(0.2, RATE)

/** @type {MusicGen} */
let model
before(async () => {
  model = await MusicGen.load(BUNDLE, { ort })
})

/** @param {AsyncIterable<Float32Array[]>} chunks */
async function drain(chunks) {
  for await (const chunk of chunks) assert.ok(chunk.length)
}

/** Every entry point, by name. @type {Record<string, (options: any) => Promise<any>>} */
const CALLS = {
  generate: (options) => model.generate(options),
  generateContinuation: (options) => model.generateContinuation(PROMPT, RATE, options),
  stream: (options) => drain(model.stream(options)),
  streamContinuation: (options) => drain(model.streamContinuation(PROMPT, RATE, options)),
}

/** @type {[object, typeof TypeError | typeof RangeError, RegExp][]} */
const WRONG = [
  [{ top_k: 5 }, TypeError, /unknown option top_k, expected one of .*topK.*; did you mean topK\?$/],
  [{ descriptions: ['a'] }, TypeError, /; did you mean description\?$/],
  [{ two_step_cfg: true }, TypeError, /; did you mean twoStepCfg\?$/],
  [{ twoStepCfg: 1 }, TypeError, /twoStepCfg: got 1, expected true or false/],
  [{ styleFeatures: 1 }, TypeError, /styleFeatures: got 1, expected an array/],
  [{ negativeDescription: 1 }, TypeError, /negativeDescription: got 1, expected a string/],
  [{ constructor: 5 }, TypeError, /unknown option constructor/],
  [{ 'a\nb\x1b[2J': 5 }, TypeError, /unknown option a\\u000ab\\u001b\[2J, expected one of/],
  [{ ['x'.repeat(99)]: 5 }, TypeError, /unknown option x{57}\.\.\., expected one of [^?]*$/],
  [{ topK: Symbol('x\n') }, TypeError, /topK: got Symbol\(x\\u000a\), expected a number/],
  [{ topK: { constructor: { name: 'a\nb' } } }, TypeError, /topK: got an a\\u000ab, expected a number/],
  [{ topK: { constructor: { name: Symbol('x') } } }, TypeError, /topK: got an object, expected a number/],
  [{ description: '\u2028'.repeat(9), topK: '\u2028' }, TypeError, /topK: got "\\u2028", expected a number/],
  [{ seed: 10n ** 9999n }, RangeError, /seed: got 10{56}\.\.\., expected a whole number/],
  [{ description: 5 }, TypeError, /description: got 5, expected a string/],
  [{ description: ['drums', 5] }, TypeError, /description\[1\]: got 5, expected a string/],
  [{ description: [] }, RangeError, /description: got a list of 0, expected one for each prompt/],
  [
    { description: 'a'.repeat(20_000) },
    RangeError,
    /description: got a text of 20000 characters, expected 10000 at most/,
  ],
  [Object.create({ duration: 1e9 }), RangeError, /duration: got 1000000000 s/],
  [{ description: 'drums \ud83d' }, RangeError, /description: got half a surrogate pair/],
  [{ duration: '1' }, TypeError, /duration: got "1", expected a number of seconds/],
  [{ duration: null }, TypeError, /duration: got null/],
  [{ duration: 0.01 }, RangeError, /duration: got 0\.01 s, expected 0\.02 s \(a frame\) or more, at most 86400 s/],
  [{ duration: -1 }, RangeError, /duration: got -1 s/],
  [{ duration: NaN }, RangeError, /duration: got NaN s/],
  [{ duration: 1e9 }, RangeError, /duration: got 1000000000 s, expected .* at most 86400 s/],
  [{ duration: 1e9, maxDuration: 1e9 }, RangeError, /at most \d+ s/],
  [{ maxDuration: 1e9 }, RangeError, /maxDuration: got 1000000000 s/],
  [{ duration: 86400, extendStride: 0.02 }, RangeError, /extendStride: got 0\.02 s .* makes 4320000 windows/],
  [{ extendStride: 1e9 }, RangeError, /extendStride: got 1000000000 s/],
  [{ temperature: 1e-40 }, RangeError, /temperature: got 1e-40, expected 0 \(greedy\) or at least 1e-6/],
  [{ temperature: 1e39 }, RangeError, /temperature: got 1e\+39/],
  [{ temperature: NaN }, RangeError, /temperature: got NaN/],
  [{ temperature: '1' }, TypeError, /temperature: got "1", expected a number/],
  [{ topK: 2 ** 63 }, RangeError, /topK: got 9223372036854776000, expected a whole number from 0 \(off\) to 2\^53 - 1/],
  [{ topK: 5n }, TypeError, /topK: got 5n/],
  [{ topK: true }, TypeError, /topK: got true/],
  [{ topP: -0.1 }, RangeError, /topP: got -0\.1/],
  [{ topP: null }, TypeError, /topP: got null/],
  [{ cfgCoef: 1e39 }, RangeError, /cfgCoef: got 1e\+39, expected a finite number, 1000000 at most/],
  [{ cfgCoef: Infinity }, RangeError, /cfgCoef: got Infinity/],
  [{ cfgCoefBeta: -1e39 }, RangeError, /cfgCoefBeta: got -1e\+39/],
  [{ melody: '' }, TypeError, /melody: got "", expected an array/],
  [{ melody: 0 }, TypeError, /melody: got 0/],
  [{ seed: '7' }, TypeError, /seed: got "7", expected a whole number from 0 to 2\^64 - 1/],
  [{ seed: null }, TypeError, /seed: got null/],
  [{ seed: [7, 8] }, RangeError, /seed: got Array of 2, expected .* or a list of 1 seeds/],
  [{ seed: -1 }, RangeError, /seed: got -1/],
  [{ seed: -1n }, RangeError, /seed: got -1/],
  [{ seed: 0.5 }, RangeError, /seed: got 0\.5/],
  [{ seed: NaN }, RangeError, /seed: got NaN/],
  [{ seed: 2n ** 64n }, RangeError, /seed: got 18446744073709551616/],
  [{ seed: 2 ** 60 }, RangeError, /seed: got the number .* expected a BigInt above 2\^53 - 1/],
  [{ takes: 1e5 }, RangeError, /takes: got 100000, expected a whole number from 1 to 1000/],
  [{ takes: 1.5 }, RangeError, /takes: got 1\.5/],
  [{ takes: '2' }, TypeError, /takes: got "2"/],
  [{ evalQ: 2.5 }, RangeError, /evalQ: got 2\.5/],
  [{ excerptLength: 0 }, RangeError, /excerptLength: got 0 s/],
  [{ excerptStart: -1 }, RangeError, /excerptStart: got -1 s/],
  [{ melodySampleRate: '44100' }, TypeError, /melodySampleRate: got "44100", expected a number: samples per second/],
  [{ signal: {} }, TypeError, /signal: got an Object, expected an AbortSignal/],
  [{ onProgress: 1 }, TypeError, /onProgress: got 1, expected a function/],
]
for (const [options, Kind, message] of WRONG) {
  const refused = (/** @type {any} */ error) => error instanceof Kind && message.test(error.message)
  test(`every call refuses ${Object.keys(options)}: ${message.source}`, async () => {
    for (const [name, call] of Object.entries(CALLS)) await assert.rejects(call(options), refused, name)
  })
}

test('refused: options that another call takes, and what is no options', async () => {
  await assert.rejects(CALLS.generate({ chunkSeconds: 1 }), /generate: unknown option chunkSeconds/)
  await assert.rejects(CALLS.generate({ promptCodes: [] }), /generate: unknown option promptCodes/)
  await assert.rejects(CALLS.generateContinuation({ onCodes: () => {} }), /unknown option onCodes/)
  await assert.rejects(CALLS.stream({ chunkSeconds: '1' }), /chunkSeconds: got "1"/)
  await assert.rejects(CALLS.stream({ chunkSeconds: 1e9 }), /chunkSeconds: got 1000000000 s/)
  for (const options of [null, 'drums', [1]]) await assert.rejects(CALLS.generate(options), /an object of options/)
})

test('a day is planned, and many takes of it are refused before anything is allocated', async () => {
  assert.equal([...windows(86_400, 30, 18, 50, 0)].length, 4800)
  assert.throws(() => windows(Infinity, 30, 18, 50, 0), /duration: got Infinity s/)
  const options = { duration: 86_400, extendStride: 18, maxDuration: 30 }
  const before = process.memoryUsage().arrayBuffers
  await assert.rejects(
    model.generate({ ...options, takes: 1000 }),
    /takes: needs \d+ GB of memory for codes, and KV caches/,
  )
  assert.ok(process.memoryUsage().arrayBuffers - before < 2 ** 26)
})

test('the widest options run', async () => {
  const extremes = { topK: 2 ** 53 - 1, cfgCoef: -1e6, duration: 0.02, description: 'drums' }
  for (const temperature of [0, 1e-6, 1e6]) {
    const { audio } = await model.generate({ ...extremes, temperature, seed: 2n ** 64n - 1n })
    assert.equal(audio[0].length, 640)
    assert.ok(audio[0].every(Number.isFinite))
  }
})

test('the seeds of takes are exact at the end of the numbers', async () => {
  const { takes } = await model.generate({ duration: 0.02, seed: 2 ** 53 - 1, takes: 3 })
  assert.deepEqual(
    takes.map((take) => take.seed),
    [2 ** 53 - 1, 2n ** 53n, 2n ** 53n + 1n],
  )
  await assert.rejects(model.generate({ duration: 0.02, seed: 2n ** 64n - 1n, takes: 2 }), /seed: got .* to 2\^64 - 2/)
})

test('LanguageModel refuses its options by name', async () => {
  const { lm } = model
  const refuses = (/** @type {any} */ options, /** @type {RegExp} */ message) =>
    assert.rejects(lm.generateCodes(options), message)
  await refuses({ frames: 9, descriptions: [] }, /generateCodes: unknown option descriptions/)
  await refuses({ frames: 9, sampling: { top_k: 1 } }, /sampling: unknown option top_k/)
  await refuses({ frames: 9, sampling: { temperature: 1e-40 } }, /temperature: got 1e-40/)
  await refuses({ frames: 1e9 }, /frames: got 1000000000, expected a whole number from 1 to 180000/)
  await refuses({ frames: 2.5 }, /frames: got 2\.5/)
  await refuses({ duration: 1e9 }, /duration: got 1000000000 s/)
  await refuses({ frames: 9, batch: 1e5 }, /batch: got 100000/)
  await refuses({ frames: 9, seed: ['7'] }, /seed: got "7"/)
  await refuses({ frames: 9, uniform: [0.5] }, /uniform: got Array of 1, expected a Float32Array/)
  await refuses({ frames: 9, texts: [[1, 2]] }, /texts: got Array of 2, expected a Float32Array or null/)
  await refuses({ frames: 9, texts: [new Float32Array(lm.textDim).fill(NaN)] }, /texts: got \d+ numbers, .* finite/)
  await refuses({ frames: 9, texts: [new Float32Array(lm.textDim * 2049)] }, /texts: got a text of 2049 tokens/)
  await refuses({ frames: 180_000, batch: 1000 }, /batch: needs \d+ GB of memory/)
  await refuses({ frames: 180_000, batch: 2, takes: 500 }, /takes: needs \d+ GB of memory/)
  await refuses({ frames: 9, prompt: 5 }, /prompt: got 5, expected a list/)
  await assert.rejects(lm.decoder(/** @type {any} */ ({})), /capacity: got undefined/)
  await assert.rejects(lm.decoder({ capacity: 1e12 }), /capacity: got 1000000000000/)
})

test('a decoder refuses columns beyond its capacity', async () => {
  const decoder = await model.lm.decoder({ capacity: 2 })
  const columns = (/** @type {number} */ count) => [model.lm.delays.map(() => new Int32Array(count))]
  await assert.rejects(
    decoder.logits(columns(3)),
    /codes: got 1 rows of 3 columns, expected 1 rows and at most 2 columns/,
  )
  await decoder.logits(columns(2))
  await assert.rejects(decoder.logits(columns(1)), /at most 0 columns: the capacity is 2/)
  await assert.rejects(decoder.logits([...columns(1), ...columns(1)]), /codes: got 2 rows/)
  decoder.release()
})

test('a stream of a day begins at once, and is left at once', async () => {
  const controller = new AbortController()
  const stream = model.stream({ duration: 86_400, extendStride: 1, chunkSeconds: 0.1, signal: controller.signal })
  const started = performance.now()
  assert.ok((await stream.next()).value)
  controller.abort(new Error('enough'))
  await assert.rejects(drain(stream), /enough/)
  assert.ok(performance.now() - started < 5000)
})

test('the signal is heard before the first step: in a long conversion, and while a text is read', async () => {
  const long = [new Float32Array(44_101 * 20)]
  for (const options of [{ duration: 29 }, { duration: 29, description: 'a '.repeat(900) }]) {
    const controller = new AbortController()
    let steps = 0
    const running = model.generateContinuation(long, 44_101, {
      ...options,
      signal: controller.signal,
      onProgress: () => steps++,
    })
    setTimeout(() => controller.abort(new Error('cancelled')), 20)
    await assert.rejects(running, /cancelled/)
    assert.equal(steps, 0)
  }
})

test('MusicGen.load refuses its options by name', async () => {
  const load = (/** @type {any} */ options) => MusicGen.load(BUNDLE, { ort, ...options })
  await assert.rejects(load({ variants: 'int4' }), /load: unknown option variants, expected one of .*variant/)
  await assert.rejects(load({ variant: 4 }), /variant: got 4, expected a string/)
  await assert.rejects(load({ hashes: 'no' }), /hashes: got "no", expected true or false/)
  await assert.rejects(load({ executionProviders: 'cpu' }), /executionProviders: got "cpu", expected a list/)
  await assert.rejects(load({ onProgress: true }), /onProgress: got true/)
})

test('session options that hold themselves are refused', async () => {
  const extra = /** @type {any} */ ({})
  extra.session = extra
  for (const native of [true, false, undefined]) {
    await assert.rejects(MusicGen.load(BUNDLE, { ort, native, sessionOptions: { extra } }), {
      name: 'TypeError',
      message: /sessionOptions\.extra: holds itself or a bigint, expected texts by their names/,
    })
  }
})

test('promptCodes continue the codes of an earlier generation, in one call and as a stream', async () => {
  const options = { duration: 0.6, seed: 4, description: 'drums' }
  const first = await model.generateContinuation(PROMPT, RATE, { ...options, duration: 0.4 })
  const again = await model.generateContinuation(PROMPT, RATE, options)
  const promptCodes = again.codes.map((codes) => codes.slice(0, 10)) // the prompt's own
  const { codes, audio, sampleRate } = await model.generateContinuation(null, null, { ...options, promptCodes })
  assert.deepEqual(codes, again.codes)
  assert.deepEqual(audio, again.audio)
  const lists = promptCodes.map((row) => [...row])
  assert.deepEqual((await model.generateContinuation(null, null, { ...options, promptCodes: lists })).codes, codes)

  const longer = { ...options, promptCodes: first.codes }
  const whole = await model.generateContinuation(null, null, { ...longer, takes: 2 })
  whole.codes.forEach((row, k) => assert.deepEqual(row.slice(0, 20), first.codes[k]))
  whole.takes.forEach((take) => assert.equal(take.codes[0].length, 30))
  /** @type {number[]} */
  const samples = []
  for await (const [chunk] of model.streamContinuation(null, null, { ...longer, chunkSeconds: 0.2 }))
    samples.push(...chunk)
  assert.equal(samples.length, 0.6 * sampleRate)
  samples.forEach((sample, i) => assert.ok(Math.abs(sample - whole.audio[0][i]) < 1e-5))
})

test('promptCodes that are none are refused by name', async () => {
  const rows = (/** @type {any} */ row) => Array(4).fill(row)
  const refuses = (/** @type {any} */ promptCodes, /** @type {RegExp} */ message, /** @type {any} */ audio = null) =>
    assert.rejects(model.generateContinuation(audio, RATE, { duration: 1, promptCodes }), message)
  await refuses(rows(Float32Array.of(1, 2)), /promptCodes: got Float32Array of 2, which is audio; expected codes/)
  await refuses(rows([0.5]), /promptCodes: got code 0\.5, expected whole numbers, 0 \.\. 63/)
  await refuses(rows(BigInt64Array.of(1n)), /promptCodes: got code 1n, expected whole numbers/)
  await refuses(rows([64]), /promptCodes: got code 64, expected whole numbers, 0 \.\. 63/)
  await refuses(rows([-1]), /promptCodes: got code -1/)
  await refuses(rows([]), /promptCodes: got 0\.00 s/)
  await refuses(rows(new Int32Array(50)), /promptCodes: got 1\.00 s, expected less than duration, 1 s/)
  await refuses(rows(Array(3)), /promptCodes: got code undefined/)
  await refuses(rows(new DataView(new ArrayBuffer(4))), /promptCodes: got Array of 4, expected 4 codebooks/)
  await refuses([[1], [1]], /promptCodes: got 2 codebooks, expected 4 codebooks/)
  await refuses([[1], [1], [1], [1, 2]], /promptCodes: .* of equal length/)
  await refuses(new Int32Array(4), /promptCodes: got Int32Array of 4, expected 4 codebooks/)
  await refuses(rows([1]), /promptCodes: got audio too, expected one of them/, PROMPT)
})

test('audio in another form is refused by name', async () => {
  const refuses = (/** @type {any} */ audio, /** @type {RegExp} */ message) =>
    assert.rejects(model.generateContinuation(audio, RATE, { duration: 1 }), message)
  await refuses(null, /audio: got null, expected a Float32Array/)
  await refuses(new Int16Array(9), /audio: got Int16Array of 9, .*; divide PCM by its full scale/)
  await refuses([new Int32Array(9)], /audio: got a list of Int32Array of 9, .* pass codes as promptCodes/)
  await refuses(new Float64Array(9), /audio: got Float64Array of 9, expected a Float32Array/)
  await refuses(
    Array.from({ length: 500 }, () => new Float32Array(2)),
    /audio: got 500 channels of 2 samples, expected one array per channel/,
  )
  for (const rate of [0, 44100.5, Infinity])
    await assert.rejects(model.generateContinuation(PROMPT, rate, { duration: 1 }), /sampleRate: got .* samples per/)
})

test('the codec refuses what it cannot read, by name', async () => {
  const { codec } = model
  const codes = await codec.encode([PROMPT[0]])
  const noise = PROMPT[0]
  const changed = (/** @type {number} */ code) => codes.map((row, k) => (k ? row : row.with(0, code)))
  const stream = (/** @type {any} */ parts, /** @type {any} */ size) => async () => {
    for await (const audio of codec.decodeStream(parts, size)) assert.ok(audio.length)
  }
  for (const [call, message] of /** @type {[() => Promise<any>, RegExp][]} */ ([
    [() => codec.encode([new Float32Array(0)]), /^audio: got a list of Float32Array of 0, expected .* not empty/],
    [() => codec.encode([noise, noise]), /^audio: got 2 channels, expected 1: give it to convertAudio$/],
    [() => codec.encode([noise.with(5, NaN)]), /^audio: got NaN or infinity, expected finite samples$/],
    [() => codec.decode([]), /^codes: got Array of 0, expected \d codebooks/],
    [() => codec.decode(codes.slice(1)), /^codes: got \d codebooks, expected \d codebooks/],
    [() => codec.decode(codes.map(() => new Int32Array(0))), /^codes: got no frames, expected one or more$/],
    [() => codec.decode(changed(-1)), /^codes: got code -1, expected whole numbers, 0 \.\. \d+$/],
    [() => codec.decode(changed(codec.card)), /^codes: got code \d+, expected whole numbers/],
    [stream([[codes]], 0.5), /^size: got 0\.5, expected 1 frame or more$/],
    [stream([[codes], [changed(-1)]], 5), /^codes: got code -1/],
  ])) {
    await assert.rejects(call, (error) => message.test(/** @type {Error} */ (error).message), String(message))
  }
})

test('arithmetic refuses what is no number', () => {
  const wrong = [
    ...[() => uniforms(-1, 1, 4), () => uniforms(1, 1e12, 4), () => uniforms(1, NaN, 4), () => uniforms(1, 1, 1e9)],
    ...[() => windows(1, 30, 18, 0, 0), () => windows(1, NaN, 18, 50, 0), () => windows(1, 30, 18, 50, -1)],
    ...[() => windows(60, 30, NaN, 50, 0), () => windows(60, 30, -1, 50, 0), () => windows(60, 30, 1e-320, 50, 0)],
    ...[() => delay([[1]], [0], 1e15, 9), () => delay([[1, 2]], [0], 1, 9), () => delay([[1]], [0], NaN, 9)],
  ]
  for (const call of wrong) assert.throws(call, /: got .*expected/, String(call))
})

test('audio of less than a sample is refused, and a rate of any size is converted at once', async () => {
  const one = new Float32Array(1)
  await assert.rejects(
    model.generateContinuation(one, 44_100, {}),
    /audio: got 1 samples at 44100 Hz, less than one at/,
  )
  const started = performance.now()
  await model.generateContinuation(new Float32Array(2_000), 999_983, { duration: 0.1 }) // 32000 kernels, 64 samples
  assert.ok(performance.now() - started < 3000)
})

test('a prompt that fills a window is refused in seconds', () => {
  assert.throws(() => windows(3, 1, 0.5, 50, 60), /fills a window: got a prompt of 1\.2 s, windows of 1 s every 0\.5 s/)
})
