/**
 * What options may be: one table for each kind of call, which lists every option with its type and its bounds.
 *
 * A value of another type, or an unknown name, is a TypeError; a value out of bounds is a RangeError. Both name the
 * option, what they got and what they expected. `undefined` always means the default.
 *
 * @typedef {(name: string, value: any, frame: number) => void} Check throws; frame: seconds of a frame
 * @typedef {Record<string, Check>} Table
 */

import { printable } from './typed_json.js'

/** Seconds of one generation, a day: beyond it, codes and uniform numbers alone would fill the memory. */
export const LONGEST = 86_400
/** Seconds of one window: its KV cache is allocated at once. */
const LONGEST_WINDOW = 3_600
const MOST_FRAMES = 180_000 // of a window: LONGEST_WINDOW at 50 frames a second
const MOST_PROMPTS = 1_000 // of a call
const MOST_TAKES = 1_000 // each has a KV cache of its own
/** Characters of a text, so that it is refused before anything is loaded; and tokens, whose square the encoder's scores are. */
const [MOST_CHARACTERS, MOST_TOKENS] = [10_000, 2_048]
const MOST_GUIDANCE = 1e6 // logits are multiplied by it in float32
const [COLDEST, HOTTEST] = [1e-6, 1e6] // logits divided by them stay in float32's range
const HIGHEST_RATE = 1_000_000 // samples per second
const [SLOWEST, FASTEST] = [20, 500] // beats a minute
const MOST_BEATS = 32 // of a bar
const MOST_BARS = 10_000

/** A text of a message, in one line; long ones are cut. @param {string} text */
const line = (text) => printable(text.length > 60 ? `${text.slice(0, 57)}...` : text)

/** @param {unknown} value as an error message shows it */
export function shown(value) {
  if (typeof value === 'bigint') return line(`${value}n`)
  if (typeof value === 'string')
    return printable(JSON.stringify(value.length > 60 ? `${value.slice(0, 57)}...` : value))
  if (typeof value === 'function') return 'a function'
  if (value === null || typeof value !== 'object') return line(String(value))
  const given = value.constructor?.name
  const name = typeof given === 'string' && given ? line(given) : 'object'
  return Array.isArray(value) || ArrayBuffer.isView(value)
    ? `${name} of ${/** @type {any} */ (value).length}`
    : `an ${name}`.replace(/^an (?![AEIOUaeiou])/, 'a ')
}

/** @param {string} name @param {unknown} value @param {string} expected */
const wrongType = (name, value, expected) => new TypeError(`${name}: got ${shown(value)}, expected ${expected}`)

/**
 * Throw unless `value` has a type, as typeof names it.
 *
 * @param {string} type
 * @param {string} expected
 * @returns {Check}
 */
const typed = (type, expected) => (name, value) => {
  if (typeof value !== type) throw wrongType(name, value, expected)
}

/**
 * @param {(value: number) => boolean} isValid
 * @param {string} expected
 * @returns {Check}
 */
const number = (isValid, expected) => (name, value) => {
  if (typeof value !== 'number') throw wrongType(name, value, `a number: ${expected}`)
  if (!isValid(value)) throw new RangeError(`${name}: got ${value}, expected ${expected}`)
}

/** @param {number} low @param {number} high @param {string} expected */
export const whole = (low, high, expected) => number((n) => Number.isInteger(n) && n >= low && n <= high, expected)

/** @param {number} low @param {number} high @param {string} expected */
const between = (low, high, expected) => number((n) => n >= low && n <= high, expected)

/**
 * Seconds; at least a frame, unless `least` says otherwise.
 *
 * @param {number} most
 * @param {number} [least]
 * @returns {Check}
 */
const seconds = (most, least) => (name, value, frame) => {
  if (typeof value !== 'number') throw wrongType(name, value, 'a number of seconds')
  const floor = least === undefined ? `${frame} s (a frame)` : `${least} s`
  if (!(value >= (least ?? frame) && value <= most)) {
    throw new RangeError(`${name}: got ${value} s, expected ${floor} or more, at most ${most} s`)
  }
}

/** @param {Check} check @returns {Check} */
const orNull = (check) => (name, value, frame) => value === null || check(name, value, frame)

/**
 * One value, or a list with one for each prompt.
 *
 * @param {Check} check of one
 * @returns {Check}
 */
const perPrompt = (check) => (name, value, frame) => {
  if (!Array.isArray(value)) return check(name, value, frame)
  const expected = `one for each prompt, 1 to ${MOST_PROMPTS} of them`
  if (!value.length || value.length > MOST_PROMPTS) {
    throw new RangeError(`${name}: got a list of ${value.length}, expected ${expected}`)
  }
  for (let i = 0; i < value.length; i++) check(`${name}[${i}]`, value[i], frame)
}

/** A description. @type {Check} */
export function text(name, value) {
  if (typeof value !== 'string') throw wrongType(name, value, 'a string, or null for none')
  if (value.length > MOST_CHARACTERS) {
    throw new RangeError(
      `${name}: got a text of ${value.length} characters, expected ${MOST_CHARACTERS} at most; give a shorter description`,
    )
  }
  if (/\p{Surrogate}/u.test(value)) throw new RangeError(`${name}: got half a surrogate pair, expected Unicode text`)
}

/**
 * Throw unless a text encoder can read so many tokens.
 *
 * @param {string} name
 * @param {number} tokens
 */
export function validateTokens(name, tokens) {
  if (tokens <= MOST_TOKENS) return
  throw new RangeError(
    `${name}: got a text of ${tokens} tokens, expected ${MOST_TOKENS} at most; give a shorter description`,
  )
}

/** @type {Check} */
export function seed(name, value) {
  if (Array.isArray(value)) return value.forEach((one) => seed(name, one, 0))
  const expected = 'a whole number from 0 to 2^64 - 1'
  if (typeof value !== 'number' && typeof value !== 'bigint') throw wrongType(name, value, expected)
  if (value < 0 || value >= 2n ** 64n || (typeof value === 'number' && !Number.isInteger(value))) {
    throw new RangeError(`${name}: got ${line(String(value))}, expected ${expected}`)
  }
  if (typeof value === 'number' && !Number.isSafeInteger(value)) {
    throw new RangeError(`${name}: got the number ${value}, expected a BigInt above 2^53 - 1`)
  }
}

/** @type {Check} */
const signal = (name, value) => {
  if (typeof value?.throwIfAborted !== 'function') throw wrongType(name, value, 'an AbortSignal')
}

/** @type {Check} */
const object = (name, value) => {
  if (typeof value !== 'object' || value === null) throw wrongType(name, value, 'an object')
}

/** ONNX Runtime's. onnxruntime-node follows `extra` without end where it holds itself. @type {Check} */
const sessionOptions = (name, value, frame) => {
  object(name, value, frame)
  try {
    JSON.stringify(/** @type {any} */ (value).extra)
  } catch {
    throw new TypeError(`${name}.extra: holds itself or a bigint, expected texts by their names`)
  }
}

/** @type {Check} */
const list = (name, value) => {
  if (!Array.isArray(value)) throw wrongType(name, value, 'a list')
}

/** Samples or codes; what they hold is validated where they are used. @type {Check} */
const arrays = (name, value) => {
  if (typeof value !== 'object') throw wrongType(name, value, 'an array, a list of arrays, or null')
}
const flag = typed('boolean', 'true or false')
const callback = typed('function', 'a function')
const string = typed('string', 'a string')

/** How codes are sampled. @type {Table} */
const SAMPLING = {
  temperature: number(
    (t) => t === 0 || (t >= COLDEST && t <= HOTTEST),
    `0 (greedy) or at least 1e-6, at most ${HOTTEST}`,
  ),
  topK: whole(0, Number.MAX_SAFE_INTEGER, 'a whole number from 0 (off) to 2^53 - 1'),
  topP: between(0, 1, '0 (off) to 1'),
  cfgCoef: between(-MOST_GUIDANCE, MOST_GUIDANCE, `a finite number, ${MOST_GUIDANCE} at most`),
  cfgCoefBeta: orNull(between(-MOST_GUIDANCE, MOST_GUIDANCE, `a finite number, ${MOST_GUIDANCE} at most, or null`)),
  twoStepCfg: flag,
}

/** What generations of audio and of codes have in common. @type {Table} */
const LENGTH = {
  duration: seconds(LONGEST),
  maxDuration: seconds(LONGEST_WINDOW),
  extendStride: seconds(LONGEST_WINDOW),
  seed,
  signal,
  onProgress: callback,
}

const tempo = between(SLOWEST, FASTEST, `beats a minute, ${SLOWEST} to ${FASTEST}`)
const bars = orNull(whole(1, MOST_BARS, `a whole number from 1 to ${MOST_BARS}`))
/** MusicalTime. @type {Table} */
export const MUSICAL_TIME = {
  bpm: (name, value, frame) => {
    if (value !== 'auto') return tempo(name, value, frame)
    throw new TypeError(
      `${name}: got "auto", expected beats a minute: JavaScript has no estimate of the tempo, the command line has one`,
    )
  },
  promptBars: bars,
  bars,
  beatsPerBar: whole(1, MOST_BEATS, `a whole number from 1 to ${MOST_BEATS}`),
  offset: between(0, LONGEST, `seconds to the first bar line, 0 to ${LONGEST}`),
}

/** MusicGen.generate. @type {Table} */
export const GENERATE = {
  ...SAMPLING,
  ...LENGTH,
  description: perPrompt(orNull(text)),
  negativeDescription: perPrompt(orNull(text)),
  takes: whole(1, MOST_TAKES, `a whole number from 1 to ${MOST_TAKES}`),
  melody: arrays,
  melodySampleRate: (name, value) => sampleRate(name, value),
  styleFeatures: arrays,
  evalQ: whole(1, 64, 'a whole number of levels, 1 or more'),
  excerptLength: seconds(LONGEST, 0.01),
  excerptStart: seconds(LONGEST, 0),
  musicalTime: object,
}

const CONTINUED = { promptCodes: arrays }
const STREAMED = { chunkSeconds: seconds(LONGEST), onCodes: callback }
/** MusicGen.generateContinuation. @type {Table} */
export const CONTINUE = { ...GENERATE, ...CONTINUED }
/** MusicGen.stream. @type {Table} */
export const STREAM = { ...GENERATE, ...STREAMED }
/** MusicGen.streamContinuation. @type {Table} */
export const STREAM_CONTINUATION = { ...GENERATE, ...CONTINUED, ...STREAMED }

/** LanguageModel.generateCodes and begin. @type {Table} */
export const GENERATE_CODES = {
  ...LENGTH,
  prompt: orNull(list),
  texts: orNull(list),
  negatives: orNull(list),
  selfWav: orNull(callback),
  frames: whole(1, MOST_FRAMES, `a whole number from 1 to ${MOST_FRAMES}`),
  batch: whole(1, MOST_PROMPTS, `a whole number from 1 to ${MOST_PROMPTS}`),
  takes: GENERATE.takes,
  sampling: (name, value) => validateOptions(name, value, SAMPLING),
  uniform: (name, value) => {
    if (!(value instanceof Float32Array)) throw wrongType(name, value, 'a Float32Array')
  },
}

/** LanguageModel.decoder. @type {Table} */
export const DECODER = {
  batch: GENERATE_CODES.batch,
  capacity: whole(1, MOST_FRAMES, `a whole number from 1 to ${MOST_FRAMES}`),
  texts: orNull(list),
  negatives: orNull(list),
  selfWav: orNull(list),
  sampling: GENERATE_CODES.sampling,
}

/** Manifest.open and MusicGen.load. @type {Table} */
export const LOAD = {
  ort: object,
  executionProviders: list,
  variant: string,
  hashes: flag,
  confine: string,
  lazy: flag,
  onProgress: callback,
  signal,
  cache: object,
  cacheFolder: string,
  endpoint: string,
  token: string,
  sessionOptions,
  native: flag,
  koffi: object,
  tokenizer: callback,
}

/**
 * Throw unless every option is in the table, and as the table has it.
 *
 * @param {string} where the call, in messages
 * @param {any} options
 * @param {Table} table
 * @param {number} [frame] seconds of a frame
 */
export function validateOptions(where, options, table, frame = 0) {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw wrongType(where, options, 'an object of options')
  }
  for (const name in options) {
    if (!Object.hasOwn(table, name)) {
      const nearest = nearestName(name, Object.keys(table))
      throw new TypeError(
        `${where}: unknown option ${line(name)}, expected one of ${Object.keys(table).sort().join(', ')}` +
          (nearest ? `; did you mean ${nearest}?` : ''),
      )
    }
  }
  for (const [name, check] of Object.entries(table)) {
    const value = options[name] // inherited ones count, as they are read
    if (value !== undefined) check(name, value, frame)
  }
}

/**
 * The name that an unknown one was most likely meant to be, Python's among them (top_k); undefined where none is near.
 *
 * @param {string} unknown
 * @param {string[]} names
 */
function nearestName(unknown, names) {
  const plain = (/** @type {string} */ name) => name.slice(0, 60).replaceAll('_', '').toLowerCase()
  const distances = names.map((name) => editDistance(plain(unknown), plain(name)))
  const least = Math.min(...distances)
  return least <= plain(unknown).length / 3 ? names[distances.indexOf(least)] : undefined
}

/**
 * How many characters must be added, left out or replaced to make one word of another (Levenshtein).
 *
 * @param {string} a
 * @param {string} b
 */
function editDistance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + Number(a[i - 1] !== b[j - 1])))
    }
    row = next
  }
  return row[b.length]
}

/**
 * Throw unless `value` is a sample rate.
 *
 * @param {string} name of the argument
 * @param {unknown} value
 */
export function sampleRate(name, value) {
  const expected = `samples per second, a whole number from 1 to ${HIGHEST_RATE}`
  number((rate) => Number.isInteger(rate) && rate >= 1 && rate <= HIGHEST_RATE, expected)(name, value, 0)
}

/**
 * Codes of a prompt [K] -> P, each a list or an array of integers; throws where they are anything else.
 *
 * @param {string} name of the argument
 * @param {any} codes
 * @param {number} codebooks K
 * @param {number} card codes of a codebook
 */
export function validateCodes(name, codes, codebooks, card) {
  const expected = `${codebooks} codebooks of equal length, each an Int32Array or a list of whole numbers`
  const isList = (/** @type {any} */ value) =>
    Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView))
  if (!Array.isArray(codes) || !codes.length || !codes.every(isList)) throw wrongType(name, codes, expected)
  const rows = /** @type {any[]} */ (codes)
  const float = rows.find((row) => row instanceof Float32Array || row instanceof Float64Array)
  if (float) throw new TypeError(`${name}: got ${shown(float)}, which is audio; expected codes, ${expected}`)
  if (rows.length !== codebooks || rows.some((row) => row.length !== rows[0].length)) {
    throw new RangeError(`${name}: got ${rows.length} codebooks, expected ${expected}`)
  }
  for (const row of rows) {
    const at = row.findIndex((/** @type {any} */ code) => !(Number.isInteger(code) && code >= 0 && code < card))
    if (at < 0) continue
    const wrong = row[at]
    const Wrong = typeof wrong === 'number' && Number.isInteger(wrong) ? RangeError : TypeError
    throw new Wrong(`${name}: got code ${shown(wrong)}, expected whole numbers, 0 .. ${card - 1}`)
  }
}
