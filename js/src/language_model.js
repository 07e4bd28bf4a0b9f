/** A bundle's language model: validates what a caller asks for and begins the generation. Codes in, codes out. */

import { ConditioningBuilder } from './conditioning.js'
import { BundleError } from './files.js'
import { countSteps, Decoder, Generation } from './generation.js'
import { uniforms } from './philox.js'
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
 * @property {ArrayLike<ArrayLike<number>>[] | null} [prompt] codes [B][K] -> P in 0 .. card - 1
 * @property {PerRow | null} [texts] text states [N x E]
 * @property {SelfWav | null} [selfWav] melody or style, in models that take one
 * @property {number} [frames] length in all, the prompt included, generated in one window however long; or
 * @property {number} [duration] length in all in seconds, generated in windows of maxDuration
 * @property {number} [maxDuration] seconds of a window; default: what the model was trained on
 * @property {number} [extendStride] seconds from one window to the next; default: the bundle's
 * @property {number} [batch] B, where neither prompt nor texts have it; default 1
 * @property {Partial<Sampling>} [sampling] default: the bundle's
 * @property {number | bigint | (number | bigint)[]} [seed] take b has seed + b, or the list's; default: a random one
 * @property {Float32Array} [uniform] [steps x B x K] in [0, 1), instead of a seed
 * @property {AbortSignal} [signal]
 * @property {(done: number, total: number) => void} [onProgress] called with the columns sampled so far and their total
 */

const SELF_WAV_GRAPHS = { melody: 'lm_melody', style: 'lm_style' }

/** lm_inference, lm_condition and lm_melody or lm_style of a bundle. */
export class LanguageModel {
  /** @param {Manifest} manifest */
  constructor(manifest) {
    const model = manifest.require('model', 'delays', 'codebooks', 'card', 'special_token', 'text_dim', 'max_duration')
    const defaults = manifest.require('defaults', 'cfg_coef', 'top_k', 'top_p', 'temperature', 'extend_stride')
    manifest.requireCacheUpdate()
    this.manifest = manifest
    this.graph = manifest.graph('lm_inference')
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
    }
    this.conditioning = new ConditioningBuilder(this.graph, this.conditionGraph, this.selfWavGraph, this.textDim)
  }

  /**
   * Generate codes up to `frames` or `duration` in all; they begin with the prompt.
   *
   * @param {GenerationOptions} options
   * @returns {Promise<Codes>}
   */
  async generateCodes(options) {
    const generation = await this.begin(options)
    for await (const done of generation) options.onProgress?.(done, generation.total)
    return generation.codes()
  }

  /**
   * Begin a generation, to iterate over it and take frames as they come.
   *
   * @param {GenerationOptions} options
   */
  async begin(options) {
    const batch = batchOf(options)
    const prompt = this._prompt(options.prompt, batch)
    const windows = this._windows(prompt[0][0].length, options)
    const sampling = this._sampling(options.sampling)
    const uniform = this._uniform(options, countSteps(windows, this.delays), batch)
    const texts = options.texts ?? Array(batch).fill(null)
    const { selfWav, signal } = options
    /** @param {Window} window */
    const conditioningOf = async ({ start }) =>
      this.conditioning.build(texts, selfWav ? await selfWav(start / (this.frameRate ?? 1)) : null, sampling)
    const first = await conditioningOf(windows[0])
    const capacity = Math.max(...windows.map((w) => w.frames)) + Math.max(...this.delays)
    const decoder = new Decoder(this.graph, batch, capacity, first, sampling)
    const pattern = { delays: this.delays, special: this.special }
    return new Generation(decoder, prompt, windows, pattern, uniform, selfWav ? conditioningOf : () => first, signal)
  }

  /**
   * A decoder with an empty KV cache, for a generation loop of your own. Call release() when you are done.
   *
   * @param {{ batch?: number, capacity: number, texts?: PerRow | null, selfWav?: PerRow | null, sampling?: Partial<Sampling> }} options
   *   capacity: columns
   */
  async decoder({ batch = 1, capacity, texts, selfWav, sampling: given }) {
    const sampling = this._sampling(given)
    const conditioning = await this.conditioning.build(texts ?? Array(batch).fill(null), selfWav ?? null, sampling)
    return new Decoder(this.graph, batch, capacity, conditioning, sampling)
  }

  /**
   * The prompt, validated; empty where there is none.
   *
   * @param {ArrayLike<ArrayLike<number>>[] | null | undefined} prompt
   * @param {number} batch
   * @returns {ArrayLike<ArrayLike<number>>[]}
   */
  _prompt(prompt, batch) {
    if (!prompt) return Array.from({ length: batch }, () => this.delays.map(() => []))
    const frames = prompt[0][0]?.length
    for (const row of prompt) {
      if (row.length !== this.codebooks || Array.from(row).some((codes) => codes.length !== frames)) {
        throw new RangeError(`prompt: got ${row.length} codebooks, expected ${this.codebooks} of equal length`)
      }
      const wrong = Array.from(row, (codes) => Array.from(codes))
        .flat()
        .find((code) => !(code >= 0 && code < this.card))
      if (wrong !== undefined) throw new RangeError(`prompt: got code ${wrong}, expected 0 .. ${this.card - 1}`)
    }
    return prompt
  }

  /**
   * The windows of a generation, at least one; throws where it would not be longer than the prompt.
   *
   * @param {number} prompt frames
   * @param {GenerationOptions} options
   */
  _windows(prompt, { frames, duration, maxDuration, extendStride }) {
    if ((frames === undefined) === (duration === undefined)) {
      throw new TypeError(`got frames ${frames} and duration ${duration}, expected one of them`)
    }
    let found = [{ start: 0, known: prompt, frames: frames ?? 0 }]
    if (duration !== undefined) {
      if (!this.frameRate) throw new BundleError('duration: the bundle has no codec and so no frame rate; give frames')
      const [length, stride] = [maxDuration ?? this.maxDuration, extendStride ?? this.extendStride]
      found = windows(duration, length, stride, this.frameRate, prompt)
    }
    const last = found[found.length - 1]
    const total = last ? last.start + last.frames : prompt
    if (!Number.isInteger(total)) throw new RangeError(`frames: got ${total}, expected a whole number`)
    if (total <= prompt) throw new RangeError(`requested ${total} frames, but the prompt already has ${prompt}`)
    return found
  }

  /**
   * The bundle's sampling with some values replaced; throws where one is out of range.
   *
   * @param {Partial<Sampling>} [given]
   * @returns {Sampling}
   */
  _sampling(given = {}) {
    const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined))
    const unknown = Object.keys(defined).filter((name) => !(name in this.sampling))
    if (unknown.length)
      throw new TypeError(`sampling: got ${unknown}, expected ${Object.keys(this.sampling).join(', ')}`)
    const sampling = /** @type {Sampling} */ ({ ...this.sampling, ...defined })
    validateSampling(sampling)
    return sampling
  }

  /**
   * Uniform numbers [steps x B x K]: as given, or from the seed.
   *
   * @param {GenerationOptions} options
   * @param {number} steps
   * @param {number} batch
   */
  _uniform({ uniform, seed = randomSeed() }, steps, batch) {
    const size = steps * batch * this.codebooks
    if (uniform) {
      if (uniform.length !== size || uniform.some((u) => !(u >= 0 && u < 1))) {
        throw new RangeError(
          `uniform: got ${uniform.length} numbers, expected ${steps} x ${batch} x ${this.codebooks} in [0, 1)`,
        )
      }
      return uniform
    }
    const draws = new Float32Array(size)
    seedsOf(seed, batch).forEach((own, b) => {
      const take = uniforms(own, steps, this.codebooks)
      for (let s = 0; s < steps; s++) {
        draws.set(take.subarray(s * this.codebooks, (s + 1) * this.codebooks), (s * batch + b) * this.codebooks)
      }
    })
    return draws
  }
}

/** A random seed of 32 bits. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0]

/**
 * B, from whichever options have it; throws where they differ.
 *
 * @param {GenerationOptions} options
 */
function batchOf({ prompt, texts, batch }) {
  const sizes = [prompt?.length, texts?.length, batch].filter((size) => size !== undefined)
  if (new Set(sizes).size > 1 || sizes.includes(0)) {
    throw new RangeError(`rows: got ${sizes.join(', ')} in prompt, texts and batch, expected one number above 0`)
  }
  return sizes[0] ?? 1
}

/** @param {Sampling} sampling */
function validateSampling({ temperature, topK, topP, cfgCoef, cfgCoefBeta }) {
  if (!(temperature >= 0)) throw new RangeError(`temperature: got ${temperature}, expected 0 or more`)
  if (!(topK >= 0 && Number.isInteger(topK))) {
    throw new RangeError(`topK: got ${topK}, expected a whole number, 0 (off) or more`)
  }
  if (!(topP >= 0 && topP <= 1)) throw new RangeError(`topP: got ${topP}, expected 0 (off) to 1`)
  if (!Number.isFinite(cfgCoef)) throw new RangeError(`cfgCoef: got ${cfgCoef}, expected a finite number`)
  if (cfgCoefBeta !== null && !Number.isFinite(cfgCoefBeta)) {
    throw new RangeError(`cfgCoefBeta: got ${cfgCoefBeta}, expected a finite number or null`)
  }
}

/**
 * The seed of each take.
 *
 * @param {number | bigint | (number | bigint)[]} seed
 * @param {number} batch
 * @returns {bigint[]}
 */
function seedsOf(seed, batch) {
  const wrong = new RangeError(
    `seed: got ${seed}, expected a whole number from 0 to 2^64 - ${batch}, or a list of ${batch} seeds`,
  )
  /** @type {bigint[]} */
  let seeds
  try {
    seeds = Array.isArray(seed) ? seed.map(BigInt) : Array.from({ length: batch }, (_, b) => BigInt(seed) + BigInt(b))
  } catch {
    throw wrong
  }
  if (seeds.length !== batch || seeds.some((s) => s < 0n || s >= 2n ** 64n)) throw wrong
  return seeds
}
