/**
 * The generation loop around the graphs.
 *
 *     columns = delay(prompt)                    known codes, unknown ones and special tokens
 *     cross   = lm_condition(texts)              once; without a text there are no keys and values
 *     lm_inference(columns of the prompt)        prefill: fills the KV cache, samples the next column
 *     lm_inference(one column)                   a step, repeated until all columns are sampled
 *     codes   = undelay(columns)
 *
 * Audio longer than a window repeats all of it, with the last frames of one window as the prompt of the next. Melody and
 * style models read a prefix, [melody or style | text], before the first column, and have no cross-attention.
 */

import { join } from './arrays.js'
import { copyRows } from './cache_rows.js'
import { repeatConditioning } from './conditioning.js'
import { delay, prefillLength, undelay, UNKNOWN } from './delay_pattern.js'
import { createCache } from './kv_cache.js'
import { codesOf, floatsOf } from './session.js'

/**
 * @typedef {import('./session.js').Graph} Graph
 * @typedef {import('./conditioning.js').Conditioning} Conditioning
 * @typedef {import('./windows.js').Window} Window
 * @typedef {Int32Array[][]} Codes [B][K] -> frames or columns
 *
 * @typedef {object} Sampling how codes are sampled
 * @property {number} temperature 0: greedy
 * @property {number} topK keep the k most probable codes; 0: all
 * @property {number} topP keep the most probable codes up to this sum of probabilities; 0: off, above 0 topK is ignored
 * @property {number} cfgCoef classifier-free guidance; without any conditioning it changes nothing
 * @property {number | null} cfgCoefBeta double guidance: how much more the text counts than melody or style; null: off
 * @property {boolean} twoStepCfg the unconditional pass apart: other logits in melody and style models, see two_step.js
 *
 * @typedef {object} Steps what a generation drives: a Decoder, or TwoStep, which has two of them
 * @property {Graph} graph
 * @property {(conditioning: Conditioning) => void} restart
 * @property {(codes: Codes, uniform: Float32Array) => Promise<Codes>} call
 * @property {(codes: Codes) => Promise<Float32Array>} logits
 * @property {() => void} release
 */

/**
 * Runs lm_inference on the columns of one generation, with its KV cache.
 *
 * P prompts of T takes each are B = P x T rows: the takes of the first prompt, those of the second, ...
 *
 * @implements {Steps}
 */
export class Decoder {
  /**
   * @param {Graph} graph lm_inference
   * @param {number} prompts P
   * @param {number} capacity columns, without the prefix
   * @param {Conditioning} conditioning of the prompts
   * @param {Sampling} sampling
   * @param {number} [takes] T
   */
  constructor(graph, prompts, capacity, conditioning, sampling, takes = 1) {
    const batch = prompts * takes
    this.graph = graph
    this.prompts = prompts
    this.takes = takes
    this.batch = batch
    this.capacity = capacity
    this.sampling = sampling
    this.conditioning = conditioning
    this.repeated = this._repeat(conditioning)
    this.filled = 0 // places of the cache in use, by the prefix and by columns
    this.prefixLength = conditioning.prefix?.dims[1] ?? 0
    this.sizes = { batch, rows: this.repeated.rows, capacity: this.prefixLength + capacity, prefix: 0 }
    this.cache = createCache(graph, this.sizes)
    this.settings = {
      cfg_coef: graph.tensor('cfg_coef', [sampling.cfgCoef]),
      temperature: graph.tensor('temperature', [sampling.temperature]),
      top_k: graph.tensor('top_k', [sampling.topK]),
      top_p: graph.tensor('top_p', [sampling.topP]),
      ...(conditioning.prefix && { cfg_coef_beta: graph.tensor('cfg_coef_beta', [sampling.cfgCoefBeta ?? 1]) }),
    }
  }

  /**
   * Start again with an empty cache, for the next window.
   *
   * @param {Conditioning} conditioning its prefix as long as the last one
   */
  restart(conditioning) {
    this.conditioning = conditioning
    this.repeated = this._repeat(conditioning)
    this.filled = 0
  }

  /** The conditioning of all takes. @param {Conditioning} conditioning */
  _repeat(conditioning) {
    return this.takes === 1 ? conditioning : repeatConditioning(this.graph, conditioning, this.takes)
  }

  /**
   * Read S columns [B][K] and sample the next one with uniform numbers [B x K].
   *
   * The first call takes any number of columns, later calls take one. The first one may be given the columns [P][K] of
   * the prompts: all but the last column are then read once for all takes.
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
   * Read columns as call does, but return the guided logits [B x K x card] of the next one, for a sampler of your own.
   *
   * @param {Codes} codes
   * @returns {Promise<Float32Array>}
   */
  async logits(codes) {
    const results = await this._run(codes, new Float32Array(this.batch * codes[0].length), 'logits')
    return floatsOf(results.logits)
  }

  /**
   * Read the prefix and all columns [P][K] but the last for all takes; gives the last one of each take [B][K].
   *
   * A decoder of P rows reads them, and its cache is copied: ONNX Runtime's CPU kernel takes several new columns only
   * into an empty cache.
   *
   * @param {Codes} codes
   * @returns {Promise<Codes>}
   */
  async _readOnce(codes) {
    const { graph, prompts, conditioning, sampling, takes, cache } = this
    const columns = codes[0][0].length
    const last = codes.flatMap((row) => Array(takes).fill(slice(row, columns - 1, columns)))
    if (this.prefixLength + columns === 1) return last
    const one = new Decoder(graph, prompts, columns, conditioning, sampling)
    try {
      await one.logits(codes.map((row) => slice(row, 0, columns - 1)))
      copyRows(graph, one.cache, cache, one.filled, takes)
      this.filled = one.filled
    } finally {
      one.release()
    }
    return last
  }

  /**
   * @param {Codes} codes
   * @param {Float32Array} uniform
   * @param {'next_codes' | 'logits'} output
   */
  async _run(codes, uniform, output) {
    const { graph, cache, prompts, takes, sizes } = this
    if (takes > 1 && this.filled === 0 && codes.length === prompts) codes = await this._readOnce(codes)
    const { rows, cross, prefix } = this.repeated
    const columns = codes[0][0].length
    const allRows = Array.from({ length: rows / this.batch }, () => codes).flat(2) // conditioned and unconditional alike
    const isFirst = this.filled === 0
    const filledAfter = this.filled + columns + (isFirst ? this.prefixLength : 0)
    if (codes.length !== this.batch || !(filledAfter <= sizes.capacity)) {
      throw new RangeError(
        `codes: got ${codes.length} rows of ${columns} columns, expected ${this.batch} rows and at most ` +
          `${sizes.capacity - filledAfter + columns} columns: the capacity is ${sizes.capacity}`,
      )
    }
    const feeds = {
      ...cache.inputs(this.filled, filledAfter),
      ...cross,
      ...this.settings,
      ...(prefix && { prefix: isFirst ? prefix : graph.zeros('prefix', sizes) }),
      codes: graph.tensor('codes', join(allRows), { ...sizes, columns }),
      position: graph.tensor('position', [this.filled]),
      uniform: graph.tensor('uniform', uniform, sizes),
    }
    const session = await graph.session()
    const sampled = graph.native ? graph.zeros(output, sizes) : null // memory of ours takes fewer calls of the C API
    const results = await session.run(feeds, { [output]: sampled, ...cache.outputs() })
    cache.update(results, this.filled, filledAfter)
    this.filled = filledAfter
    return results
  }

  /** Free the KV cache. */
  release() {
    this.cache.release()
  }
}

/** A generation in progress. Iterating samples one column after the other: this is the loop that a port writes. */
export class Generation {
  /**
   * @param {Steps} decoder
   * @param {ArrayLike<ArrayLike<number>>[]} prompt [P][K] -> frames
   * @param {Iterable<Window>} windows at least one; iterated over twice
   * @param {{ delays: number[], special: number }} pattern
   * @param {(step: number) => Float32Array} uniform the numbers [B x K] of each column that is sampled, 0 .. total - 1
   * @param {(window: Window) => Conditioning | Promise<Conditioning>} conditioningOf called for all windows but the
   *   first, whose conditioning the decoder has
   * @param {AbortSignal} [signal]
   * @param {number} [takes] of each prompt
   */
  constructor(decoder, prompt, windows, pattern, uniform, conditioningOf, signal, takes = 1) {
    this.decoder = decoder
    this.takes = takes
    this.pattern = pattern
    this.windows = windows
    this.uniform = uniform
    this.conditioningOf = conditioningOf
    this.signal = signal
    const extent = extentOf(windows, pattern.delays)
    /** @type {Codes} */
    this.all = prompt.flatMap((row) =>
      Array.from({ length: takes }, () =>
        pattern.delays.map((_, k) => {
          const frames = new Int32Array(extent.frames)
          frames.set(row[k])
          return frames
        }),
      ),
    )
    this.frames = prompt[0][0].length // complete ones, the prompt's among them
    this.total = extent.steps
  }

  /** Samples a column at a time, and gives how many of `total` are sampled. */
  async *[Symbol.asyncIterator]() {
    const { delays, special } = this.pattern
    const latest = Math.max(...delays)
    let done = 0
    try {
      for (const window of this.windows) {
        if (done) this.decoder.restart(await this.conditioningOf(window))
        await this._pause() // laying out columns takes long where there are many
        const { start, known, frames } = window
        const columns = this.all.map((row) => delay(slice(row, start, start + known), delays, frames, special))
        const prefill = prefillLength(known, delays)
        // in the first window takes begin alike, and one of each prompt is enough
        const begin = columns.filter((_, row) => done || row % this.takes === 0)
        let unread = begin.map((row) => slice(row, 0, prefill))
        for (let s = prefill; s < frames + latest + 1; s++) {
          if (this.decoder.graph.backend !== 'cpu') await this._pause()
          this.signal?.throwIfAborted()
          const codes = await this.decoder.call(unread, this.uniform(done))
          columns.forEach((row, b) => row.forEach((column, k) => column[s] === UNKNOWN && (column[s] = codes[b][k][0])))
          unread = columns.map((row) => slice(row, s, s + 1))
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

  /** Let the event loop handle messages, such as the one that cancels; throws where the signal has aborted. */
  async _pause() {
    if (this.signal?.aborted !== true) await yieldToEventLoop()
    this.signal?.throwIfAborted()
  }

  /**
   * The codes of all complete frames from `start` on.
   *
   * @param {number} [start]
   * @returns {Codes}
   */
  codes(start = 0) {
    return this.all.map((row) => slice(row, start, this.frames))
  }
}

/**
 * Let the event loop handle messages: WASM runs synchronously, so a worker would never get the one that cancels it. A
 * message channel takes less time than a timer's 4 ms. onnxruntime-node does it by itself in every run. React Native has
 * timers only.
 */
export function yieldToEventLoop() {
  if (typeof MessageChannel === 'undefined') return new Promise((resolve) => setTimeout(resolve))
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
 * How far windows reach.
 *
 * @param {Iterable<Window>} windows
 * @param {number[]} delays
 * @returns {{ frames: number, longest: number, steps: number }} frames of the whole and of the longest window; columns
 *   that are sampled in all of them
 */
export function extentOf(windows, delays) {
  const extra = Math.max(...delays) + 1
  const extent = { frames: 0, longest: 0, steps: 0 }
  for (const { start, known, frames } of windows) {
    extent.frames = start + frames
    extent.longest = Math.max(extent.longest, frames)
    extent.steps += frames + extra - prefillLength(known, delays)
  }
  return extent
}
