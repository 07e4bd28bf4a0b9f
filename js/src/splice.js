/**
 * Between a track and its continuation: levels, channels and the seam.
 *
 *     wholeFrames(prompt) -> generateContinuation -> toSource -> matchLevel, amplify -> splice -> fadeOut -> encodeWav
 *
 * @typedef {import('./audio.js').AudioChannels} AudioChannels
 */

import { convertChannels, MOST_CHANNELS, resample, validateAudio, validateSamples } from './audio.js'
import { sampleRate as validateRate, shown, whole } from './options.js'

const CHANNELS = ['left', 'right', 'mix']
const MOST_DB = 1000 // beyond it float32 is zero or overflows
const MOST_GAIN_DB = 12 // how far a level is brought to another
const NEAR_SILENCE = 1e-4 // root mean square, -80 dB, under which there is no level to match

/** Throw unless a value is a whole number of samples. @param {string} name @param {unknown} value @param {number} most @param {string} what the most is */
function samplesUpTo(name, value, most, what) {
  whole(0, most, `a whole number from 0 to ${most}, ${what}`)(name, value, 0)
}

/**
 * Bring generated audio back to the source's sample rate and channels.
 *
 * @param {Float32Array | AudioChannels} audio
 * @param {number} rate of the audio
 * @param {number} sourceRate
 * @param {number} sourceChannels
 * @returns {AudioChannels} round(samples * sourceRate / rate) samples
 */
export function toSource(audio, rate, sourceRate, sourceChannels) {
  whole(1, MOST_CHANNELS, `a whole number from 1 to ${MOST_CHANNELS}`)('sourceChannels', sourceChannels, 0)
  const channels = convertChannels(validateAudio('audio', audio, 'rate', rate), sourceChannels)
  validateRate('sourceRate', sourceRate)
  const length = Math.floor((channels[0].length * sourceRate) / rate + 0.5)
  /** @type {Map<Float32Array, Float32Array>} */
  const done = new Map() // channels that are copies of each other are resampled once
  return channels.map((channel) => {
    const known = done.get(channel)
    if (known) return known.slice()
    const resampled = resample(channel, rate, sourceRate, { length, exact: true })
    done.set(channel, resampled)
    return resampled
  })
}

/**
 * The source up to the seam, then what was generated.
 *
 *     source     ------------------\| seamSamples        the crossfade ends at the seam; before it the source's
 *     generated      --------------/|==================  bits stay as they are
 *                    | leadSamples  |
 *
 * The result has seamSamples + generated's samples - leadSamples. A crossfade longer than either part before the seam is
 * shortened to it. It is linear: the two sides are the same music, source and decoded prompt, so their amplitudes add.
 *
 * @param {Float32Array | AudioChannels} source
 * @param {Float32Array | AudioChannels} generated at the source's rate and channels, as toSource gives it
 * @param {number} seamSamples
 * @param {number} crossfadeSamples
 * @param {number} [leadSamples] how many of generated's first samples lie before the seam: the prompt, decoded; default:
 *   seamSamples, both begin at the same moment
 * @returns {AudioChannels}
 */
export function splice(source, generated, seamSamples, crossfadeSamples, leadSamples = seamSamples) {
  const [before, after] = [validateSamples('source', source), validateSamples('generated', generated)]
  if (before.length !== after.length) {
    throw new RangeError(
      `generated: got ${after.length} channels, expected ${before.length}, the source's; give it to toSource first`,
    )
  }
  samplesUpTo('seamSamples', seamSamples, before[0].length, "the source's length")
  samplesUpTo('leadSamples', leadSamples, after[0].length, "the generated audio's length")
  samplesUpTo('crossfadeSamples', crossfadeSamples, 2 ** 40, 'shortened to what there is')
  const fade = Math.min(crossfadeSamples, seamSamples, leadSamples)
  const f = Math.fround
  return before.map((channel, c) => {
    const joined = new Float32Array(seamSamples + after[c].length - leadSamples)
    joined.set(channel.subarray(0, seamSamples))
    joined.set(after[c].subarray(leadSamples), seamSamples)
    for (let i = 0; i < fade; i++) {
      const at = seamSamples - fade + i
      const difference = f(after[c][leadSamples - fade + i] - channel[at])
      joined[at] = channel[at] + f(f((i + 0.5) / fade) * difference) // where both are equal, their bits too
    }
    return joined
  })
}

/**
 * How many dB `generated` must gain to be as loud at the seam as the source: amplify does it.
 *
 * Both have the prompt there, the source as it is and `generated` as the codec renders it, so that the levels of the last
 * second before the seam can be compared.
 *
 * @param {Float32Array | AudioChannels} source
 * @param {Float32Array | AudioChannels} generated
 * @param {number} seamSamples where the source ends
 * @param {number} leadSamples how many of generated's samples lie before it
 * @param {number} rate of both
 * @returns {number} from -12 to 12; 0 where either is as good as silent
 */
export function matchLevel(source, generated, seamSamples, leadSamples, rate) {
  const [before, after] = [validateAudio('source', source, 'rate', rate), validateSamples('generated', generated)]
  samplesUpTo('seamSamples', seamSamples, before[0].length, "the source's length")
  samplesUpTo('leadSamples', leadSamples, after[0].length, "the generated audio's length")
  const samples = Math.min(rate, seamSamples, leadSamples)
  if (!samples) return 0
  const last = (/** @type {AudioChannels} */ audio, /** @type {number} */ end) =>
    rms(audio.map((channel) => channel.subarray(end - samples, end)))
  const [wanted, found] = [last(before, seamSamples), last(after, leadSamples)]
  if (Math.min(wanted, found) < NEAR_SILENCE) return 0
  return Math.max(-MOST_GAIN_DB, Math.min(MOST_GAIN_DB, 20 * Math.log10(wanted / found)))
}

/**
 * The audio, louder by so many dB.
 *
 * @param {Float32Array | AudioChannels} audio
 * @param {number} gain dB
 * @returns {AudioChannels}
 */
export function amplify(audio, gain) {
  if (!(Math.abs(gain) <= MOST_DB))
    throw new RangeError(`gain: got ${shown(gain)}, expected -${MOST_DB} to ${MOST_DB} dB`)
  const factor = Math.fround(10 ** (gain / 20))
  return validateSamples('audio', audio).map((channel) => channel.map((sample) => sample * factor))
}

/**
 * By how many dB the mono mix is quieter than its channels on average, 120 at most: 0 for equal channels, 3 for two that
 * have nothing in common, more where they cancel each other.
 *
 * @param {Float32Array | AudioChannels} audio
 */
export function mixLoss(audio) {
  const wav = validateSamples('audio', audio)
  const [channels, mix] = [rms(wav), rms(convertChannels(wav, 1))]
  if (mix > channels * 1e-6) return Math.min(120, Math.max(0, 20 * Math.log10(channels / mix)))
  return channels > 0 ? 120 : 0
}

/**
 * All channels ("mix"), or the left or right one alone: what a mono model is given of a track.
 *
 * @param {Float32Array | AudioChannels} audio
 * @param {'left' | 'right' | 'mix'} channel
 * @returns {AudioChannels}
 */
export function pickChannel(audio, channel) {
  const wav = validateSamples('audio', audio)
  if (!CHANNELS.includes(channel)) {
    throw new TypeError(`channel: got ${shown(channel)}, expected one of ${CHANNELS.join(', ')}`)
  }
  if (channel === 'mix') return wav
  if (wav.length < 2) throw new RangeError(`channel: got ${shown(channel)}, expected mix: the audio has 1 channel`)
  return [wav[CHANNELS.indexOf(channel)]]
}

/**
 * The audio, its last samples brought down to silence along half a period of a cosine.
 *
 * @param {Float32Array | AudioChannels} audio
 * @param {number} samples
 * @returns {AudioChannels}
 */
export function fadeOut(audio, samples) {
  const wav = validateSamples('audio', audio)
  samplesUpTo('samples', samples, wav[0].length, 'the length of the audio')
  return wav.map((channel) => {
    const faded = channel.slice()
    const start = faded.length - samples
    for (let i = 0; i < samples; i++) faded[start + i] *= 0.5 + 0.5 * Math.cos((Math.PI * (i + 1)) / samples)
    return faded
  })
}

/**
 * The audio, its first samples brought up from silence: fadeOut the other way round.
 *
 * @param {Float32Array | AudioChannels} audio
 * @param {number} samples
 * @returns {AudioChannels}
 */
export function fadeIn(audio, samples) {
  const reversed = (/** @type {AudioChannels} */ wav) => wav.map((channel) => channel.slice().reverse())
  return reversed(fadeOut(reversed(validateSamples('audio', audio)), samples))
}

/**
 * The first `samples` of audio, so that they can be repeated without a click.
 *
 * What comes after them is faded out over their beginning, which is faded in: the last sample goes on as it did. The
 * crossfade has equal power, as the two sides are different music.
 *
 *     audio  |===================|---\     crossfadeSamples of what comes after the loop
 *     loop   |---\===============|         begin it
 *             /---
 *
 * @param {Float32Array | AudioChannels} audio the loop, and crossfadeSamples or more after it
 * @param {number} samples of the loop
 * @param {number} crossfadeSamples half of the loop at most
 * @returns {AudioChannels}
 */
export function closeLoop(audio, samples, crossfadeSamples) {
  const wav = validateSamples('audio', audio)
  samplesUpTo('samples', samples, wav[0].length, 'the length of the audio')
  const most = Math.min(Math.floor(samples / 2), wav[0].length - samples)
  samplesUpTo('crossfadeSamples', crossfadeSamples, most, 'half of the loop, and the audio after it')
  return wav.map((channel) => {
    const loop = channel.slice(0, samples)
    for (let i = 0; i < crossfadeSamples; i++) {
      const angle = ((i + 0.5) / crossfadeSamples) * (Math.PI / 2)
      loop[i] = channel[i] * Math.sin(angle) + channel[samples + i] * Math.cos(angle)
    }
    return loop
  })
}

/**
 * The prompt cut to whole frames of the codec, which fills a part of a frame up with silence: that would be heard at the
 * seam.
 *
 * @param {Float32Array | AudioChannels} audio
 * @param {number} rate of the audio
 * @param {{ sampleRate: number, hop: number }} codec
 * @param {'end' | 'start'} [from] which end of the prompt stays as it is
 * @returns {AudioChannels}
 */
export function wholeFrames(audio, rate, { sampleRate, hop }, from = 'end') {
  const wav = validateAudio('audio', audio, 'rate', rate)
  if (from !== 'end' && from !== 'start') throw new TypeError(`from: got ${shown(from)}, expected end or start`)
  const frames = Math.floor((wav[0].length * sampleRate) / (rate * hop))
  const samples = Math.floor((frames * hop * rate) / sampleRate) || wav[0].length
  return wav.map((channel) => (from === 'end' ? channel.slice(-samples) : channel.slice(0, samples)))
}

/** The root of the mean square of all samples. @param {AudioChannels} audio */
function rms(audio) {
  let sum = 0
  for (const channel of audio) for (const sample of channel) sum += sample * sample
  return Math.sqrt(sum / (audio.length * audio[0].length))
}
