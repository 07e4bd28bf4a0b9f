/**
 * Encodes audio to codes and decodes codes to audio, all at once or as a stream.
 *
 * compression_stream decodes a stream: each call takes new frames and the state that the call before returned, and
 * gives audio up to the last frame it got. The audio of its last `lookahead` frames is not final: it is as if the codes
 * ended there, and the next call gives it again.
 *
 *     call 1  [ size    | lookahead ]
 *     call 2            [ size      | lookahead ]           final is what stands before `lookahead`,
 *     call 3                        [ rest       ]          and all of the last call
 */

import { join } from './arrays.js'
import { validateSamples } from './audio.js'
import { shown, validateCodes } from './options.js'
import { codesOf, floatsOf } from './session.js'

/**
 * @typedef {import('./generation.js').Codes} Codes
 * @typedef {import('./audio.js').AudioChannels} AudioChannels
 * @typedef {import('./session.js').Tensor} Tensor
 */

// Frames a call of decode(). More frames a call are no faster, and take more memory.
const FRAMES_PER_CALL = 150
const MOST_FRAMES_PER_CALL = 1_500 // of a stream: longer pieces are decoded in parts

/** A bundle's codec. Stereo models have a mono codec; their codebooks alternate: left, right, left, right ... */
export class Codec {
  /** @param {import('./manifest.js').Manifest} manifest */
  constructor(manifest) {
    this.encoder = manifest.graph('compression_encode')
    const { model } = manifest.tree
    this.streamDecoder = manifest.graph('compression_stream')
    this.sampleRate = model.sample_rate
    this.channels = model.channels
    this.hop = model.hop
    this.frameRate = model.frame_rate
    this.lookahead = model.lookahead
    /** channels that the codec encodes apart: 2 in stereo models, otherwise 1 */
    this.sides = this.channels / Number(this.encoder.inputs.audio.shape[1])
    this.codebooks = this.sides * Number(this.encoder.outputs.codes.shape[1])
    this.card = model.card
  }

  /**
   * Audio at the codec's rate -> codes [K] of ceil(samples / hop) frames. Throws for audio of other channels, without
   * samples, or not finite.
   *
   * @param {AudioChannels} audio
   * @returns {Promise<Int32Array[]>}
   */
  async encode(audio) {
    const { encoder, sides, channels } = this
    audio = validateSamples('audio', audio)
    if (audio.length !== channels) {
      throw new RangeError(`audio: got ${audio.length} channels, expected ${channels}: give it to convertAudio`)
    }
    const sizes = { batch: sides, samples: audio[0].length }
    const { codes } = await encoder.run({ audio: encoder.tensor('audio', join(audio), sizes) })
    const rows = await codesOf(codes)
    return rows[0].flatMap((_, k) => rows.map((side) => side[k]))
  }

  /**
   * Codes [K] of T > 0 frames -> audio of T x hop samples. Throws for codes of another form or out of range.
   *
   * @param {Int32Array[]} codes
   * @param {AbortSignal} [signal]
   * @returns {Promise<AudioChannels>}
   */
  async decode(codes, signal) {
    if (codes?.[0]?.length === 0) throw new RangeError('codes: got no frames, expected one or more')
    /** @type {AudioChannels[]} */
    const pieces = []
    for await (const [piece] of this.decodeStream([[codes]], FRAMES_PER_CALL, signal)) pieces.push(piece)
    return pieces[0].map((_, channel) => join(pieces.map((piece) => piece[channel])))
  }

  /**
   * Decode codes as they come, any number of frames at a time. Gives the audio of every take in pieces of `size` frames
   * as soon as these are final; the last piece may be shorter. Throws for codes as decode() does, when they come.
   *
   * @param {AsyncIterable<Codes> | Iterable<Codes>} parts
   * @param {number} size frames
   * @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<AudioChannels[]>}
   */
  async *decodeStream(parts, size, signal) {
    if (!(Number.isInteger(size) && size > 0))
      throw new RangeError(`size: got ${shown(size)}, expected 1 frame or more`)
    const step = size * this.hop
    /** @type {Codes | null} */
    let pending = null // frames that are not decoded yet
    /** @type {AudioChannels[] | null} */
    let audio = null // decoded, but not final
    let needed = size + this.lookahead // frames until the next `size` of them are final
    const decode = this._streamDecoder(signal)
    for await (const part of parts) {
      for (const row of part) validateCodes('codes', row, this.codebooks, this.card)
      pending = pending ? pending.map((row, b) => row.map((codes, k) => join([codes, part[b][k]]))) : part
      while (pending[0][0].length >= needed) {
        audio = await decode(slice(pending, 0, needed))
        yield slice(audio, 0, step)
        audio = slice(audio, step)
        pending = slice(pending, needed)
        needed = size
      }
    }
    if (pending && pending[0][0].length) audio = await decode(pending)
    for (let at = 0; audio && at < audio[0][0].length; at += step) yield slice(audio, at, at + step)
  }

  /**
   * A function that decodes the next codes [B][K] and keeps the state between calls. It returns the audio of these
   * frames, after that of the earlier frames which was not final.
   *
   * @param {AbortSignal} [signal]
   */
  _streamDecoder(signal) {
    const decode = this._callDecoder()
    /** @param {Codes} codes */
    return async (codes) => {
      const frames = codes[0][0].length
      /** @type {AudioChannels[][]} */
      const pieces = []
      for (let at = 0; at < frames; at += MOST_FRAMES_PER_CALL) {
        signal?.throwIfAborted()
        const end = at + MOST_FRAMES_PER_CALL
        const audio = await decode(slice(codes, at, end))
        pieces.push(end < frames ? slice(audio, 0, audio[0][0].length - this.lookahead * this.hop) : audio)
      }
      if (pieces.length === 1) return pieces[0]
      return pieces[0].map((take, b) => take.map((_, channel) => join(pieces.map((piece) => piece[b][channel]))))
    }
  }

  /** _streamDecoder for any number of frames that one call of the graph takes. */
  _callDecoder() {
    const { streamDecoder: graph, sides } = this
    const names = Object.keys(graph.inputs).filter((name) => name.startsWith('past.'))
    /** @type {Record<string, Tensor> | null} */
    let past = null
    /** @param {Codes} codes */
    return async (codes) => {
      const rows = codes.flatMap((row) =>
        Array.from({ length: sides }, (_, side) => row.filter((_, k) => k % sides === side)),
      )
      const sizes = symbolicSizes(graph.inputs.codes, rows.length, rows[0][0].length)
      past ??= this._initialState(names, rows.length)
      const results = await graph.run({ codes: graph.tensor('codes', join(rows.flat()), sizes), ...past })
      past = Object.fromEntries(names.map((name) => [name, results[name.replace('past', 'present')]]))
      return this._split(await floatsOf(results.audio), codes.length)
    }
  }

  /**
   * The state before the first frame: tensors without frames, or zeros.
   *
   * @param {string[]} names
   * @param {number} batch
   * @returns {Record<string, Tensor>}
   */
  _initialState(names, batch) {
    const { streamDecoder: graph } = this
    return Object.fromEntries(
      names.map((name) => [name, graph.zeros(name, symbolicSizes(graph.inputs[name], batch, 0))]),
    )
  }

  /**
   * Samples [B x channels x any] -> the audio of each of B takes.
   *
   * @param {Float32Array} samples
   * @param {number} batch
   * @returns {AudioChannels[]}
   */
  _split(samples, batch) {
    const size = samples.length / (batch * this.channels)
    return Array.from({ length: batch }, (_, b) =>
      Array.from({ length: this.channels }, (_, c) => {
        const at = (b * this.channels + c) * size
        return samples.slice(at, at + size)
      }),
    )
  }
}

/**
 * Values for a tensor's symbolic sizes. Only the batch has a fixed name; all others count frames.
 *
 * @param {import('./session.js').TensorSpec} spec
 * @param {number} batch
 * @param {number} frames
 * @returns {import('./session.js').Sizes}
 */
function symbolicSizes({ shape }, batch, frames) {
  const names = shape.filter((size) => typeof size === 'string')
  return Object.fromEntries(names.map((name) => [name, name === 'batch' ? batch : frames]))
}

/**
 * @template {Float32Array | Int32Array} T
 * @param {T[][]} rows
 * @param {number} start
 * @param {number} [end]
 * @returns {T[][]}
 */
const slice = (rows, start, end) => rows.map((row) => row.map((array) => /** @type {T} */ (array.slice(start, end))))
