/**
 * The loop around the graphs.
 *
 *     columns = delay(prompt)                    known, unknown and special places
 *     cross   = lm_condition(texts)              once; no rows for null text
 *     lm_inference(columns of the prompt)        fills the caches, draws the next column
 *     lm_inference(one column), again and again  until no column is left
 *     codes   = undelay(columns)                 and from the start with the last of them, where a window ends
 *
 * Melody and style models have in place of cross a prefix, [melody or style | text], which the first call reads before
 * the columns.
 */

import { cachesFor } from './caches.js'
import { codesOf, floats } from './manifest.js'
import { delay, prefillLength, undelay, UNKNOWN } from './pattern.js'
import { uniforms } from './philox.js'
import { BundleError } from './source.js'
import { windows } from './windows.js'

/**
 * @typedef {import('./manifest.js').Manifest} Manifest
 * @typedef {import('./manifest.js').Graph} Graph
 * @typedef {import('./manifest.js').Tensor} Tensor
 * @typedef {import('./windows.js').Window} Window
 * @typedef {Int32Array[][]} Codes [B][K] -> frames or columns
 * @typedef {(Float32Array | null)[]} Rows per row of a batch [N x width] without padding, or null for nothing
 * @typedef {(start: number) => Rows | Promise<Rows>} SelfWav melody or style, by the start of a window in seconds
 *
 * @typedef {object} Sampling how codes are drawn
 * @property {number} temperature 0: greedy
 * @property {number} topK keep the k most probable codes; 0: all
 * @property {number} topP keep the most probable codes up to this sum; > 0 goes before topK
 * @property {number} cfgCoef classifier-free guidance; where nothing is told it changes nothing
 * @property {number | null} cfgCoefBeta double guidance: how much more the text counts than melody or style; null: off
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
 *
 * @typedef {object} Told what a generation is told, as lm_inference takes it
 * @property {number} rows B without guidance, 2B with it, 3B with double guidance: nulls last
 * @property {Record<string, Tensor>} cross every layer's keys and values of the texts
 * @property {Tensor | null} prefix [R, M, dim], read before the first column in melody and style models
 */

const SELF_WAV = /** @type {Record<string, string>} */ ({ melody: 'lm_melody', style: 'lm_style' })
const CACHE_UPDATES = ['in_place', 'new_columns']

/** The caches of one generation, and the model called on it column by column. */
export class Decoder {
  /**
   * @param {Graph} graph lm_inference
   * @param {number} batch
   * @param {number} capacity of columns, the prefix not counted
   * @param {Told} told
   * @param {Sampling} sampling
   */
  constructor(graph, batch, capacity, told, sampling) {
    this.graph = graph
    this.batch = batch
    this.told = told
    this.before = told.prefix?.dims[1] ?? 0
    this.filled = 0 // places of the caches that are taken, the prefix's among them
    this.sizes = { batch, rows: told.rows, capacity: this.before + capacity, prefix: 0 }
    this.caches = cachesFor(graph, this.sizes)
    this.settings = {
      cfg_coef: graph.tensor('cfg_coef', [sampling.cfgCoef]),
      temperature: graph.tensor('temperature', [sampling.temperature]),
      top_k: graph.tensor('top_k', [sampling.topK]),
      top_p: graph.tensor('top_p', [sampling.topP]),
      ...(told.prefix && { cfg_coef_beta: graph.tensor('cfg_coef_beta', [sampling.cfgCoefBeta ?? 1]) }),
    }
  }

  /**
   * Forget all columns, for another prefix of the same size.
   *
   * @param {Told} told
   */
  restart(told) {
    this.told = told
    this.filled = 0
  }

  /**
   * Read columns [B][K] -> S and draw the one after the last with uniform [B x K].
   *
   * The first call takes any number of columns, those after it one.
   *
   * @param {Codes} codes
   * @param {Float32Array} uniform
   * @returns {Promise<Codes>} [B][K] -> 1
   */
  async call(codes, uniform) {
    const results = await this._run(codes, uniform, 'next_codes')
    return codesOf(results.next_codes)
  }

  /**
   * The same, but gives the guided logits [B x K x card] of the column after the last, for an own sampler.
   *
   * @param {Codes} codes
   * @returns {Promise<Float32Array>}
   */
  async logits(codes) {
    const results = await this._run(codes, new Float32Array(codes.length * codes[0].length), 'logits')
    return floats(results.logits)
  }

  /**
   * @param {Codes} codes
   * @param {Float32Array} uniform
   * @param {string} wanted
   */
  async _run(codes, uniform, wanted) {
    const { graph, told, sizes } = this
    const columns = codes[0][0].length
    const every = Array.from({ length: told.rows / this.batch }, () => codes).flat(2) // conditioned, then unconditioned
    const first = this.filled === 0
    const after = this.filled + columns + (first ? this.before : 0)
    const feeds = {
      ...this.caches.inputs(this.filled, after),
      ...told.cross,
      ...this.settings,
      ...(told.prefix && { prefix: first ? told.prefix : graph.zeros('prefix', sizes) }),
      codes: graph.tensor('codes', concat(every), { ...sizes, columns }),
      position: graph.tensor('position', [this.filled]),
      uniform: graph.tensor('uniform', uniform, sizes),
    }
    const session = await graph.session()
    const results = await session.run(feeds, { [wanted]: null, ...this.caches.outputs() })
    this.caches.update(results, this.filled, after)
    this.filled = after
    return results
  }

  /** Free the caches. */
  release() {
    this.caches.release()
  }
}

/** @param {Int32Array[]} arrays */
function concat(arrays) {
  const all = new Int32Array(arrays.reduce((sum, array) => sum + array.length, 0))
  arrays.reduce((at, array) => (all.set(array, at), at + array.length), 0)
  return all
}

/** One generation under way. Iterating draws column after column: the loop that a port writes. */
export class Generation {
  /**
   * @param {Decoder} decoder
   * @param {ArrayLike<ArrayLike<number>>[]} prompt [B][K] -> P
   * @param {Window[]} cut
   * @param {{ delays: number[], special: number }} pattern
   * @param {Float32Array} uniform [columns in all x B x K]
   * @param {(window: Window) => Told | Promise<Told>} told what each window is told
   * @param {AbortSignal} [signal]
   */
  constructor(decoder, prompt, cut, pattern, uniform, told, signal) {
    this.decoder = decoder
    this.pattern = pattern
    this.windows = cut
    this.uniform = uniform
    this.told = told
    this.signal = signal
    const last = cut[cut.length - 1]
    /** @type {Codes} */
    this.all = prompt.map((row) =>
      pattern.delays.map((_, k) => {
        const frames = new Int32Array(last.start + last.frames)
        frames.set(row[k])
        return frames
      }),
    )
    this.frames = prompt[0][0].length // that have all their codes
    this.total = columnsDrawn(cut, pattern.delays)
  }

  /** Gives how many columns of `total` are drawn, after each. */
  async *[Symbol.asyncIterator]() {
    const { delays, special } = this.pattern
    const [latest, size] = [Math.max(...delays), this.all.length * delays.length]
    let done = 0
    try {
      for (const window of this.windows) {
        if (done) this.decoder.restart(await this.told(window))
        const { start, known, frames } = window
        const columns = this.all.map((row) => delay(slice(row, start, start + known), delays, frames, special))
        const prefill = prefillLength(known, delays)
        let fresh = columns.map((row) => slice(row, 0, prefill))
        for (let s = prefill; s < frames + latest + 1; s++) {
          await turn()
          this.signal?.throwIfAborted()
          const codes = await this.decoder.call(fresh, this.uniform.subarray(done * size, (done + 1) * size))
          columns.forEach((row, b) => row.forEach((column, k) => column[s] === UNKNOWN && (column[s] = codes[b][k][0])))
          fresh = columns.map((row) => slice(row, s, s + 1))
          const t = s - latest - 1 // the frame that the column completes
          if (t >= known) {
            const complete = columns.map((row) => undelay(slice(row, t, s + 1), delays))
            this.all.forEach((row, b) => row.forEach((codebook, k) => (codebook[start + t] = complete[b][k][0])))
            this.frames = start + t + 1
          }
          yield ++done
        }
      }
    } finally {
      this.decoder.release()
    }
  }

  /**
   * The frames that are complete, from `start` on.
   *
   * @param {number} [start]
   * @returns {Codes}
   */
  codes(start = 0) {
    return this.all.map((row) => slice(row, start, this.frames))
  }
}

/**
 * A turn of the event loop: WASM's runs are done when they return, and a worker would not hear that it is cancelled.
 * A timer would take 4 ms.
 */
function turn() {
  const { port1, port2 } = new MessageChannel()
  return new Promise((resolve) => {
    port1.onmessage = () => {
      port1.close()
      resolve(undefined)
    }
    port2.postMessage(null)
  })
}

/**
 * @param {Int32Array[]} row
 * @param {number} start
 * @param {number} end
 */
const slice = (row, start, end) => row.map((codes) => codes.slice(start, end))

/**
 * How many columns all windows draw.
 *
 * @param {Window[]} cut
 * @param {number[]} delays
 */
export function columnsDrawn(cut, delays) {
  const drawn = cut.map((w) => w.frames + Math.max(...delays) + 1 - prefillLength(w.known, delays))
  return drawn.reduce((sum, n) => sum + n, 0)
}

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
    this.prefixed = 'prefix' in this.graph.inputs
    /** @type {Promise<Float32Array | null> | undefined} */
    this.nullWav = undefined
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
      this.conditions(texts, selfWav ? await selfWav(start / (this.frameRate ?? 1)) : null, sampling)
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
    const told = await this.conditions(texts ?? Array(batch).fill(null), selfWav ?? null, drawn)
    return new Decoder(this.graph, batch, capacity, told, drawn)
  }

  /**
   * Texts [N x E] and what lm_melody or lm_style made [F x dim], per row, as lm_inference takes them.
   *
   * @param {Rows} texts
   * @param {Rows | null} given
   * @param {Sampling} sampling
   * @returns {Promise<Told>}
   */
  async conditions(texts, given, sampling) {
    const batch = texts.length
    /** @type {Rows} */
    const nulls = Array(batch).fill(null)
    const wavs = given ?? nulls
    if (!this.wav && given) throw new TypeError('this model takes no melody and no style: its fuser has no self_wav')
    if (!this.wav && sampling.cfgCoefBeta !== null) {
      throw new TypeError('cfgCoefBeta: this model has no melody or style beside which a text could count more')
    }
    if (wavs.length !== batch) throw new RangeError(`rows: got ${wavs.length} melodies or styles for ${batch} rows`)
    for (const text of texts) {
      if (text && (!text.length || text.length % this.textDim)) {
        throw new RangeError(`texts: got ${text.length} numbers, expected N x ${this.textDim}, N > 0`)
      }
    }
    const groups = [[texts, wavs]]
    if (sampling.cfgCoefBeta !== null && texts.some(Boolean)) groups.push([nulls, wavs], [nulls, nulls])
    // Where nothing is told, both guidance rows would be the same, so one is exact; so is coefficient 1.
    else if (sampling.cfgCoef !== 1 && [...texts, ...wavs].some(Boolean)) groups.push([nulls, nulls])
    const rows = groups.length * batch
    if (this.prefixed) {
      const [everyText, everyWav] = [0, 1].map((part) => groups.flatMap((group) => group[part]))
      return { rows, cross: {}, prefix: await this._prefix(everyWav, everyText) }
    }
    if (texts.some(Boolean)) return { rows, cross: await this._condition(texts), prefix: null }
    const names = Object.keys(this.graph.inputs).filter((name) => name.startsWith('cross_key_values.'))
    // Nulls have no text to attend to. WebGPU's attention does not take no rows: a key of zeros adds exactly zero.
    const none = { texts: this.graph.backend === 'webgpu' ? rows : 0, text: 1 }
    return { rows, cross: Object.fromEntries(names.map((name) => [name, this.graph.zeros(name, none)])), prefix: null }
  }

  /**
   * [melody or style | text] of every row, the shorter ones padded with zeros.
   *
   * @param {Rows} wavs
   * @param {Rows} texts
   */
  async _prefix(wavs, texts) {
    const dim = Number(this.graph.inputs.prefix.shape[2])
    const nullWav = await this._nullWav()
    const heard = wavs.map((row) => row ?? nullWav)
    const projected = await this._descriptions(texts, dim)
    // Where no row has any, audiocraft leaves one place of zeros.
    const [wavPlaces, textPlaces] = [this.wav ? longest(heard, dim) : 0, longest(projected, dim)]
    const places = wavPlaces + textPlaces
    const values = new Float32Array(wavs.length * places * dim)
    heard.forEach((row, r) => row && values.set(row, r * places * dim))
    projected.forEach((row, r) => row && values.set(row, (r * places + wavPlaces) * dim))
    return this.graph.tensor('prefix', values, { rows: wavs.length, prefix: places })
  }

  /**
   * Texts [N x E] -> [N x dim]; null for null text.
   *
   * @param {Rows} rows
   * @param {number} dim
   * @returns {Promise<Rows>}
   */
  async _descriptions(rows, dim) {
    const texts = rows.filter((row) => row !== null)
    if (!texts.length) return rows
    const { description } = await this._condition(texts)
    const [values, places] = [await floats(description), description.dims[1]]
    let next = 0
    return rows.map((row) => {
      if (!row) return null
      const at = next++ * places * dim
      return values.subarray(at, at + (row.length / this.textDim) * dim)
    })
  }

  /** What stands for no melody [F x dim]: silence is one, and not zeros. null in style models: zeros. */
  _nullWav() {
    const silence = async () => {
      const { wav } = this
      if (!wav || !('audio' in wav.inputs)) return null
      const { self_wav } = await wav.run({ audio: wav.tensor('audio', [0], { melodies: 1, samples: 1 }) })
      return floats(self_wav)
    }
    this.nullWav ??= silence()
    return this.nullWav
  }

  /**
   * lm_condition of texts (null: null text): every layer's keys and values, or the text's part of a prefix.
   *
   * Texts are padded with zeros to the longest: nothing masks them later, so padding is part of the model.
   *
   * @param {Rows} texts
   */
  async _condition(texts) {
    const sizes = { texts: texts.length, text: longest(texts, this.textDim) }
    const states = new Float32Array(sizes.texts * sizes.text * this.textDim)
    const mask = new Int32Array(sizes.texts * sizes.text)
    texts.forEach((text, row) => {
      if (!text) return
      states.set(text, row * sizes.text * this.textDim)
      mask.fill(1, row * sizes.text, row * sizes.text + text.length / this.textDim)
    })
    return this.condition.run({
      text_states: this.condition.tensor('text_states', states, sizes),
      text_mask: this.condition.tensor('text_mask', mask, sizes),
    })
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

/**
 * The longest of some rows [N x width], at least 1.
 *
 * @param {Rows} rows
 * @param {number} width
 */
const longest = (rows, width) => Math.max(1, ...rows.map((row) => (row ? row.length / width : 0)))
