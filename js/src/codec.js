/**
 * Sound to codes and back, whole or as the codes come.
 *
 * compression_stream takes the next frames and what the call before left, and gives audio up to the last frame it was
 * fed. The end of it, `lookahead` frames, is as if the sound stopped there:
 *
 *     call 1  [ size    | lookahead ]
 *     call 2            [ size      | lookahead ]           heard is what stands before `lookahead`,
 *     call 3                        [ rest       ]          and at the end all of the last call
 */

import { join } from './arrays.js'
import { codesOf, floats } from './manifest.js'

/**
 * @typedef {import('./generation.js').Codes} Codes
 * @typedef {Float32Array[]} Sound one array a channel
 */

// Frames that are decoded at once where no one waits for the first: more take no less time, but more memory.
const PIECE = 150

/** A bundle's codec. A stereo model has a mono codec, its codebooks left and right in turn. */
export class Codec {
  /** @param {import('./manifest.js').Manifest} manifest */
  constructor(manifest) {
    const model = manifest.need('model', 'sample_rate', 'channels', 'hop', 'frame_rate', 'lookahead')
    this.encoder = manifest.graph('compression_encode')
    this.stream = manifest.graph('compression_stream')
    /** @type {number} */
    this.sampleRate = model.sample_rate
    /** @type {number} */
    this.channels = model.channels
    /** @type {number} */
    this.hop = model.hop
    /** @type {number} */
    this.frameRate = model.frame_rate
    /** @type {number} */
    this.lookahead = model.lookahead
    /** 2: left and right apart */
    this.voices = this.channels / Number(this.encoder.inputs.audio.shape[1])
  }

  /**
   * Sound at the codec's rate -> codes [K] of ceil(samples / hop) frames.
   *
   * @param {Sound} audio
   * @returns {Promise<Int32Array[]>}
   */
  async encode(audio) {
    const { encoder, voices } = this
    const samples = audio[0].length
    const flat = new Float32Array(samples * audio.length)
    audio.forEach((channel, c) => flat.set(channel, c * samples))
    const sizes = { batch: voices, samples }
    const { codes } = await encoder.run({ audio: encoder.tensor('audio', flat, sizes) })
    const rows = await codesOf(codes)
    return rows[0].flatMap((_, k) => rows.map((voice) => voice[k]))
  }

  /**
   * Codes [K] of T > 0 frames -> sound of T x hop samples.
   *
   * @param {Int32Array[]} codes
   * @returns {Promise<Sound>}
   */
  async decode(codes) {
    /** @type {Sound[]} */
    const pieces = []
    for await (const [piece] of this.decodeStream([[codes]], PIECE)) pieces.push(piece)
    return pieces[0].map((_, channel) => join(pieces.map((piece) => piece[channel])))
  }

  /**
   * Codes as they come, any number of frames -> the sound of each take, `size` frames at a time as soon as it is final,
   * the last one shorter.
   *
   * @param {AsyncIterable<Codes> | Iterable<Codes>} parts
   * @param {number} size
   * @returns {AsyncGenerator<Sound[]>}
   */
  async *decodeStream(parts, size) {
    const step = size * this.hop
    /** @type {Codes | null} */
    let held = null
    /** @type {Sound[] | null} */
    let audio = null
    let needed = size + this.lookahead // frames for the next `size` to be final
    const decode = this._decoder()
    for await (const part of parts) {
      held = held ? held.map((row, b) => row.map((codes, k) => join([codes, part[b][k]]))) : part
      while (held[0][0].length >= needed) {
        audio = await decode(cut(held, 0, needed))
        yield cut(audio, 0, step)
        audio = cut(audio, step)
        held = cut(held, needed)
        needed = size
      }
    }
    if (held && held[0][0].length) audio = await decode(held)
    for (let at = 0; audio && at < audio[0][0].length; at += step) yield cut(audio, at, at + step)
  }

  /**
   * compression_stream, and what each call leaves for the next: codes [B][K] -> the sound of the frames that were not
   * final before, and of these.
   */
  _decoder() {
    const { stream, voices } = this
    /** @type {Record<string, import('./manifest.js').Tensor>} */
    let past = {}
    /** @param {Codes} codes */
    return async (codes) => {
      const rows = codes.flatMap((row) =>
        Array.from({ length: voices }, (_, v) => row.filter((_, k) => k % voices === v)),
      )
      const names = Object.keys(stream.inputs).filter((name) => name.startsWith('past.'))
      if (!Object.keys(past).length)
        past = Object.fromEntries(names.map((name) => [name, this._empty(name, rows.length)]))
      const sizes = { batch: rows.length, frames: rows[0][0].length }
      const results = await stream.run({
        codes: stream.tensor('codes', join(rows.flat()), named(stream.inputs.codes, sizes)),
        ...past,
      })
      past = Object.fromEntries(names.map((name) => [name, results[name.replace('past', 'present')]]))
      const [values, samples] = [await floats(results.audio), results.audio.dims[2]]
      return codes.map((_, b) =>
        Array.from({ length: this.channels }, (_, c) => {
          const at = (b * this.channels + c) * samples
          return values.slice(at, at + samples)
        }),
      )
    }
  }

  /**
   * What there is before the first frame: no frames, and zeros.
   *
   * @param {string} name
   * @param {number} batch
   */
  _empty(name, batch) {
    return this.stream.zeros(name, named(this.stream.inputs[name], { batch, frames: 0 }))
  }
}

/**
 * Sizes by the names that a port has for them: the first axis but that of the LSTM's state is the batch.
 *
 * @param {import('./manifest.js').Port} port
 * @param {{ batch: number, frames: number }} sizes
 */
function named({ shape }, { batch, frames }) {
  return Object.fromEntries(
    shape.filter((size) => typeof size === 'string').map((size) => [size, size === 'batch' ? batch : frames]),
  )
}

/**
 * @template {Float32Array | Int32Array} T
 * @param {T[][]} rows
 * @param {number} start
 * @param {number} [end]
 * @returns {T[][]}
 */
const cut = (rows, start, end) => rows.map((row) => row.map((array) => /** @type {T} */ (array.slice(start, end))))
