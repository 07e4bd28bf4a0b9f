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

import { join } from './arrays.js'
import { cachesFor } from './caches.js'
import { codesOf, floats } from './manifest.js'
import { delay, prefillLength, undelay, UNKNOWN } from './pattern.js'

/**
 * @typedef {import('./manifest.js').Graph} Graph
 * @typedef {import('./conditions.js').Told} Told
 * @typedef {import('./windows.js').Window} Window
 * @typedef {Int32Array[][]} Codes [B][K] -> frames or columns
 *
 * @typedef {object} Sampling how codes are drawn
 * @property {number} temperature 0: greedy
 * @property {number} topK keep the k most probable codes; 0: all
 * @property {number} topP keep the most probable codes up to this sum; > 0 goes before topK
 * @property {number} cfgCoef classifier-free guidance; where nothing is told it changes nothing
 * @property {number | null} cfgCoefBeta double guidance: how much more the text counts than melody or style; null: off
 */

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
      codes: graph.tensor('codes', join(every), { ...sizes, columns }),
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
          if (this.decoder.graph.backend !== 'cpu') await turn()
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
 * A timer would take 4 ms. Node's binding takes a turn at every run by itself.
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
