/** Calls of the runtime with absurd options and prompts, on the conformance kit's tiny text bundle. */

import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'

import * as node from 'onnxruntime-node'

import { MusicGen } from '../src/index.js'
import { accepted, other, refused } from './campaign_outcomes.js'
import { BUNDLE, clip } from './kit.js'

/**
 * @typedef {import('./campaign_outcomes.js').Random} Random
 * @typedef {import('./campaign_outcomes.js').Outcome} Outcome
 * @typedef {'generate' | 'generateContinuation' | 'stream' | 'streamContinuation'} Name
 * @typedef {{ name: Name, args: any[], leaves: boolean, abort: AbortController }} Call leaves: after the first chunk
 */

const ABORT = 300 // milliseconds after which the campaign's signal aborts
const HEARD = 5_000 // milliseconds in which a call must have heard it
const RATE = 44_100
const PROMPT = clip(0.2, RATE)
/** @type {Name[]} */
const CALLS = ['generate', 'generateContinuation', 'stream', 'streamContinuation']
const NAMES = [
  ...['description', 'duration', 'topK', 'topP', 'temperature', 'cfgCoef', 'cfgCoefBeta', 'extendStride'],
  ...['maxDuration', 'seed', 'takes', 'melody', 'melodySampleRate', 'evalQ', 'excerptLength', 'excerptStart'],
  ...['negativeDescription', 'twoStepCfg', 'styleFeatures', 'musicalTime'],
  ...['promptCodes', 'chunkSeconds', 'signal', 'onProgress', 'onCodes', '__proto__', 'constructor', 'a\nb\x1b[2J'],
]
/** What may be accepted, so that other options are tried further on. @type {Record<string, any[]>} */
const FITTING = {
  description: ['drums', '', 'é\0 \u202e', 'a '.repeat(1_000), ['drums', null], [], Array(40).fill('a')],
  negativeDescription: ['flute', [null, 'flute'], Array(3)],
  twoStepCfg: [true, false],
  duration: [0.02, 0.5, 3, 70, 86_400],
  topK: [0, 1, 2 ** 53 - 1],
  topP: [0, 1e-320, 1],
  temperature: [0, 1e-6, 1e6],
  cfgCoef: [-1e6, 0, 1, 1e6],
  cfgCoefBeta: [null, -1e6, 1e6],
  extendStride: [0.02, 0.1, 18],
  maxDuration: [0.1, 1, 30, 3_600],
  seed: [0, 2 ** 53 - 1, 2n ** 64n - 1n, [1, 2n]],
  takes: [1, 2, 250],
  promptCodes: [Array(4).fill([1, 2, 3]), Array(4).fill(new Uint8Array(9)), Array(2).fill(Array(4).fill([1, 2]))],
  chunkSeconds: [0.02, 0.1, 86_400],
  musicalTime: [
    { bpm: 500, beatsPerBar: 1, bars: 2 },
    { bpm: 20, bars: 10_000 },
    { bpm: 120, offset: 86_400 },
  ],
}
const STREAMED = ['chunkSeconds', 'onCodes']
const NUMBERS = [
  ...[0, -0, 1, -1, 0.5, 1.5, NaN, Infinity, -Infinity, 1e-320, -1e-320, 1e-45, 1e-9, 1e9, 1e39, 1e300],
  ...[2 ** 31, 2 ** 32, 2 ** 53, 2 ** 63, 2 ** 64, 0.02, 0.1, 3, 250, 5n, -1n, 2n ** 64n - 1n, 2n ** 64n, 2n ** 200n],
]
/** What is no number, made anew for each input. @returns {any[]} */
const others = () => [
  ...[null, undefined, true, '', '1', 'x'.repeat(20_000), 'a '.repeat(4_000), '\ud800', '\0', '\x1b[31m\n'],
  ...[[], [1], {}, () => {}, Symbol('x\n'), Object.create(null), new Proxy({}, {}), new Map(), new Date(NaN)],
  ...[new Float32Array(3), Float32Array.of(NaN), new DataView(new ArrayBuffer(4)), new Uint8Array(9), Array(5)],
  ...[[[NaN]], Array(4).fill(Array(9)), Array(4).fill([1, 2, 3]), Array(4).fill(new Float32Array(2))],
  ...[AbortSignal.abort(), { constructor: { name: 'a\nb' } }, { constructor: null }, new (class extends Array {})()],
]

/** @param {Random} random @param {string} name @returns {any} */
function anything(random, name) {
  if (Object.hasOwn(FITTING, name) && random.once(2)) return random.pick(FITTING[name])
  return random.pick(random.below(3) ? NUMBERS : others())
}

/** @returns {Promise<import('./campaign_outcomes.js').Part>} */
export async function openOptions() {
  const model = await MusicGen.load(BUNDLE, { ort: /** @type {any} */ (node) })
  return {
    make: (random) => {
      const call = makeCall(random)
      return { what: shown(call), run: () => tryCall(model, call) }
    },
    close: () => model.release(),
  }
}

/** @param {Random} random @returns {Call} */
export function makeCall(random) {
  const name = random.pick(CALLS)
  const abort = new AbortController()
  const options = cancelled(random.once(20) ? random.pick(others()) : makeOptions(random, name), abort.signal)
  const audio = random.below(8) ? PROMPT : random.pick([null, Float32Array.of(NaN), [new Float32Array(0)], ...others()])
  const rate = random.below(8) ? RATE : random.pick([8_000, ...NUMBERS])
  const args = name.endsWith('ontinuation') ? [audio, rate, options] : [options]
  return { name, args, leaves: name.startsWith('stream') && random.once(4), abort }
}

/**
 * A few options of any name and value; rarely those that the call does not have, which is refused at once.
 *
 * @param {Random} random
 * @param {Name} name
 */
function makeOptions(random, name) {
  const foreign = name.startsWith('stream') ? ['takes'] : STREAMED
  /** @type {Record<string, any>} */
  const options = { duration: 0.3 }
  for (let left = 1 + random.below(3); left > 0; left--) {
    const key = random.pick(random.once(2) ? NAMES : Object.keys(FITTING))
    if (foreign.includes(key) && random.below(8)) continue
    if (key === 'musicalTime' && random.below(8)) delete options.duration // which it takes the place of
    Object.defineProperty(options, key, { value: anything(random, key), enumerable: true, configurable: true })
  }
  return options
}

/**
 * Options with the campaign's signal, unless they have another: what is accepted would take long otherwise.
 *
 * @param {any} options
 * @param {AbortSignal} signal
 */
function cancelled(options, signal) {
  if (options === undefined) return { signal }
  if (options === null || !['object', 'function'].includes(typeof options) || options.signal !== undefined)
    return options
  return Object.defineProperty(options, 'signal', { value: signal, enumerable: true, configurable: true })
}

/** @param {Call} call */
function shown({ name, args, leaves }) {
  const values = args.map((value) =>
    value === PROMPT
      ? 'PROMPT'
      : inspect(value, { breakLength: Infinity, depth: 2, maxArrayLength: 5, maxStringLength: 40 }),
  )
  return `${name}(${values.join(', ')})${leaves ? ', left after a chunk' : ''}`.replace(/\s+/g, ' ').slice(0, 400)
}

/**
 * Make a call, and cancel it after a while. Throws what the call throws.
 *
 * @param {any} model
 * @param {Call} call
 * @returns {Promise<Outcome>}
 */
export async function tryCall(model, call) {
  const { abort, args } = call
  const reason = new Error('cancelled by the campaign')
  let aborted = Infinity
  const timer = setTimeout(() => ((aborted = performance.now()), abort.abort(reason)), ABORT)
  try {
    const wrong = call.name.startsWith('stream')
      ? await drain(model, call)
      : faultOf(model, await model[call.name](...args))
    return wrong ? other(wrong) : accepted()
  } catch (error) {
    const late = performance.now() - aborted
    if (error === reason) return late > HEARD ? other(`heard its signal after ${Math.round(late)} ms`) : accepted()
    const { signal } = args.at(-1) ?? {}
    if (signal instanceof AbortSignal && signal.aborted && error === signal.reason) return refused('aborted before')
    throw error
  } finally {
    clearTimeout(timer)
    await sleep(0)
  }
}

/**
 * Read a stream to its end, or leave it after a chunk; returns what is wrong with a chunk.
 *
 * @param {any} model
 * @param {Call} call
 */
async function drain(model, { name, args, leaves }) {
  for await (const chunk of model[name](...args)) {
    const wrong = audioFault(model, chunk)
    if (wrong || leaves) return wrong
  }
}

/**
 * What is wrong with a result; undefined where nothing is.
 *
 * @param {any} model
 * @param {import('../src/musicgen.js').Generated} result
 */
function faultOf(model, { takes }) {
  const { codebooks, card } = model.lm
  for (const { audio, codes } of takes) {
    const wrong = audioFault(model, audio)
    if (wrong) return wrong
    const isCode = (/** @type {number} */ code) => code >= 0 && code < card
    if (codes.length !== codebooks || !codes.every((row) => row.length && row.every(isCode)))
      return 'codes out of bounds'
  }
}

/**
 * @param {any} model
 * @param {Float32Array[]} audio
 */
function audioFault(model, audio) {
  if (audio.length !== model.channels || audio.some((channel) => !channel.length))
    return `${audio.length} channels, or empty`
  if (audio.some((channel) => !channel.every(Number.isFinite))) return 'samples that are not finite'
}
