/** A bundle's language model: validates what a caller asks for and begins the generation. Codes in, codes out. */

import { join } from './arrays.js'
import { ConditioningBuilder } from './conditioning.js'
import { BundleError } from './files.js'
import { Decoder, extentOf, Generation } from './generation.js'
import { passesOf, requireCaches } from './memory.js'
import { DECODER, GENERATE_CODES, shown, validateCodes, validateOptions } from './options.js'
import { stepUniforms } from './philox.js'
import { TwoStep } from './two_step.js'
import { windows } from './windows.js'

/**
 * @typedef {import('./manifest.js').Manifest} Manifest
 * @typedef {import('./windows.js').Window} Window
 * @typedef {import('./generation.js').Codes} Codes
 * @typedef {import('./generation.js').Sampling} Sampling
 * @typedef {import('./conditioning.js').PerRow} PerRow
 * @typedef {import('./conditioning.js').SelfWav} SelfWav
 *
 * @typedef {object} GenerationOptions options of codes; MusicGen's, of audio and descriptions, are GenerateOptions
 * @property {ArrayLike<ArrayLike<number>>[] | null} [prompt] codes [P][K] -> frames in 0 .. card - 1
 * @property {PerRow | null} [texts] text states [N x E] of each prompt
 * @property {PerRow | null} [negatives] text states of each prompt's unconditional row; default: no text
 * @property {SelfWav | null} [selfWav] melody or style, in models that take one
 * @property {number} [frames] length in all, the prompt included, generated in one window however long; or
 * @property {number} [duration] length in all in seconds, generated in windows of maxDuration
 * @property {number} [maxDuration] seconds of a window; default: what the model was trained on
 * @property {number} [extendStride] seconds from one window to the next; default: the bundle's
 * @property {number} [batch] P, where neither prompt nor texts have it; default 1
 * @property {number} [takes] of each prompt, which is read once for all of them; B is P x takes; default 1
 * @property {Partial<Sampling>} [sampling] default: the bundle's
 * @property {number | bigint | (number | bigint)[]} [seed] row b has seed + b, or the list's; default: a random one
 * @property {Float32Array} [uniform] [steps x B x K] in [0, 1), instead of a seed
 * @property {AbortSignal} [signal]
 * @property {import('./files.js').OnProgress} [onProgress] called with the columns sampled so far and their total
 */

/** What generations count in onProgress. @type {import('./files.js').Counted} */
export const COLUMNS = Object.freeze({ unit: 'columns', file: null })

const SELF_WAV_GRAPHS = { melody: 'lm_melody', style: 'lm_style' }

/** lm_inference, lm_condition and lm_melody or lm_style of a bundle. */
export class LanguageModel {
  /** @param {Manifest} manifest */
  constructor(manifest) {
    this.manifest = manifest
    this.graph = manifest.graph('lm_inference')
    const { model, defaults } = manifest.tree
    this.conditionGraph = manifest.graph('lm_condition')
    /** what the model follows beside a text: 'melody', 'style' or null */
    this.selfWavKind = model.self_wav ?? null
    this.selfWavGraph = this.selfWavKind && manifest.graph(SELF_WAV_GRAPHS[this.selfWavKind])
    this.delays = model.delays
    this.codebooks = model.codebooks
    this.card = model.card
    this.special = model.special_token
    this.textDim = model.text_dim
    /** @type {number | null} null in bundles without a codec */
    this.frameRate = model.frame_rate ?? null
    this.maxDuration = model.max_duration
    this.extendStride = defaults.extend_stride
    /** @type {Sampling} the bundle's defaults */
    this.sampling = {
      temperature: defaults.temperature,
      topK: defaults.top_k,
      topP: defaults.top_p,
      cfgCoef: defaults.cfg_coef,
      cfgCoefBeta: null,
      twoStepCfg: false,
    }
    this.conditioning = new ConditioningBuilder(this.graph, this.conditionGraph, this.selfWavGraph, this.textDim)
  }

  /** Whether ONNX Runtime's C API runs the graphs, and not the sessions of onnxruntime-node. */
  get native() {
    return this.graph.native !== null
  }

  /**
   * Generate codes up to `frames` or `duration` in all; they begin with the prompt.
   *
   * @param {GenerationOptions} options
   * @returns {Promise<Codes>} [B]: the takes of the first prompt, those of the second, ...
   */
  async generateCodes(options) {
    const generation = await this.begin(options)
    for await (const done of generation) options.onProgress?.(done, generation.total, COLUMNS)
    return generation.codes()
  }

  /**
   * Begin a generation, to iterate over it and take frames as they come.
   *
   * @param {GenerationOptions} options
   */
  async begin(options) {
    validateOptions('generateCodes', options, GENERATE_CODES, this.frameRate ? 1 / this.frameRate : 0)
    const prompts = promptsOf(options)
    const prompt = this._prompt(options.prompt, prompts)
    const windows = this.windows(prompt[0][0].length, options)
    const sampling = this._sampling(options.sampling)
    const texts = options.texts ?? Array(prompts).fill(null)
    const { selfWav, negatives, signal, takes = 1 } = options
    const states = [...texts, ...(negatives ?? [])].reduce((most, text) => Math.max(most, text?.length ?? 0), 0)
    this.requireMemory(windows, prompts, takes, states, selfWav, sampling)
    const extent = extentOf(windows, this.delays)
    const uniform = this._uniform(options, extent.steps, prompts * takes)
    signal?.throwIfAborted()
    const first = this._isTwoStep(sampling) ? { ...sampling, cfgCoef: 1 } : sampling
    /** @param {Window} window */
    const conditioningOf = async ({ start }) =>
      this.conditioning.build(texts, selfWav ? await selfWav(start / (this.frameRate ?? 1)) : null, first, negatives)
    const conditioning = await conditioningOf({ start: 0, known: 0, frames: 0 })
    signal?.throwIfAborted()
    const capacity = extent.longest + Math.max(...this.delays)
    const decoder = await this._decoder(prompts, capacity, conditioning, sampling, takes, negatives)
    const pattern = { delays: this.delays, special: this.special }
    const later = selfWav ? conditioningOf : () => conditioning
    return new Generation(decoder, prompt, windows, pattern, uniform, later, signal, takes)
  }

  /** Whether the unconditional pass is apart and that changes logits: in melody and style models. @param {Sampling} sampling */
  _isTwoStep({ twoStepCfg, cfgCoefBeta }) {
    return twoStepCfg && cfgCoefBeta === null && this.conditioning.isPrefixed
  }

  /**
   * @param {number} prompts
   * @param {number} capacity columns
   * @param {import('./conditioning.js').Conditioning} conditioning
   * @param {Sampling} sampling
   * @param {number} takes
   * @param {PerRow | null} [negatives]
   */
  async _decoder(prompts, capacity, conditioning, sampling, takes, negatives) {
    const decoder = new Decoder(this.graph, prompts, capacity, conditioning, sampling, takes)
    if (!this._isTwoStep(sampling)) return decoder
    const apart = await this.conditioning.build(negatives ?? Array(prompts).fill(null), null, {
      ...sampling,
      cfgCoef: 1,
    })
    return new TwoStep(decoder, new Decoder(this.graph, prompts, capacity, apart, sampling, takes), sampling)
  }

  /**
   * Throw a RangeError if this device cannot hold the caches and codes of a generation.
   *
   * @param {Iterable<Window>} windows
   * @param {number} prompts
   * @param {number} takes
   * @param {number} states numbers of the longest text's states
   * @param {unknown} selfWav what is not null is conditioning
   * @param {Partial<Sampling>} [given]
   */
  requireMemory(windows, prompts, takes, states, selfWav, given) {
    const { longest, frames } = extentOf(windows, this.delays)
    const passes = passesOf(this._sampling(given), states > 0 || Boolean(selfWav))
    const [capacity, text] = [longest + Math.max(...this.delays), Math.ceil(states / this.textDim)]
    const request = { batch: prompts * takes, passes, capacity, text, frames, codebooks: this.codebooks }
    requireCaches(takes > 1 ? 'takes' : prompts > 1 ? 'batch' : 'duration', this.graph, request)
  }

  /**
   * A decoder with an empty KV cache, for a generation loop of your own. Call release() when you are done.
   *
   * @param {{ batch?: number, capacity: number, texts?: PerRow | null, negatives?: PerRow | null, selfWav?: PerRow | null, sampling?: Partial<Sampling> }} options
   *   capacity: columns
   */
  async decoder(options) {
    validateOptions('decoder', options, DECODER)
    const { batch = 1, capacity, texts, negatives, selfWav, sampling: given } = options
    if (capacity === undefined) throw new TypeError('capacity: got undefined, expected a number of columns')
    promptsOf({ texts, negatives, batch })
    const sampling = this._sampling(given)
    const states = Number(Boolean(texts ?? negatives))
    this.requireMemory([{ start: 0, known: 0, frames: capacity }], batch, 1, states, selfWav, sampling)
    const first = this._isTwoStep(sampling) ? { ...sampling, cfgCoef: 1 } : sampling
    const rows = texts ?? Array(batch).fill(null)
    const conditioning = await this.conditioning.build(rows, selfWav ?? null, first, negatives)
    return this._decoder(batch, capacity, conditioning, sampling, 1, negatives)
  }

  /**
   * The prompt, validated; empty where there is none.
   *
   * @param {ArrayLike<ArrayLike<number>>[] | null | undefined} prompt
   * @param {number} prompts
   * @returns {ArrayLike<ArrayLike<number>>[]}
   */
  _prompt(prompt, prompts) {
    if (!prompt) return Array.from({ length: prompts }, () => this.delays.map(() => []))
    for (const row of new Set(prompt)) validateCodes('prompt', row, this.codebooks, this.card)
    const lengths = new Set(prompt.map((row) => row[0].length))
    if (lengths.size > 1) throw new RangeError(`prompt: got ${[...lengths]} frames, expected rows of equal length`)
    return prompt
  }

  /**
   * The windows of a generation, at least one, computed anew each time they are iterated over; throws where it would not be longer than the prompt.
   *
   * @param {number} prompt frames
   * @param {Pick<GenerationOptions, 'frames' | 'duration' | 'maxDuration' | 'extendStride'>} options
   */
  windows(prompt, { frames, duration, maxDuration, extendStride }) {
    if ((frames === undefined) === (duration === undefined)) {
      throw new TypeError(`got frames ${frames} and duration ${duration}, expected one of them`)
    }
    /** @type {Iterable<Window>} */
    let found = [{ start: 0, known: prompt, frames: frames ?? 0 }]
    if (duration !== undefined) {
      if (!this.frameRate) throw new BundleError('duration: the bundle has no codec and so no frame rate; give frames')
      const [length, stride] = [maxDuration ?? this.maxDuration, extendStride ?? this.extendStride]
      found = windows(duration, length, stride, this.frameRate, prompt)
    }
    const total = extentOf(found, this.delays).frames || prompt
    if (total > prompt) return found
    if (frames !== undefined) throw new RangeError(`requested ${total} frames, but the prompt already has ${prompt}`)
    const seconds = prompt / (this.frameRate ?? 1)
    throw new RangeError(
      `duration: requested ${duration} s, but the prompt already has ${seconds} s; ` +
        'the duration includes the prompt: ask for more, or give a shorter prompt',
    )
  }

  /**
   * The bundle's sampling with some values replaced.
   *
   * @param {Partial<Sampling>} [given]
   * @returns {Sampling}
   */
  _sampling(given = {}) {
    const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined))
    return /** @type {Sampling} */ ({ ...this.sampling, ...defined })
  }

  /**
   * A function that returns the uniform numbers [B x K] of a step: as given, or from the seed.
   *
   * @param {GenerationOptions} options
   * @param {number} steps
   * @param {number} batch
   * @returns {(step: number) => Float32Array}
   */
  _uniform({ uniform, seed = randomSeed() }, steps, batch) {
    const { codebooks } = this
    const size = batch * codebooks
    if (!uniform) {
      const seeds = seedsOf(seed, batch)
      return (step) => join(seeds.map((own) => stepUniforms(own, step, codebooks)))
    }
    if (uniform.length !== steps * size || uniform.some((u) => !(u >= 0 && u < 1))) {
      throw new RangeError(
        `uniform: got ${uniform.length} numbers, expected ${steps} x ${batch} x ${codebooks} in [0, 1)`,
      )
    }
    return (step) => uniform.subarray(step * size, (step + 1) * size)
  }
}

/** A random seed of 32 bits. React Native has no crypto. */
export const randomSeed = () =>
  globalThis.crypto?.getRandomValues(new Uint32Array(1))[0] ?? Math.floor(Math.random() * 2 ** 32)

/**
 * P, from whichever options have it; throws where they differ.
 *
 * @param {GenerationOptions} options
 */
function promptsOf({ prompt, texts, negatives, batch }) {
  const given = [prompt?.length, texts?.length, negatives?.length, batch].filter((size) => size !== undefined)
  if (new Set(given).size > 1 || given.includes(0)) {
    throw new RangeError(
      `rows: got ${given.join(', ')} in prompt, texts, negatives and batch, expected one number above 0`,
    )
  }
  return given[0] ?? 1
}

/**
 * The seed of each row.
 *
 * @param {number | bigint | (number | bigint)[]} seed
 * @param {number} rows
 * @returns {bigint[]}
 */
export function seedsOf(seed, rows) {
  const seeds = Array.isArray(seed)
    ? seed.map(BigInt)
    : Array.from({ length: rows }, (_, b) => BigInt(seed) + BigInt(b))
  if (seeds.length !== rows || seeds.some((s) => s >= 2n ** 64n)) {
    throw new RangeError(
      `seed: got ${shown(seed)}, expected a whole number from 0 to 2^64 - ${rows}, or a list of ${rows} seeds`,
    )
  }
  return seeds
}
