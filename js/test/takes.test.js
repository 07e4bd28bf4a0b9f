/** Several prompts and takes in one call; what the prompts share is read and encoded once. */

import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import * as node from 'onnxruntime-node'
import * as web from 'onnxruntime-web'

import { MusicGen } from '../src/index.js'
import { BUNDLE, clip, KIT } from './kit.js'

const ort = /** @type {any} */ (node)
const RATE = 44100
const PROMPT = clip(0.2, RATE)
const OTHER = PROMPT.map((channel) => channel.slice().reverse())
const TEXTS = ['slow house', null]

/** @type {MusicGen} */
let model
before(async () => {
  model = await MusicGen.load(BUNDLE, { ort })
})

/** @param {import('../src/index.js').Generated} generated */
const codesOf = ({ takes }) => takes.map(({ codes }) => codes)

/**
 * The calls of a session: which of its inputs had how many columns, and rows.
 *
 * @param {MusicGen} of
 */
async function countCalls(of) {
  const session = /** @type {any} */ (await of.lm.graph.session())
  const run = session.run
  /** @type {[number, number][]} rows and columns */
  const calls = []
  session.run = (/** @type {any} */ feeds, /** @type {any} */ fetches) => {
    calls.push([feeds.codes.dims[0], feeds.codes.dims[2]])
    return run.call(session, feeds, fetches)
  }
  return { calls, restore: () => (session.run = run) }
}

test('each take of each prompt is the one that a call for it alone gives', async () => {
  const options = { duration: 0.5, description: TEXTS, takes: 2, seed: 5 }
  const { takes } = await model.generateContinuation([PROMPT, OTHER], RATE, options)
  assert.deepEqual(
    takes.map(({ prompt, seed }) => [prompt, seed]),
    [
      [0, 5],
      [0, 6],
      [1, 7],
      [1, 8],
    ],
  )
  for (const { codes, audio, seed, prompt } of takes) {
    const one = { ...options, description: TEXTS[prompt], takes: 1, seed }
    const alone = await model.generateContinuation([PROMPT, OTHER][prompt], RATE, one)
    assert.deepEqual(alone.codes, codes)
    alone.audio[0].forEach((sample, i) => assert.ok(Math.abs(sample - audio[0][i]) < 1e-5))
  }
})

test('a prompt is read once for all its takes, in rows of its own', async () => {
  const { calls, restore } = await countCalls(model)
  await model.generateContinuation([PROMPT, OTHER], RATE, { duration: 0.3, description: 'drums', takes: 3 })
  restore()
  const columns = Math.ceil(0.2 * model.frameRate) + Math.min(...model.lm.delays) + 1
  assert.deepEqual(calls[0], [2 * 2, columns - 1]) // conditioned and unconditional rows of two prompts
  assert.ok(calls.slice(1).every(([rows, read]) => rows === 2 * 2 * 3 && read === 1))
})

test('a prompt and equal texts are encoded once', async () => {
  let [encoded, texts] = [0, 0]
  const [{ encode }, { text }] = [model.codec, model]
  const states = text?.encode
  model.codec.encode = (audio) => (encoded++, encode.call(model.codec, audio))
  if (text) text.encode = (given) => (texts++, /** @type {any} */ (states).call(text, given))
  try {
    await model.generateContinuation([PROMPT, OTHER], RATE, { duration: 0.3, description: 'drums', takes: 3 })
  } finally {
    model.codec.encode = encode
    if (text && states) text.encode = states
  }
  assert.deepEqual([encoded, texts], [2, 1])
})

test('one value holds for all prompts, and a list of one too', async () => {
  const options = { duration: 0.3, seed: 1 }
  const one = await model.generateContinuation([PROMPT, OTHER], RATE, { ...options, description: 'drums' })
  const listed = { ...options, description: ['drums', 'drums'] }
  assert.deepEqual(codesOf(await model.generateContinuation([PROMPT, OTHER], RATE, listed)), codesOf(one))
  const prompts = await model.generateContinuation([PROMPT], RATE, { ...listed, description: ['drums'] })
  assert.deepEqual(prompts.codes, one.codes)
})

test('codes of several prompts go on where they were', async () => {
  const first = await model.generateContinuation([PROMPT, OTHER], RATE, { duration: 0.3, seed: 1 })
  const options = { duration: 0.5, seed: 9 }
  const both = await model.generateContinuation(null, null, { ...options, promptCodes: codesOf(first) })
  const [, second] = first.takes
  const alone = await model.generateContinuation(null, null, { ...options, seed: 10, promptCodes: second.codes })
  assert.deepEqual(both.takes[1].codes, alone.codes)
  second.codes.forEach((codes, k) => assert.deepEqual(both.takes[1].codes[k].slice(0, codes.length), codes))
})

test('a negative text changes what is drawn, and none does not', async () => {
  const codes = (/** @type {any} */ negativeDescription, cfgCoef = 3) =>
    model.generate({ duration: 0.4, seed: 2, description: 'drums', negativeDescription, cfgCoef }).then((r) => r.codes)
  const none = await codes(null)
  assert.deepEqual(await codes(''), none)
  assert.notDeepEqual(await codes('flute'), none)
  assert.deepEqual(await codes('flute', 1), await codes(null, 1))
})

test('a stream of several takes gives the chunks of all', async () => {
  const options = { duration: 0.6, seed: 3, takes: 2, description: TEXTS }
  const whole = await model.generateContinuation([PROMPT, OTHER], RATE, options)
  /** @type {Float32Array[][][]} */
  const chunks = []
  /** @type {Int32Array[][][]} */
  const codes = []
  const listening = {
    ...options,
    chunkSeconds: 0.25,
    onCodes: (/** @type {any} */ _, /** @type {any} */ rows) => codes.push(rows),
  }
  for await (const chunk of model.streamContinuationTakes([PROMPT, OTHER], RATE, listening)) chunks.push(chunk)
  whole.takes.forEach((take, row) => {
    const audio = chunks.flatMap((chunk) => [...chunk[row][0]])
    assert.equal(audio.length, take.audio[0].length)
    audio.forEach((sample, i) => assert.ok(Math.abs(sample - take.audio[0][i]) < 1e-5))
    take.codes.forEach((all, k) => assert.deepEqual(codes.flatMap((part) => [...part[row][k]]), [...all])) // prettier-ignore
  })
  let free = 0
  for await (const chunk of model.streamTakes({ duration: 0.2, takes: 3 })) free += chunk.length
  assert.equal(free, 3)
})

test('lists of other lengths are refused by name, before anything is encoded', async () => {
  const { calls, restore } = await countCalls(model)
  const refuses = (/** @type {any} */ audio, /** @type {any} */ options, /** @type {RegExp} */ message) =>
    assert.rejects(model.generateContinuation(audio, RATE, { duration: 1, ...options }), message)
  const two = [PROMPT, OTHER]
  await refuses(two, { description: ['a', 'b', 'c'] }, /prompts: got 2 in prompts, 3 in description, expected one/)
  await refuses(PROMPT, { description: ['a', 'b'], negativeDescription: ['a', 'b', 'c'] }, /3 in negativeDescription/)
  await refuses([PROMPT, [OTHER[0].slice(9)]], {}, /audio: got 8820, 8811 samples, expected prompts of equal length/)
  await refuses([PROMPT, null], {}, /audio: got null, expected a Float32Array/)
  await refuses(two, { seed: [1, 2, 3] }, /seed: got Array of 3, expected .* a list of 2 seeds/)
  await refuses(two, { seed: [1, '2'] }, /seed: got "2", expected a whole number/)
  const codes = (/** @type {number} */ frames) => model.lm.delays.map(() => new Int32Array(frames))
  await refuses(null, { promptCodes: [codes(3), codes(4)] }, /promptCodes: got 3, 4 frames, expected prompts of equal/)
  await refuses(PROMPT, { styleFeatures: new Float32Array(768) }, /styleFeatures: this model takes no style/)
  await assert.rejects(model.stream({ description: ['a', 'b'] }).next(), /takes: got 2, expected 1: a stream has one/)
  restore()
  assert.deepEqual(calls, [])
})

test('takes in WASM are those in Node', async () => {
  const wasm = await MusicGen.load(BUNDLE, {
    ort: /** @type {any} */ (web),
    executionProviders: ['wasm'],
    variant: 'fp32',
  })
  const options = { duration: 0.4, seed: 3, takes: 2, description: TEXTS }
  const found = await wasm.generateContinuation([PROMPT, OTHER], RATE, options)
  assert.deepEqual(codesOf(found), codesOf(await model.generateContinuation([PROMPT, OTHER], RATE, options)))
})

test('guidance in two calls needs a prefix to change anything', async () => {
  const codes = (/** @type {any} */ of, /** @type {boolean} */ twoStepCfg) =>
    of.lm.generateCodes({
      texts: [new Float32Array(of.lm.textDim * 3).fill(0.3)],
      frames: 20,
      seed: 4,
      sampling: { twoStepCfg },
    })
  const { calls, restore } = await countCalls(model)
  assert.deepEqual(await codes(model, true), await codes(model, false))
  restore()
  assert.ok(calls.every(([rows]) => rows === 2))
  const melody = await MusicGen.load(`${KIT}/bundles/melody`, { ort })
  const counted = await countCalls(melody)
  await codes(melody, true)
  assert.ok(counted.calls.every(([rows]) => rows === 1))
})
