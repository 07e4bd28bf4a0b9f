/** The Electron app's engine and its model's process, in Node; and what the main process believes of the window. */

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import * as ort from 'onnxruntime-node'

import { Engine } from '../electron/engine.js'
import { validateContinue, validateSave } from '../electron/messages.js'
import { MusicGen } from '../src/index.js'
import { utilityProcess } from './electron.js'
import { BUNDLE, clip } from './kit.js'

/** @typedef {import('../electron/messages.js').Progress} Progress */

const PROMPT = clip(0.2, 44100)
const { fork } = utilityProcess
const request = (/** @type {import('../electron/messages.js').Options} */ options) => ({
  ...{ audio: PROMPT, sampleRate: 44100 },
  options,
})

/** @type {Engine} */
let engine
/** @type {Progress[]} */
const loaded = []
before(() => {
  engine = new Engine(fork, BUNDLE, (progress) => loaded.push(progress))
})
after(() => engine.close())

test('the chunks are the takes that the model generates', async () => {
  /** @type {Float32Array[][][]} */
  const chunks = []
  /** @type {Progress[]} */
  const columns = []
  const options = { duration: 1, seed: 4, takes: 2, description: 'slow house' }
  const listen = {
    onChunk: (/** @type {Float32Array[][]} */ takes) => chunks.push(takes),
    onProgress: (/** @type {Progress} */ progress) => columns.push(progress),
  }
  await engine.continue(request({ ...options, chunkSeconds: 0.4 }), listen)
  const model = await MusicGen.load(BUNDLE, { ort: /** @type {any} */ (ort) })
  const { takes } = await model.generateContinuation(PROMPT, 44100, options)
  takes.forEach(({ audio }, take) => {
    const all = chunks.flatMap((chunk) => [...chunk[take][0]])
    assert.equal(all.length, audio[0].length)
    all.forEach((x, i) => assert.ok(Math.abs(x - audio[0][i]) < 1e-5))
  })
  assert.equal(takes.length, 2)
  assert.deepEqual(columns.at(-1), { done: columns.length, total: columns.length, unit: 'columns' })
  assert.equal(loaded.at(-1)?.done, loaded[0].total)
  assert.equal(loaded[0].unit, 'bytes')
  assert.deepEqual(await engine.ready, { sampleRate: model.sampleRate, native: model.lm.native })
  assert.equal(model.lm.native, true)
})

test('two generations at a time', async () => {
  const lengths = await Promise.all(
    [0.5, 0.8].map(async (duration) => {
      let samples = 0
      await engine.continue(request({ duration }), { onChunk: ([[chunk]]) => (samples += chunk.length) })
      return samples / 32000
    }),
  )
  assert.deepEqual(lengths, [0.5, 0.8])
})

test('a generation is cancelled, and the next one runs', async () => {
  const controller = new AbortController()
  const listen = {
    signal: controller.signal,
    onProgress: ({ done = 0 }) => done === 3 && controller.abort(),
  }
  await assert.rejects(engine.continue(request({ duration: 20 }), listen), /cancelled/)
  await assert.rejects(engine.continue(request({ duration: 1 }), { signal: controller.signal }), /abort/)
  await engine.continue(request({ duration: 0.4 }))
})

test('errors reach the caller', async () => {
  const empty = { audio: [], sampleRate: 44100, options: {} }
  await assert.rejects(engine.continue(empty), /audio: got Array of 0, expected a Float32Array/)
  const none = new Engine(fork, 'nowhere')
  await assert.rejects(none.continue(request({})), /nowhere.*manifest\.json: not found/)
  none.close()
})

test('a continuation of codes needs no audio', async () => {
  let samples = 0
  const promptCodes = Array.from({ length: 4 }, () => new Int32Array(5))
  const options = { duration: 0.2, promptCodes }
  await engine.continue(
    { audio: null, sampleRate: null, options },
    { onChunk: ([[chunk]]) => (samples += chunk.length) },
  )
  assert.equal(samples, 6400)
})

test('messages of the window are not believed', () => {
  const good = request({ description: 'drums', seed: 7 })
  assert.deepEqual(validateContinue({ ...good, more: 1 }), good)
  const none = { audio: null, sampleRate: null, options: {} }
  assert.deepEqual(validateContinue(none), none)
  /** @type {[any, RegExp][]} */
  const wrong = [
    [undefined, /request: got undefined, expected an object/],
    [{ ...good, options: { signal: {} } }, /options: got signal, expected one of/],
    [{ ...good, options: JSON.parse('{"__proto__": {"takes": 9}}') }, /options: got __proto__/],
    [{ ...good, options: null }, /options: got null, expected an object/],
    [{ ...good, options: [] }, /options: got a list/],
    [{ ...good, sampleRate: '44100' }, /sampleRate: got string/],
    [{ ...good, audio: PROMPT[0] }, /audio: got object, expected a list/],
    [{ ...good, audio: [[0.5]] }, /audio: got a list, expected a list of one Float32Array/],
    [{ ...good, audio: { length: 1e9 } }, /audio: got object/],
    [{ ...good, audio: Array(40).fill(new Float32Array(2 ** 23)) }, /audio: got 335544320 samples/],
  ]
  for (const [given, message] of wrong) assert.throws(() => validateContinue(given), message)
})

test('a name of the window is no path', () => {
  const named = (/** @type {any} */ name) => validateSave({ name, audio: PROMPT, sampleRate: 44100 }).name
  assert.equal(named('Schleife 3 seed 7'), 'Schleife 3 seed 7')
  assert.equal(named('../../etc/passwd'), '_.._etc_passwd')
  assert.equal(named('C:\\a\u0000b'), 'C__a_b')
  assert.equal(named('..'), 'take')
  assert.throws(() => named(7), /name: got number, expected a string/)
  assert.throws(() => validateSave({ name: 'a', audio: null, sampleRate: 1 }), /audio: got null/)
})

test('closing the engine rejects what is running', async () => {
  const closed = new Engine(fork, BUNDLE)
  await closed.ready
  const running = closed.continue(request({ duration: 20 }), { onProgress: () => closed.close() })
  await assert.rejects(running, /the engine was closed/)
  await assert.rejects(closed.continue(request({})), /the engine was closed/)
})

test('a process that ends by itself is an error in words', { timeout: 60_000 }, async () => {
  const crashed = new Engine(fork, BUNDLE)
  await crashed.ready
  const child = /** @type {import('node:child_process').ChildProcess} */ (/** @type {unknown} */ (crashed.child))
  const running = crashed.continue(request({ duration: 20 }), {
    onProgress: () => process.kill(child.pid ?? 0, 'SIGKILL'),
  })
  await assert.rejects(running, /the model's process ended.*memory: start the app again/)
  await assert.rejects(crashed.continue(request({})), /the model's process ended/)
  assert.notEqual(child.exitCode ?? child.signalCode, null)
})
