/**
 * Guidance in two calls, audiocraft's two_step_cfg: the unconditional rows are padded apart, not to the longest text.
 *
 * Only melody and style models, where text stands before the first column, then have other logits: null text that is
 * attended to adds zero however long it is.
 *
 * @typedef {import('./generation.js').Codes} Codes
 * @typedef {import('./generation.js').Decoder} Decoder
 * @typedef {import('./generation.js').Sampling} Sampling
 * @typedef {import('./generation.js').Steps} Steps
 * @typedef {import('./conditioning.js').Conditioning} Conditioning
 */

const f = Math.fround // everything is computed in float32, as the graph does

/**
 * A conditioned and an unconditional Decoder, whose prefixes differ in length.
 *
 * @implements {Steps}
 */
export class TwoStep {
  /**
   * @param {Decoder} conditioned
   * @param {Decoder} unconditional
   * @param {Sampling} sampling
   */
  constructor(conditioned, unconditional, sampling) {
    this.graph = conditioned.graph
    this.conditioned = conditioned
    this.unconditional = unconditional
    this.sampling = sampling
  }

  /** As Decoder.restart. @param {Conditioning} conditioning */
  restart(conditioning) {
    this.conditioned.restart(conditioning)
    this.unconditional.restart(this.unconditional.conditioning)
  }

  /**
   * As Decoder.call.
   *
   * @param {Codes} codes
   * @param {Float32Array} uniform
   * @returns {Promise<Codes>}
   */
  async call(codes, uniform) {
    const logits = await this.logits(codes)
    const codebooks = codes[0].length
    const card = logits.length / uniform.length
    const next = Array.from(uniform, (draw, i) =>
      Int32Array.of(sample(logits.subarray(i * card, (i + 1) * card), draw, this.sampling)),
    )
    return Array.from({ length: this.conditioned.batch }, (_, b) => next.slice(b * codebooks, (b + 1) * codebooks))
  }

  /** As Decoder.logits. @param {Codes} codes @returns {Promise<Float32Array>} */
  async logits(codes) {
    const conditioned = await this.conditioned.logits(codes)
    const unconditional = await this.unconditional.logits(codes)
    const coefficient = f(this.sampling.cfgCoef)
    return unconditional.map((logit, i) => logit + f(f(conditioned[i] - logit) * coefficient))
  }

  /** Free both KV caches. */
  release() {
    this.conditioned.release()
    this.unconditional.release()
  }
}

/**
 * What lm_inference does with the guided logits [card] of a code: the code that a uniform number draws.
 *
 * @param {Float32Array} logits
 * @param {number} uniform
 * @param {Sampling} sampling
 */
function sample(logits, uniform, { temperature, topK, topP }) {
  const card = logits.length
  if (temperature === 0) return logits.indexOf(logits.reduce((most, logit) => Math.max(most, logit), -Infinity))
  const scaled = logits.map((logit) => logit / f(temperature))
  const largest = scaled.reduce((most, logit) => Math.max(most, logit), -Infinity)
  const exponentials = scaled.map((logit) => Math.exp(f(logit - largest)))
  const sum = exponentials.reduce((total, share) => total + share, 0)
  const probabilities = exponentials.map((share) => share / f(sum))
  const ranked = probabilities.slice().sort().reverse()
  const least = topP > 0 ? leastOf(ranked, f(topP)) : ranked[Math.min(topK || card, card) - 1]
  const totals = runningSums(probabilities.map((probability) => (probability >= least ? probability : 0)))
  const share = f(Math.min(uniform, f(1 - 2 ** -24)) * totals[card - 1])
  return totals.findIndex((total) => total > share)
}

/** The smallest probability that is kept: those before it sum up to topP at most. @param {Float32Array} ranked @param {number} topP */
function leastOf(ranked, topP) {
  const totals = runningSums(ranked)
  return ranked.reduce((least, probability, i) => {
    const isKept = f(totals[i] - probability) <= topP
    return isKept ? Math.min(least, probability) : least
  }, 1)
}

/** Sums of the first 1, 2, ... numbers. @param {Float32Array} numbers */
function runningSums(numbers) {
  let sum = 0
  return numbers.map((number) => (sum = f(sum + number)))
}
