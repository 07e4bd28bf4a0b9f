import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import * as ort from 'onnxruntime-node'

import { Engine } from '../electron/engine.js'
import { validateContinue } from '../electron/requests.js'
import { MusicGen } from '../src/index.js'
import { BUNDLE, clip } from './kit.js'

const PROMPT = clip(0.2, 44100)

/** @type {Engine} */
let engine
/** @type {number[][]} */
const loaded = []
before(() => {
  engine = new Engine(BUNDLE, (...bytes) => loaded.push(bytes))
})
after(() => engine.close())

test('the chunks are the audio that the model generates', async () => {
  /** @type {Float32Array[][]} */
  const chunks = []
  /** @type {number[][]} */
  const columns = []
  const options = { duration: 1, seed: 4, description: 'slow house' }
  const listen = {
    onChunk: (/** @type {Float32Array[]} */ chunk) => chunks.push(chunk),
    onProgress: (/** @type {number[]} */ ...done) => columns.push(done),
  }
  await engine.continue(PROMPT, 44100, { ...options, chunkSeconds: 0.4 }, listen)
  const model = await MusicGen.load(BUNDLE, { ort: /** @type {any} */ (ort) })
  const { audio } = await model.generateContinuation(PROMPT, 44100, options)
  const all = chunks.flatMap((chunk) => [...chunk[0]])
  assert.equal(all.length, audio[0].length)
  all.forEach((x, i) => assert.ok(Math.abs(x - audio[0][i]) < 1e-5))
  assert.deepEqual(columns[columns.length - 1], [columns.length, columns.length])
  assert.equal(loaded[loaded.length - 1][0], loaded[0][1])
  assert.equal((await engine.ready).sampleRate, model.sampleRate)
})

test('two generations at a time', async () => {
  const lengths = await Promise.all(
    [0.5, 0.8].map(async (duration) => {
      let samples = 0
      await engine.continue(PROMPT, 44100, { duration }, { onChunk: (chunk) => (samples += chunk[0].length) })
      return samples / 32000
    }),
  )
  assert.deepEqual(lengths, [0.5, 0.8])
})

test('a generation is cancelled, and the next one runs', async () => {
  const controller = new AbortController()
  const listen = {
    signal: controller.signal,
    onProgress: (/** @type {number} */ done) => done === 3 && controller.abort(),
  }
  await assert.rejects(engine.continue(PROMPT, 44100, { duration: 20 }, listen), /cancelled/)
  await assert.rejects(engine.continue(PROMPT, 44100, { duration: 1 }, { signal: controller.signal }), /abort/)
  await engine.continue(PROMPT, 44100, { duration: 0.4 })
})

test('errors reach the caller', async () => {
  await assert.rejects(engine.continue([], 44100, {}), /audio: got Array of 0, expected a Float32Array/)
  const none = new Engine('nowhere')
  await assert.rejects(none.continue(PROMPT, 44100, {}), /nowhere.*manifest\.json: not found/)
  await none.close()
})

test('a continuation of codes needs no audio', async () => {
  let samples = 0
  const promptCodes = Array.from({ length: 4 }, () => new Int32Array(5))
  const onChunk = (/** @type {Float32Array[]} */ chunk) => (samples += chunk[0].length)
  await engine.continue(null, null, { duration: 0.2, promptCodes }, { onChunk })
  assert.equal(samples, 6400)
})

test('messages of the window are not believed', () => {
  const options = { description: 'drums', seed: 7 }
  assert.deepEqual(validateContinue(PROMPT, 44100, options), { audio: PROMPT, sampleRate: 44100, options })
  assert.deepEqual(validateContinue(null, null), { audio: null, sampleRate: null, options: {} })
  /** @type {[any, any, any, RegExp][]} */
  const wrong = [
    [PROMPT, 44100, { signal: {} }, /options: got signal, expected one of/],
    [PROMPT, 44100, JSON.parse('{"__proto__": {"takes": 9}}'), /options: got __proto__/],
    [PROMPT, 44100, null, /options: got null, expected an object/],
    [PROMPT, 44100, [], /options: got a list/],
    [PROMPT, '44100', {}, /sampleRate: got string/],
    [PROMPT[0], 44100, {}, /audio: got object, expected a list/],
    [[[0.5]], 44100, {}, /audio: got a list, expected a list of one Float32Array/],
    [{ length: 1e9 }, 44100, {}, /audio: got object/],
    [Array(40).fill(new Float32Array(2 ** 23)), 44100, {}, /audio: got 335544320 samples/],
  ]
  for (const [audio, rate, given, message] of wrong) assert.throws(() => validateContinue(audio, rate, given), message)
})

test('closing the engine rejects what is running', async () => {
  const closed = new Engine(BUNDLE)
  await closed.ready
  const running = closed.continue(PROMPT, 44100, { duration: 20 })
  await Promise.all([assert.rejects(running, /the engine was closed/), closed.close()])
  await assert.rejects(closed.continue(PROMPT, 44100, {}), /the engine was closed/)
})
