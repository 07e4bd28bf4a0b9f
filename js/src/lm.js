/** A bundle's language model: what is asked for, checked, and the generation that answers it. */

import { Conditions } from './conditions.js'
import { columnsDrawn, Decoder, Generation } from './generation.js'
import { uniforms } from './philox.js'
import { BundleError } from './source.js'
import { windows } from './windows.js'

/**
 * @typedef {import('./manifest.js').Manifest} Manifest
 * @typedef {import('./windows.js').Window} Window
 * @typedef {import('./generation.js').Codes} Codes
 * @typedef {import('./generation.js').Sampling} Sampling
 * @typedef {import('./conditions.js').Rows} Rows
 * @typedef {(start: number) => Rows | Promise<Rows>} SelfWav melody or style, by the start of a window in seconds
 *
 * @typedef {object} How how to generate
 * @property {ArrayLike<ArrayLike<number>>[] | null} [prompt] codes [B][K] -> P in 0 .. card - 1
 * @property {Rows | null} [texts] the text encoder's last hidden state of each row
 * @property {SelfWav | null} [selfWav] in melody and style models, what stands before the text
 * @property {number} [frames] in all, the prompt included: more than the prompt has; in one window, however long
 * @property {number} [duration] or seconds; in windows of maxDuration
 * @property {number} [maxDuration] seconds of a window: what the model was trained on, where not given
 * @property {number} [extendStride] seconds from one window to the next: the bundle's, where not given
 * @property {number} [batch] rows, where neither a prompt nor texts say it
 * @property {Partial<Sampling>} [sampling] the bundle's, where not given
 * @property {number | bigint | (number | bigint)[]} [seed] take b is drawn with seed + b, or its own of a list
 * @property {Float32Array} [uniform] [steps x B x K] in [0, 1) in place of a seed
 * @property {AbortSignal} [signal]
 * @property {(done: number, total: number) => void} [onProgress] columns
 */

const SELF_WAV = /** @type {Record<string, string>} */ ({ melody: 'lm_melody', style: 'lm_style' })
const CACHE_UPDATES = ['in_place', 'new_columns']

/** lm_inference, lm_condition and lm_melody or lm_style of a bundle. */
export class LanguageModel {
  /** @param {Manifest} manifest */
  constructor(manifest) {
    const model = manifest.need('model', 'delays', 'codebooks', 'card', 'special_token', 'text_dim', 'max_duration')
    const defaults = manifest.need('defaults', 'cfg_coef', 'top_k', 'top_p', 'temperature', 'extend_stride')
    const update = manifest.tree.cache_update
    if (!CACHE_UPDATES.includes(update)) {
      const path = manifest.files.label('manifest.json')
      throw new BundleError(`${path}: cache_update is ${update}, expected one of ${CACHE_UPDATES.join(', ')}`)
    }
    this.manifest = manifest
    this.graph = manifest.graph('lm_inference')
    this.condition = manifest.graph('lm_condition')
    /** @type {'melody' | 'style' | null} */
    this.kind = model.self_wav ?? null
    this.wav = this.kind && manifest.graph(SELF_WAV[this.kind])
    /** @type {number[]} */
    this.delays = model.delays
    /** @type {number} */
    this.codebooks = model.codebooks
    /** @type {number} */
    this.card = model.card
    /** @type {number} */
    this.special = model.special_token
    /** @type {number} */
    this.textDim = model.text_dim
    /** @type {number | null} */
    this.frameRate = model.frame_rate
    /** @type {number} */
    this.maxDuration = model.max_duration
    /** @type {number} */
    this.extendStride = defaults.extend_stride
    /** @type {Sampling} */
    this.sampling = {
      temperature: defaults.temperature,
      topK: defaults.top_k,
      topP: defaults.top_p,
      cfgCoef: defaults.cfg_coef,
      cfgCoefBeta: null,
    }
    this.conditions = new Conditions(this.graph, this.condition, this.wav, this.textDim)
  }

  /**
   * Continue codes to `frames` or `duration` in all, the prompt included.
   *
   * @param {How} how
   * @returns {Promise<Codes>}
   */
  async generateCodes(how) {
    const generation = await this.begin(how)
    for await (const done of generation) how.onProgress?.(done, generation.total)
    return generation.codes()
  }

  /**
   * What generateCodes iterates over, for whoever wants the frames as they come.
   *
   * @param {How} how
   */
  async begin(how) {
    const batch = this._batch(how)
    const prompt = this._prompt(how.prompt, batch)
    const cut = this._windows(prompt[0][0].length, how)
    const sampling = this._sampling(how.sampling)
    const uniform = this._uniform(how, columnsDrawn(cut, this.delays), batch)
    const texts = how.texts ?? Array(batch).fill(null)
    const { selfWav } = how
    /** @param {Window} window */
    const told = async ({ start }) =>
      this.conditions.told(texts, selfWav ? await selfWav(start / (this.frameRate ?? 1)) : null, sampling)
    const first = await told(cut[0])
    const capacity = Math.max(...cut.map((w) => w.frames)) + Math.max(...this.delays)
    const decoder = new Decoder(this.graph, batch, capacity, first, sampling)
    const pattern = { delays: this.delays, special: this.special }
    return new Generation(decoder, prompt, cut, pattern, uniform, selfWav ? told : () => first, how.signal)
  }

  /**
   * Empty caches for `capacity` columns, and what is told.
   *
   * @param {{ batch?: number, capacity: number, texts?: Rows | null, selfWav?: Rows | null, sampling?: Partial<Sampling> }} how
   */
  async decoder({ batch = 1, capacity, texts, selfWav, sampling }) {
    const drawn = this._sampling(sampling)
    const told = await this.conditions.told(texts ?? Array(batch).fill(null), selfWav ?? null, drawn)
    return new Decoder(this.graph, batch, capacity, told, drawn)
  }

  /** @param {How} how */
  _batch({ prompt, texts, batch }) {
    const said = [prompt?.length, texts?.length, batch].filter((size) => size !== undefined)
    if (new Set(said).size > 1 || said.includes(0)) {
      throw new RangeError(`rows: got ${said.join(', ')} of prompt, texts and batch, expected one number above 0`)
    }
    return said[0] ?? 1
  }

  /**
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
   * @param {number} prompt
   * @param {How} how
   */
  _windows(prompt, { frames, duration, maxDuration, extendStride }) {
    if ((frames === undefined) === (duration === undefined)) {
      throw new TypeError(`give frames or duration: got frames ${frames}, duration ${duration}`)
    }
    let cut = [{ start: 0, known: prompt, frames: frames ?? 0 }]
    if (duration !== undefined) {
      if (!this.frameRate) throw new BundleError('duration: this bundle has no codec and no frame rate; give frames')
      const [longestWindow, stride] = [maxDuration ?? this.maxDuration, extendStride ?? this.extendStride]
      cut = windows(duration, longestWindow, stride, this.frameRate, prompt)
    }
    const last = cut[cut.length - 1]
    const all = last ? last.start + last.frames : prompt
    if (!(all > prompt) || all !== Math.trunc(all)) {
      throw new RangeError(`${all} frames in all, the prompt has ${prompt}: expected more than the prompt`)
    }
    return cut
  }

  /**
   * The bundle's sampling, changed by what is given; throws where a value is out of range.
   *
   * @param {Partial<Sampling>} [given]
   * @returns {Sampling}
   */
  _sampling(given = {}) {
    const said = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined))
    const s = /** @type {Sampling} */ ({ ...this.sampling, ...said })
    const unknown = Object.keys(said).filter((name) => !(name in this.sampling))
    if (unknown.length)
      throw new TypeError(`sampling: got ${unknown}, expected ${Object.keys(this.sampling).join(', ')}`)
    if (!(s.temperature >= 0)) throw new RangeError(`temperature: got ${s.temperature}, expected 0 or more`)
    if (!(s.topK >= 0 && s.topK === Math.trunc(s.topK))) {
      throw new RangeError(`topK: got ${s.topK}, expected a whole number from 0 (off) up`)
    }
    if (!(s.topP >= 0 && s.topP <= 1)) throw new RangeError(`topP: got ${s.topP}, expected 0 (off) to 1`)
    if (!Number.isFinite(s.cfgCoef)) throw new RangeError(`cfgCoef: got ${s.cfgCoef}, expected a finite number`)
    if (s.cfgCoefBeta !== null && !Number.isFinite(s.cfgCoefBeta)) {
      throw new RangeError(`cfgCoefBeta: got ${s.cfgCoefBeta}, expected a finite number or null`)
    }
    return s
  }

  /**
   * @param {How} how
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
    seedsOf(seed, batch).forEach((one, b) => {
      const take = uniforms(one, steps, this.codebooks)
      for (let s = 0; s < steps; s++) {
        draws.set(take.subarray(s * this.codebooks, (s + 1) * this.codebooks), (s * batch + b) * this.codebooks)
      }
    })
    return draws
  }
}

/** A seed of 32 bits that no one chose. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0]

/**
 * @param {number | bigint | (number | bigint)[]} seed
 * @param {number} batch
 */
function seedsOf(seed, batch) {
  const wrong = new RangeError(
    `seed: got ${seed}, expected a whole number from 0 to 2^64 - ${batch}, or ${batch} of them`,
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
