/** Conditioning: texts, melodies and styles as inputs of lm_inference. */

import { convertAudio } from './audio.js'
import { shown, validateTokens } from './options.js'
import { uniforms } from './philox.js'
import { floatsOf } from './session.js'

/**
 * @typedef {import('./session.js').Graph} Graph
 * @typedef {import('./session.js').Tensor} Tensor
 * @typedef {import('./generation.js').Sampling} Sampling
 * @typedef {(Float32Array | null)[]} PerRow [N x width] for each prompt of a batch, without padding; null: unconditional
 * @typedef {(start: number) => PerRow | Promise<PerRow>} SelfWav melody or style as the prefix's first part [F x dim]
 *   per prompt, in the window that starts at so many seconds
 *
 * @typedef {object} Conditioning what lm_inference is conditioned on
 * @property {number} rows R: conditioned rows, then unconditional ones. B without guidance, 2B with it; 3B with double
 *   guidance, which has rows of melody or style without text between them
 * @property {Record<string, Tensor>} cross cross-attention's keys and values of the texts, for every layer
 * @property {Tensor | null} prefix [R, M, dim], read before the first column; melody and style models have it in place
 *   of cross-attention
 */

/** Builds a Conditioning with lm_condition, and with lm_melody or lm_style where the model has one. */
export class ConditioningBuilder {
  /**
   * @param {Graph} graph lm_inference
   * @param {Graph} conditionGraph lm_condition
   * @param {Graph | null} selfWavGraph lm_melody or lm_style
   * @param {number} textDim E
   */
  constructor(graph, conditionGraph, selfWavGraph, textDim) {
    this.graph = graph
    this.conditionGraph = conditionGraph
    this.selfWavGraph = selfWavGraph
    this.textDim = textDim
    /** @type {Promise<Float32Array | null> | undefined} */
    this.unconditionalWav = undefined
  }

  /**
   * @param {PerRow} texts text states [N x E]
   * @param {PerRow | null} selfWav melody or style [F x dim]
   * @param {Sampling} sampling guidance decides which unconditional rows are needed
   * @param {PerRow | null} [negatives] texts of the unconditional rows; default: no text
   * @returns {Promise<Conditioning>}
   */
  async build(texts, selfWav, sampling, negatives) {
    this._validate(texts, selfWav, sampling)
    if (negatives) this._validateTexts('negatives', negatives)
    const groups = rowGroups(texts, selfWav ?? none(texts.length), sampling, negatives ?? none(texts.length))
    const rows = groups.length * texts.length
    if (this.isPrefixed) {
      const [allTexts, allWavs] = [groups.flatMap((group) => group.texts), groups.flatMap((group) => group.wavs)]
      return { rows, cross: {}, prefix: await this._prefix(allWavs, allTexts) }
    }
    const attending = groups.length > 1 && negatives?.some(Boolean) ? [...texts, ...negatives] : texts
    const cross = attending.some(Boolean) ? await this._runCondition(attending) : this._noCross(rows)
    return { rows, cross, prefix: null }
  }

  /** Whether conditions are a prefix, as in melody and style models. */
  get isPrefixed() {
    return 'prefix' in this.graph.inputs
  }

  /**
   * @param {PerRow} texts
   * @param {PerRow | null} selfWav
   * @param {Sampling} sampling
   */
  _validate(texts, selfWav, { cfgCoefBeta }) {
    if (!this.selfWavGraph && selfWav) {
      throw new TypeError('selfWav: this model takes no melody and no style; it has no self_wav conditioner')
    }
    if (!this.selfWavGraph && cfgCoefBeta !== null) {
      throw new TypeError('cfgCoefBeta: double guidance needs a melody or style model; leave it null')
    }
    if (selfWav && selfWav.length !== texts.length) {
      throw new RangeError(
        `selfWav: got ${selfWav.length} melodies or styles, expected one for each of ${texts.length} rows`,
      )
    }
    this._validateTexts('texts', texts)
    for (const wav of selfWav ?? []) if (wav) requireFloats('selfWav', wav)
  }

  /**
   * @param {'texts' | 'negatives'} name
   * @param {PerRow} rows
   */
  _validateTexts(name, rows) {
    for (const text of rows) {
      if (!text) continue
      requireFloats(name, text)
      if (text.length % this.textDim) {
        throw new RangeError(`${name}: got ${text.length} numbers, expected N x ${this.textDim} with N > 0`)
      }
      validateTokens(name, text.length / this.textDim)
    }
  }

  /**
   * Keys and values of no text. WebGPU's attention refuses empty tensors: one key and value of zeros add exactly zero.
   *
   * @param {number} rows
   */
  _noCross(rows) {
    const names = Object.keys(this.graph.inputs).filter((name) => name.startsWith('cross_key_values.'))
    const sizes = { texts: this.graph.backend === 'webgpu' ? rows : 0, text: 1 }
    return Object.fromEntries(names.map((name) => [name, this.graph.zeros(name, sizes)]))
  }

  /**
   * [melody or style | text] of every row; shorter ones are padded with zeros.
   *
   * @param {PerRow} wavs
   * @param {PerRow} texts
   */
  async _prefix(wavs, texts) {
    const dim = Number(this.graph.inputs.prefix.shape[2])
    const unconditionalWav = await this._unconditionalWav()
    const wavParts = wavs.map((row) => row ?? unconditionalWav)
    const textParts = await this._projectTexts(texts, dim)
    // Where no row has any, longest() is 1: audiocraft leaves one place of zeros.
    const [wavPlaces, textPlaces] = [this.selfWavGraph ? longest(wavParts, dim) : 0, longest(textParts, dim)]
    const places = wavPlaces + textPlaces
    const values = new Float32Array(wavs.length * places * dim)
    wavParts.forEach((row, r) => row && values.set(row, r * places * dim))
    textParts.forEach((row, r) => row && values.set(row, (r * places + wavPlaces) * dim))
    return this.graph.tensor('prefix', values, { rows: wavs.length, prefix: places })
  }

  /**
   * Text states [N x E] -> their part of the prefix [N x dim]; null for no text.
   *
   * @param {PerRow} rows
   * @param {number} dim
   * @returns {Promise<PerRow>}
   */
  async _projectTexts(rows, dim) {
    const texts = rows.filter((row) => row !== null)
    if (!texts.length) return rows
    const { description } = await this._runCondition(texts)
    const [values, places] = [await floatsOf(description), description.dims[1]]
    let next = 0
    return rows.map((row) => {
      if (!row) return null
      const at = next++ * places * dim
      return values.subarray(at, at + (row.length / this.textDim) * dim)
    })
  }

  /** A row without melody [F x dim]: what lm_melody makes of silence. null in style models, where it is zeros. */
  _unconditionalWav() {
    const encodeSilence = async () => {
      const graph = this.selfWavGraph
      if (!graph || !('audio' in graph.inputs)) return null
      const { self_wav } = await graph.run({ audio: graph.tensor('audio', [0], { melodies: 1, samples: 1 }) })
      return floatsOf(self_wav)
    }
    this.unconditionalWav ??= encodeSilence()
    return this.unconditionalWav
  }

  /**
   * lm_condition on texts (null: no text). Gives the keys and values of every layer, or the texts' part of a prefix.
   *
   * Texts are padded with zeros to the longest. Nothing masks the padding later: it is part of the model.
   *
   * @param {PerRow} texts
   */
  async _runCondition(texts) {
    const { conditionGraph: graph, textDim } = this
    const sizes = { texts: texts.length, text: longest(texts, textDim) }
    const states = new Float32Array(sizes.texts * sizes.text * textDim)
    const mask = new Int32Array(sizes.texts * sizes.text)
    texts.forEach((text, row) => {
      if (!text) return
      states.set(text, row * sizes.text * textDim)
      mask.fill(1, row * sizes.text, row * sizes.text + text.length / textDim)
    })
    return graph.run({
      text_states: graph.tensor('text_states', states, sizes),
      text_mask: graph.tensor('text_mask', mask, sizes),
    })
  }
}

/**
 * Groups of B rows each: conditioned, then unconditional; with double guidance, melody or style alone between them.
 *
 * Unconditional rows are left out where guidance changes nothing: with coefficient 1, or without any conditioning.
 *
 * @param {PerRow} texts
 * @param {PerRow} wavs
 * @param {Sampling} sampling
 * @param {PerRow} negatives texts of the unconditional rows
 */
function rowGroups(texts, wavs, { cfgCoef, cfgCoefBeta }, negatives) {
  const nothing = none(texts.length)
  const [conditioned, unconditional] = [
    { texts, wavs },
    { texts: negatives, wavs: nothing },
  ]
  if (cfgCoefBeta !== null && texts.some(Boolean)) return [conditioned, { texts: nothing, wavs }, unconditional]
  if ((cfgCoef !== 1 || cfgCoefBeta !== null) && [...texts, ...wavs, ...negatives].some(Boolean))
    return [conditioned, unconditional]
  return [conditioned]
}

/**
 * The conditioning of each prompt's takes: those of the first prompt, those of the second, ... in every group of rows.
 *
 * @param {Graph} graph lm_inference
 * @param {Conditioning} conditioning of the prompts
 * @param {number} takes
 * @returns {Conditioning}
 */
export function repeatConditioning(graph, { rows, cross, prefix }, takes) {
  const repeat = (/** @type {Tensor} */ tensor) => repeatRows(graph, tensor, takes)
  return {
    rows: rows * takes,
    cross: Object.fromEntries(Object.entries(cross).map(([name, tensor]) => [name, repeat(tensor)])),
    prefix: prefix && repeat(prefix),
  }
}

/**
 * Every row of a tensor so many times in a row.
 *
 * @param {Graph} graph
 * @param {Tensor} tensor
 * @param {number} times
 * @returns {Tensor}
 */
function repeatRows({ ort }, { type, data, dims }, times) {
  const values = /** @type {any} */ (data)
  const repeated = new values.constructor(values.length * times)
  const size = values.length / (dims[0] || 1)
  for (let row = 0; row < dims[0] * times; row++) {
    const from = Math.floor(row / times) * size
    repeated.set(values.subarray(from, from + size), row * size)
  }
  return new ort.Tensor(type, repeated, [dims[0] * times, ...dims.slice(1)])
}

/**
 * @param {string} name
 * @param {unknown} row
 */
function requireFloats(name, row) {
  if (!(row instanceof Float32Array)) throw new TypeError(`${name}: got ${shown(row)}, expected a Float32Array or null`)
  if (!row.length || !row.every(Number.isFinite)) {
    throw new RangeError(`${name}: got ${row.length} numbers, expected 1 or more, all of them finite`)
  }
}

/** @param {number} batch @returns {PerRow} */
const none = (batch) => Array(batch).fill(null)

/**
 * The length of the longest row [N x width], at least 1.
 *
 * @param {PerRow} rows
 * @param {number} width
 */
const longest = (rows, width) => Math.max(1, ...rows.map((row) => (row ? row.length / width : 0)))

/**
 * Melodies for lm_melody.
 *
 * @param {Graph} graph lm_melody
 * @param {(Float32Array | null)[]} wavs of each prompt, mono, at the model's rate; null: none
 * @param {number} sampleRate
 * @param {number | null} window seconds of a window; in each, a melody goes on where it was, and starts again where it
 *   ends, as in audiocraft. null: there is one window only; lm_melody repeats a short melody, and in a batch silence
 *   fills the shorter ones up to the longest
 * @returns {SelfWav}
 */
export function melodyConditioning(graph, wavs, sampleRate, window) {
  const melodies = [...new Set(wavs.filter((wav) => wav !== null))]
  const samples =
    window === null ? melodies.reduce((most, wav) => Math.max(most, wav.length), 0) : Math.trunc(window * sampleRate)
  return async (start) => {
    const first = Math.trunc(start * sampleRate)
    const audio = new Float32Array(melodies.length * samples)
    melodies.forEach((wav, row) => audio.set(window === null ? wav : repeated(wav, first, samples), row * samples))
    const sizes = { melodies: melodies.length, samples }
    const { self_wav } = await graph.run({ audio: graph.tensor('audio', audio, sizes) })
    const values = await floatsOf(self_wav)
    const size = values.length / melodies.length
    return wavs.map((wav) => {
      const at = wav ? melodies.indexOf(wav) * size : 0
      return wav && values.subarray(at, at + size)
    })
  }
}

/**
 * So many samples of a loop.
 *
 * @param {Float32Array} wav
 * @param {number} first index of the first one, also beyond its end
 * @param {number} samples
 */
function repeated(wav, first, samples) {
  const audio = new Float32Array(samples)
  for (let at = 0, from = first % wav.length; at < samples; from = 0) {
    const part = wav.subarray(from, from + samples - at)
    audio.set(part, at)
    at += part.length
  }
  return audio
}

/**
 * Styles for lm_style, the same for all windows; each is encoded once.
 *
 * @param {Graph} graph lm_style
 * @param {PerRow} features MERT's [F x width] of each prompt; null: no style
 * @param {number} evalQ how many levels of quantization are kept: fewer leave the model more freedom
 * @returns {SelfWav}
 */
export function styleConditioning(graph, features, evalQ) {
  const spec = graph.inputs.features
  const encode = async (/** @type {Float32Array} */ row) => {
    const frames = row.length / Number(spec.shape[2])
    const sizes = Object.fromEntries(spec.shape.slice(0, 2).map((size, axis) => [size, axis ? frames : 1]))
    const { self_wav } = await graph.run({
      features: graph.tensor('features', row, sizes),
      eval_q: graph.tensor('eval_q', [evalQ]),
    })
    return floatsOf(self_wav)
  }
  const encodeAll = async () => {
    /** @type {Map<Float32Array, Float32Array>} */
    const encoded = new Map()
    for (const row of features) if (row && !encoded.has(row)) encoded.set(row, await encode(row))
    return features.map((row) => row && /** @type {Float32Array} */ (encoded.get(row)))
  }
  /** @type {Promise<PerRow> | undefined} */
  let rows
  return () => (rows ??= encodeAll())
}

/**
 * Throw unless there are MERT's features [F x width], or null, for each prompt.
 *
 * @param {Graph} graph lm_style
 * @param {PerRow} features
 */
export function validateFeatures(graph, features) {
  const width = Number(graph.inputs.features.shape[2])
  for (const row of features) {
    if (row === null) continue
    requireFloats('styleFeatures', row)
    if (row.length % width) {
      throw new RangeError(`styleFeatures: got ${row.length} numbers, expected F x ${width} with F > 0`)
    }
  }
}

/**
 * MERT's features [F x width] of an excerpt.
 *
 * @param {Graph} mert style_features
 * @param {Float32Array} wav mono
 * @param {number} sampleRate its own
 * @param {{ seed: number | bigint, excerptLength: number, excerptStart?: number }} excerpt in seconds; without a start,
 *   the seed chooses one
 */
export async function mertFeatures(mert, wav, sampleRate, { seed, excerptLength, excerptStart }) {
  const samples = Math.trunc(excerptLength * sampleRate)
  const last = wav.length - samples
  const start = Math.trunc(
    excerptStart === undefined ? uniforms(seed, 1, 1)[0] * (last + 1) : excerptStart * sampleRate,
  )
  if (!(start >= 0 && start <= last)) {
    const from = excerptStart === undefined ? '' : ` from ${excerptStart} s on`
    throw new RangeError(
      `style: got ${(wav.length / sampleRate).toFixed(2)} s of audio, too short for an excerpt of ${excerptLength} s${from}`,
    )
  }
  const { style_sample_rate: rate, style_receptive_field: least } = mert.manifest.tree.model
  const [audio] = convertAudio([wav.slice(start, start + samples)], sampleRate, rate, 1)
  if (audio.length < least) {
    throw new RangeError(`excerptLength: got ${excerptLength} s, MERT needs ${(least / rate).toFixed(3)} s or more`)
  }
  const sizes = Object.fromEntries(mert.inputs.audio.shape.map((size, axis) => [size, axis ? audio.length : 1]))
  const { features } = await mert.run({ audio: mert.tensor('audio', audio, sizes) })
  return floatsOf(features)
}
