/** What a generation is told, as lm_inference takes it: texts, and in melody and style models a sound. */

import { floats } from './manifest.js'

/**
 * @typedef {import('./manifest.js').Graph} Graph
 * @typedef {import('./manifest.js').Tensor} Tensor
 * @typedef {import('./generation.js').Sampling} Sampling
 * @typedef {(Float32Array | null)[]} Rows per row of a batch [N x width] without padding, or null for nothing
 *
 * @typedef {object} Told
 * @property {number} rows B without guidance, 2B with it, 3B with double guidance: nulls last
 * @property {Record<string, Tensor>} cross every layer's keys and values of the texts
 * @property {Tensor | null} prefix [R, M, dim], read before the first column in melody and style models
 */

/** lm_condition, and what it and lm_melody or lm_style make for lm_inference. */
export class Conditions {
  /**
   * @param {Graph} graph lm_inference
   * @param {Graph} condition lm_condition
   * @param {Graph | null} wav lm_melody or lm_style
   * @param {number} textDim
   */
  constructor(graph, condition, wav, textDim) {
    this.graph = graph
    this.condition = condition
    this.wav = wav
    this.textDim = textDim
    /** @type {Promise<Float32Array | null> | undefined} */
    this.nullWav = undefined
  }

  /**
   * Texts [N x E] and what lm_melody or lm_style made [F x dim], per row, as lm_inference takes them.
   *
   * @param {Rows} texts
   * @param {Rows | null} given
   * @param {Sampling} sampling
   * @returns {Promise<Told>}
   */
  async told(texts, given, sampling) {
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
    if ('prefix' in this.graph.inputs) {
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
}

/**
 * The longest of some rows [N x width], at least 1.
 *
 * @param {Rows} rows
 * @param {number} width
 */
const longest = (rows, width) => Math.max(1, ...rows.map((row) => (row ? row.length / width : 0)))
