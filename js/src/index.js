/**
 * MusicGen in ONNX Runtime: Node, Electron, browsers, React Native. `ort` is passed in.
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
 * @typedef {import('./manifest.js').LoadOptions} LoadOptions
 * @typedef {import('./source.js').Source} Source
 * @typedef {import('./generation.js').Sampling} Sampling
 * @typedef {import('./lm.js').How} How
 */

export { convertAudio, convertChannels, decodeWav, encodeWav, resample } from './audio.js'
export { Codec } from './codec.js'
export { Decoder, Generation } from './generation.js'
export { LanguageModel } from './lm.js'
export { Manifest } from './manifest.js'
export { MusicGen } from './musicgen.js'
export { delay, prefillLength, undelay } from './pattern.js'
export { uniforms } from './philox.js'
export { BundleError } from './source.js'
export { TextConditioner } from './text.js'
export { windows } from './windows.js'
