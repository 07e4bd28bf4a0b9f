import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import * as node from 'onnxruntime-node'
import * as web from 'onnxruntime-web'

import { MusicGen, uniforms } from '../src/index.js'
import { bundleFiles, BUNDLE, clip } from './kit.js'

const ort = /** @type {any} */ (node)
const RATE = 44100
const PROMPT = clip(0.2, RATE)

/** @type {MusicGen} */
let model
before(async () => {
  model = await MusicGen.load(BUNDLE, { ort })
})

/** @param {AsyncIterable<Float32Array[]>} chunks */
async function collect(chunks) {
  const all = []
  for await (const chunk of chunks) all.push(chunk)
  return all
}

test('a stream gives the same audio in chunks', async () => {
  const options = { duration: 1.3, seed: 3, description: 'slow house' }
  const { audio, sampleRate } = await model.generateContinuation(PROMPT, RATE, options)
  const chunks = await collect(model.streamContinuation(PROMPT, RATE, { ...options, chunkSeconds: 0.5 }))
  assert.deepEqual(
    chunks.map((chunk) => chunk[0].length / sampleRate),
    [0.5, 0.5, 0.3],
  )
  const joined = chunks.flatMap((chunk) => [...chunk[0]])
  joined.forEach((x, i) => assert.ok(Math.abs(x - audio[0][i]) < 1e-5))
  const free = await collect(model.stream({ ...options, chunkSeconds: 2 }))
  assert.equal(free[0][0].length, 1.3 * sampleRate)
})

test('a stream reports its codes', async () => {
  const options = { duration: 0.6, seed: 3 }
  /** @type {Int32Array[][]} */
  const parts = []
  const onCodes = (/** @type {Int32Array[]} */ codes) => parts.push(codes)
  await collect(model.streamContinuation(PROMPT, RATE, { ...options, chunkSeconds: 0.2, onCodes }))
  const { codes } = await model.generateContinuation(PROMPT, RATE, options)
  codes.forEach((all, k) =>
    assert.deepEqual(
      parts.flatMap((part) => [...part[k]]),
      [...all],
    ),
  )
})

test('chunks come during the generation, which does not wait for the consumer', async () => {
  /** @type {number[]} */
  const progress = []
  const onProgress = (/** @type {number} */ done) => progress.push(done)
  const chunks = model.streamContinuation(PROMPT, RATE, { duration: 2, seed: 3, chunkSeconds: 0.2, onProgress })
  await chunks.next()
  assert.ok(progress.length < 50, `${progress.length} columns before the first chunk`)
  const { length } = progress
  await new Promise((resolve) => setTimeout(resolve, 300))
  assert.ok(progress.length > length)
  await chunks.return()
  const left = progress.length
  await new Promise((resolve) => setTimeout(resolve, 100))
  assert.equal(progress.length, left)
  assert.ok(left < 100)
})

test('take b is the take of seed + b', async () => {
  const options = { duration: 0.6, description: 'slow house' }
  const { takes, codes, audio } = await model.generateContinuation(PROMPT, RATE, { ...options, seed: 5, takes: 2 })
  assert.deepEqual(
    takes.map((take) => take.seed),
    [5, 6],
  )
  assert.deepEqual([codes, audio], [takes[0].codes, takes[0].audio])
  for (const take of takes) {
    const alone = await model.generateContinuation(PROMPT, RATE, { ...options, seed: take.seed })
    assert.deepEqual(alone.codes, take.codes)
  }
  const large = await model.generate({ ...options, seed: 2n ** 64n - 1n })
  assert.equal(large.seed, 2n ** 64n - 1n)
})

test('a random seed is returned, and repeats the take', async () => {
  const first = await model.generate({ duration: 0.3 })
  const again = await model.generate({ duration: 0.3, seed: first.seed })
  assert.deepEqual(again.codes, first.codes)
  assert.notDeepEqual((await model.generate({ duration: 0.3 })).codes, first.codes)
})

test('uniform numbers instead of a seed', async () => {
  const uniform = uniforms(9, 23, 4)
  const codes = await model.lm.generateCodes({ frames: 20, uniform })
  assert.deepEqual(codes, await model.lm.generateCodes({ frames: 20, seed: 9 }))
  await assert.rejects(model.lm.generateCodes({ frames: 21, uniform }), /uniform: got 92 numbers, expected 24 x 1 x 4/)
})

test('an empty description is no description', async () => {
  const codes = (/** @type {any} */ description) =>
    model.generate({ duration: 0.3, seed: 1, description }).then((r) => r.codes)
  const none = await codes(null)
  assert.deepEqual(await codes(''), none)
  assert.deepEqual(await codes(undefined), none)
  assert.notDeepEqual(await codes(' '), none)
})

test('onProgress counts every column', async () => {
  /** @type {any[][]} */
  const reports = []
  await model.generate({ duration: 0.3, onProgress: (...columns) => reports.push(columns) })
  assert.deepEqual(
    reports,
    Array.from({ length: 18 }, (_, i) => [i + 1, 18, { unit: 'columns', file: null }]),
  )
})

test('an AbortSignal cancels', async () => {
  const controller = new AbortController()
  const options = { duration: 5, signal: controller.signal }
  const columns = (/** @type {number} */ done) => done === 5 && controller.abort(new Error('enough'))
  await assert.rejects(model.generate({ ...options, onProgress: columns }), /enough/)
  await assert.rejects(model.generate(options), /enough/)
  await assert.rejects(collect(model.stream({ ...options, duration: 1 })), /enough/)
  const later = new AbortController()
  const chunks = model.stream({ duration: 3, chunkSeconds: 0.2, signal: later.signal })
  await chunks.next()
  later.abort(new Error('stop'))
  await assert.rejects(collect(chunks), /stop/)
  assert.equal((await model.generate({ duration: 0.1, seed: 1 })).audio[0].length, 3200)
})

test('messages arrive while WASM computes', async () => {
  const wasm = await MusicGen.load(BUNDLE, { ort: /** @type {any} */ (web), executionProviders: ['wasm'] })
  const controller = new AbortController()
  const { port1, port2 } = new MessageChannel()
  port1.onmessage = () => controller.abort(new Error('cancelled'))
  const onProgress = (/** @type {number} */ done) => done === 3 && port2.postMessage(null)
  await assert.rejects(wasm.generate({ duration: 5, onProgress, signal: controller.signal }), /cancelled/)
  port1.close()
})

test('pieces that are longer than a call of the codec are the same audio', async () => {
  const codes = model.lm.delays.map((_, k) => Int32Array.from({ length: 1_650 }, (_, t) => (t * 7 + k) % model.lm.card))
  const whole = await model.codec.decode(codes)
  /** @type {Float32Array[][][]} */
  const pieces = []
  for await (const piece of model.codec.decodeStream([[codes]], 1_700)) pieces.push(piece)
  assert.equal(pieces.length, 1)
  assert.equal(pieces[0][0][0].length, whole[0].length)
  whole[0].forEach((x, i) => assert.ok(Math.abs(x - pieces[0][0][0][i]) < 1e-5))
})

test('several generations run at a time', async () => {
  const codes = (/** @type {number} */ seed) => model.generate({ duration: 0.4, seed }).then((r) => r.codes)
  const alone = [await codes(1), await codes(2)]
  assert.deepEqual(await Promise.all([codes(1), codes(2)]), alone)
})

/** @type {[string, any, any, any, RegExp][]} */
const WRONG = [
  [
    'no audio',
    [],
    RATE,
    {},
    /audio: got Array of 0, expected a Float32Array, or a list of one per channel, of equal length and not empty/,
  ],
  ['channels of other lengths', [PROMPT[0], new Float32Array(3)], RATE, {}, /of equal length/],
  ['an array of numbers', [1, 2], RATE, {}, /expected a Float32Array/],
  ['NaN', Float32Array.of(NaN), RATE, {}, /audio: got NaN or infinity/],
  ['no rate', PROMPT, undefined, {}, /sampleRate: got undefined/],
  [
    'a prompt as long as the whole',
    PROMPT,
    RATE,
    { duration: 0.2 },
    /audio: got 0\.20 s, expected less than duration, 0\.2 s/,
  ],
  ['a prompt as long as a window', PROMPT, RATE, { duration: 9, maxDuration: 0.2 }, /less than maxDuration, 0\.2 s/],
  ['no duration', PROMPT, RATE, { duration: Infinity }, /duration: got Infinity s/],
  ['a stride of nothing', PROMPT, RATE, { duration: 9, maxDuration: 1, extendStride: 0 }, /extendStride: got 0 s/],
  [
    'temperature',
    PROMPT,
    RATE,
    { duration: 1, temperature: -1 },
    /temperature: got -1, expected 0 \(greedy\) or at least 1e-6/,
  ],
  ['topK', PROMPT, RATE, { duration: 1, topK: 2.5 }, /topK: got 2\.5/],
  ['topP', PROMPT, RATE, { duration: 1, topP: 2 }, /topP: got 2/],
  ['cfgCoef', PROMPT, RATE, { duration: 1, cfgCoef: NaN }, /cfgCoef: got NaN/],
  [
    'cfgCoefBeta',
    PROMPT,
    RATE,
    { duration: 1, cfgCoefBeta: 2 },
    /cfgCoefBeta: double guidance needs a melody or style model/,
  ],
  [
    'a melody',
    PROMPT,
    RATE,
    { duration: 1, melody: PROMPT, melodySampleRate: RATE },
    /melody: this model takes no melody/,
  ],
  ['a seed', PROMPT, RATE, { duration: 1, seed: -1 }, /seed: got -1, expected a whole number from 0 to 2\^64 - 1/],
  ['half a seed', PROMPT, RATE, { duration: 1, seed: 0.5 }, /seed: got 0\.5/],
  ['no takes', PROMPT, RATE, { duration: 1, takes: 0 }, /takes: got 0, expected a whole number from 1 to 1000/],
]
for (const [name, audio, rate, options, message] of WRONG) {
  test(`refused: ${name}`, () => assert.rejects(model.generateContinuation(audio, rate, options), message))
}

test('refused: codes and streams out of range', async () => {
  const codes = (/** @type {number} */ code) => [[[0], [0], [0], [code]]]
  await assert.rejects(
    model.lm.generateCodes({ prompt: codes(64), frames: 9 }),
    /got code 64, expected whole numbers, 0 \.\. 63/,
  )
  await assert.rejects(model.lm.generateCodes({ prompt: [[[0]]], frames: 9 }), /got 1 codebooks, expected 4/)
  await assert.rejects(
    model.lm.generateCodes({ prompt: codes(1), frames: 1 }),
    /requested 1 frames, but the prompt already has 1/,
  )
  await assert.rejects(model.lm.generateCodes({}), /got frames undefined and duration undefined, expected one of them/)
  await assert.rejects(model.lm.generateCodes({ frames: 9, texts: [new Float32Array(5)] }), /texts: got 5 numbers/)
  await assert.rejects(
    model.lm.generateCodes({ frames: 9, batch: 2, texts: [null] }),
    /rows: got 1, 2 in prompt, texts, negatives and batch/,
  )
  await assert.rejects(collect(model.stream({ chunkSeconds: 0 })), /chunkSeconds: got 0 s, expected 0\.02/)
  await assert.rejects(
    collect(model.stream({ takes: 2 })),
    /takes: got 2, expected 1: a stream has one take; .* streamTakes/,
  )
})

test('a description without a text encoder is refused', async () => {
  const files = await bundleFiles()
  const tree = JSON.parse(String(files.get('manifest.json')))
  delete tree.graphs.text_encoder
  for (const entry of Object.values(tree.variants)) delete entry.graphs.text_encoder
  files.set('manifest.json', Buffer.from(JSON.stringify(tree)))
  const mute = await MusicGen.load(files, { ort })
  await assert.rejects(
    mute.generate({ description: 'drums', duration: 0.2 }),
    /contains no text encoder; export it again with --text/,
  )
  assert.equal((await mute.generate({ duration: 0.2 })).audio[0].length, 6400)
})

test('a tokenizer of your own', async () => {
  const own = await MusicGen.load(BUNDLE, { ort, tokenizer: () => ({ encode: () => ({ ids: [1] }) }) })
  assert.equal((await own.text?.encode('anything'))?.length, own.lm.textDim)
})
