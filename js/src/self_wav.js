/** What melody and style models are told beside a text: a sound, to what stands before the first column. */

import { convertAudio } from './audio.js'
import { floats } from './manifest.js'
import { uniforms } from './philox.js'

/**
 * @typedef {import('./manifest.js').Graph} Graph
 * @typedef {import('./lm.js').SelfWav} SelfWav
 */

/**
 * A melody, mono at the model's rate, by lm_melody; the same for all takes.
 *
 * @param {Graph} graph
 * @param {Float32Array} wav
 * @param {number} takes
 * @param {number} sampleRate
 * @param {number | null} window seconds, in each of which a melody that has ended goes on from its start, as audiocraft
 *   has it. null: there is but one window; lm_melody repeats what is too short
 * @returns {SelfWav}
 */
export function melody(graph, wav, takes, sampleRate, window) {
  return async (start) => {
    const first = Math.trunc(start * sampleRate)
    const samples = window === null ? wav.length : Math.trunc(window * sampleRate)
    const audio =
      window === null ? wav : Float32Array.from({ length: samples }, (_, i) => wav[(first + i) % wav.length])
    const { self_wav } = await graph.run({ audio: graph.tensor('audio', audio, { melodies: 1, samples }) })
    return Array(takes).fill(await floats(self_wav))
  }
}

/**
 * The style of MERT's features [F x width] of an excerpt, by lm_style; the same in every window.
 *
 * @param {Graph} graph
 * @param {Float32Array} features
 * @param {number} takes
 * @param {number} evalQ how many levels of quantisation are kept: the fewer, the freer
 * @returns {SelfWav}
 */
export function style(graph, features, takes, evalQ) {
  const port = graph.inputs.features
  const length = features.length / Number(port.shape[2])
  const sizes = Object.fromEntries(port.shape.slice(0, 2).map((size, axis) => [size, axis ? length : 1]))
  const rows = async () => {
    const { self_wav } = await graph.run({
      features: graph.tensor('features', features, sizes),
      eval_q: graph.tensor('eval_q', [evalQ]),
    })
    return Array(takes).fill(await floats(self_wav))
  }
  /** @type {ReturnType<typeof rows> | undefined} */
  let found
  return () => (found ??= rows())
}

/**
 * MERT's features [F x width] of an excerpt of a sound, mono at the model's rate.
 *
 * @param {Graph} mert style_features
 * @param {Float32Array} wav
 * @param {number} sampleRate
 * @param {{ seed: number | bigint, excerptLength: number, excerptStart?: number }} excerpt seconds; from a place drawn
 *   with the seed where no start is given
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
      `style: got ${(wav.length / sampleRate).toFixed(2)} s of sound, expected an excerpt of ${excerptLength} s${from}`,
    )
  }
  const model = mert.manifest.need('model', 'style_sample_rate', 'style_receptive_field')
  const heard = convertAudio([wav.slice(start, start + samples)], sampleRate, model.style_sample_rate, 1)[0]
  if (heard.length < model.style_receptive_field) {
    throw new RangeError(`excerptLength: got ${excerptLength} s, too short for one of MERT's features`)
  }
  const sizes = Object.fromEntries(mert.inputs.audio.shape.map((size, axis) => [size, axis ? heard.length : 1]))
  const { features } = await mert.run({ audio: mert.tensor('audio', heard, sizes) })
  return floats(features)
}
