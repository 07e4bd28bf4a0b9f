/**
 * MusicGen in ONNX Runtime: Node, Electron, browsers, React Native. You pass in the ONNX Runtime to use, as `ort`.
 *
 *     import * as ort from 'onnxruntime-node'
 *     import { MusicGen } from 'clean-lm'
 *
 *     const model = await MusicGen.load('bundle', { ort })
 *     const { audio, sampleRate } = await model.generateContinuation(prompt, 44100, { duration: 30, seed: 7 })
 *
 * @typedef {import('./musicgen.js').GenerateOptions} GenerateOptions
 * @typedef {import('./musicgen.js').Generated} Generated
 * @typedef {import('./musicgen.js').Take} Take
 * @typedef {import('./musical_time.js').Grid} Grid
 * @typedef {import('./manifest.js').LoadOptions} LoadOptions
 * @typedef {import('./files.js').Source} Source
 * @typedef {import('./device.js').Device} Device
 * @typedef {import('./files.js').OnProgress} OnProgress
 * @typedef {import('./wav.js').WavFormat} WavFormat
 * @typedef {import('./generation.js').Sampling} Sampling
 * @typedef {import('./language_model.js').GenerationOptions} GenerationOptions
 */

export { convertAudio, convertChannels, resample } from './audio.js'
export { Codec } from './audio_codec.js'
export { delay, prefillLength, undelay } from './delay_pattern.js'
export { BundleError } from './files.js'
export { Decoder, Generation } from './generation.js'
export { LanguageModel } from './language_model.js'
export { Manifest } from './manifest.js'
export { MusicalTime } from './musical_time.js'
export { MusicGen } from './musicgen.js'
export { uniforms } from './philox.js'
export {
  amplify,
  closeLoop,
  fadeIn,
  fadeOut,
  matchLevel,
  mixLoss,
  pickChannel,
  splice,
  toSource,
  wholeFrames,
} from './splice.js'
export { TextConditioner } from './text_encoder.js'
export { decodeWav, encodeWav } from './wav.js'
export { windows } from './windows.js'
