/** audiocraft's MusicGen on a bundle: audio, descriptions and melodies in, audio out. */

import { convertAudio } from './audio.js'
import { Codec } from './audio_codec.js'
import { melodyConditioning, mertFeatures, styleConditioning } from './conditioning.js'
import { BundleError } from './files.js'
import { LanguageModel, randomSeed } from './language_model.js'
import { Manifest } from './manifest.js'
import { prefetch } from './prefetch.js'
import { TextConditioner } from './text_encoder.js'

/**
 * @typedef {import('./audio.js').AudioChannels} AudioChannels
 * @typedef {import('./generation.js').Generation} Generation
 * @typedef {{ generation: Generation, seed: number | bigint }} Started
 *
 * @typedef {object} GenerateOptions
 * @property {string | null} [description] null or "": none
 * @property {number} [duration] seconds in all, the prompt included; default: the bundle's
 * @property {number} [topK] sample from the k most probable codes; 0: from all
 * @property {number} [topP] sample from the most probable codes up to this sum of probabilities; 0: off
 * @property {number} [temperature] 0: always the most probable code
 * @property {number} [cfgCoef] classifier-free guidance; 1: none
 * @property {number | null} [cfgCoefBeta] double guidance of melody and style models
 * @property {number} [extendStride] seconds from one window to the next, where the duration is longer than one
 * @property {number} [maxDuration] seconds of a window; default: what the model was trained on
 * @property {number | bigint} [seed] the same seed gives the same take in every language; default: a random one
 * @property {number} [takes] how many are generated at once; take b has seed + b
 * @property {Float32Array | AudioChannels} [melody] the melody that melody models follow, or the audio whose style style
 *   models take on
 * @property {number} [melodySampleRate] required with a melody
 * @property {number} [evalQ] style models: how many levels of quantization are kept, fewer are freer; default 3
 * @property {number} [excerptLength] style models: seconds of the melody that are used; default 3
 * @property {number} [excerptStart] style models: where they begin; default: chosen by the seed
 * @property {AbortSignal} [signal] cancels: the promise is rejected with the signal's reason
 * @property {(done: number, total: number) => void} [onProgress] called with the columns sampled so far and their total
 * @property {(codes: Int32Array[]) => void} [onCodes] streams: called with the codes of the next frames, the prompt's
 *   first
 *
 * @typedef {object} Take
 * @property {AudioChannels} audio
 * @property {Int32Array[]} codes one array a codebook
 * @property {number | bigint} seed
 *
 * @typedef {Take & { sampleRate: number, takes: Take[] }} Generated the first take, and all of them
 */

/**
 * Generates and continues audio. What is longer than maxDuration is generated in windows, each of which begins with what
 * the one before generated after extendStride.
 */
export class MusicGen {
  /**
   * @param {Manifest} manifest
   * @param {import('./text_encoder.js').TokenizerFactory} [tokenizer]
   */
  constructor(manifest, tokenizer) {
    const graphs = manifest.require('graphs')
    this.manifest = manifest
    this.lm = new LanguageModel(manifest)
    this.codec = new Codec(manifest)
    this.text = 'text_encoder' in graphs ? new TextConditioner(manifest, tokenizer) : null
    this.mert = 'style_features' in graphs ? manifest.graph('style_features') : null
    this.duration = manifest.require('defaults', 'duration').duration
  }

  /**
   * Load a bundle. Throws BundleError where it cannot be used.
   *
   * @param {import('./files.js').Source} source a folder's path (Node) or URL, files by name, or a function that returns
   *   a file by its name
   * @param {import('./manifest.js').LoadOptions & { tokenizer?: import('./text_encoder.js').TokenizerFactory, lazy?: boolean }} options
   *   tokenizer: default @huggingface/tokenizers; lazy: load what encodes texts and melodies with its first use; default:
   *   true for a folder on a disk (Node), false otherwise
   */
  static async load(source, options) {
    const manifest = await Manifest.open(source, options)
    const model = new MusicGen(manifest, options.tokenizer)
    const { lazy = manifest.files.folder !== null } = options
    const graphs = lazy ? [model.lm.graph, model.codec.encoder, model.codec.streamDecoder] : model.graphs()
    manifest.addToTotal(graphs.flatMap(({ entry }) => manifest.filesOf(entry)))
    if (model.text && !lazy) manifest.addToTotal(['tokenizer.json'])
    for (const graph of graphs) await graph.session() // one by one, so that only one download is in memory
    if (!lazy) await model.text?.tokenizer()
    return model
  }

  /** All graphs that a generation may use. */
  graphs() {
    const { lm, codec, text, mert } = this
    const graphs = [lm.graph, lm.conditionGraph, lm.selfWavGraph, codec.encoder, codec.streamDecoder, text?.graph, mert]
    return graphs.filter((graph) => graph !== null && graph !== undefined)
  }

  get sampleRate() {
    return this.codec.sampleRate
  }

  get frameRate() {
    return this.codec.frameRate
  }

  get channels() {
    return this.codec.channels
  }

  get maxDuration() {
    return this.lm.maxDuration
  }

  /** Free the memory of all graphs. */
  async release() {
    for (const graph of this.graphs()) await graph.release()
  }

  /**
   * Continue audio up to `duration` seconds in all. The result begins with the prompt, as the codec decodes it.
   *
   * @param {Float32Array | AudioChannels} audio the prompt: mono, or one array a channel
   * @param {number} sampleRate of the prompt, any
   * @param {GenerateOptions} [options]
   * @returns {Promise<Generated>}
   */
  async generateContinuation(audio, sampleRate, options = {}) {
    return this._complete(await this._continue(audio, sampleRate, options), options)
  }

  /**
   * Generate audio from a description, a melody or nothing.
   *
   * @param {GenerateOptions} [options]
   * @returns {Promise<Generated>}
   */
  async generate(options = {}) {
    return this._complete(await this._begin(options, null), options)
  }

  /**
   * What generateContinuation returns, in chunks while it is being generated; the prompt's own chunks come at once.
   *
   * Generation does not wait for the consumer. It ends when the consumer leaves the loop, or when the signal aborts.
   *
   * @param {Float32Array | AudioChannels} audio
   * @param {number} sampleRate
   * @param {GenerateOptions & { chunkSeconds?: number }} [options] chunkSeconds: length of a chunk; default 1
   * @returns {AsyncGenerator<AudioChannels, void, void>}
   */
  async *streamContinuation(audio, sampleRate, options = {}) {
    yield* this._stream(() => this._continue(audio, sampleRate, options), options)
  }

  /**
   * What generate returns, in chunks while it is being generated.
   *
   * @param {GenerateOptions & { chunkSeconds?: number }} [options]
   * @returns {AsyncGenerator<AudioChannels, void, void>}
   */
  async *stream(options = {}) {
    yield* this._stream(() => this._begin(options, null), options)
  }

  /**
   * @param {() => Promise<Started>} start
   * @param {GenerateOptions & { chunkSeconds?: number }} options
   * @returns {AsyncGenerator<AudioChannels, void, void>}
   */
  async *_stream(start, { chunkSeconds = 1, takes = 1, onProgress, onCodes }) {
    const size = Math.round(chunkSeconds * this.frameRate)
    if (!(size >= 1)) {
      throw new RangeError(`chunkSeconds: got ${chunkSeconds}, expected ${1 / this.frameRate} (a frame) or more`)
    }
    if (takes !== 1) throw new RangeError(`takes: got ${takes}, expected 1: a stream has one take; start one for each`)
    const { generation } = await start()
    const codes = streamCodes(generation, size, onProgress, onCodes)
    for await (const [audio] of prefetch(this.codec.decodeStream(codes, size))) yield audio
  }

  /**
   * @param {Float32Array | AudioChannels} audio
   * @param {number} sampleRate
   * @param {GenerateOptions} options
   */
  async _continue(audio, sampleRate, options) {
    const prompt = validateAudio('audio', audio, sampleRate)
    const { duration = this.duration, maxDuration = this.maxDuration } = options
    const [seconds, longest] = [prompt[0].length / sampleRate, Math.min(duration, maxDuration)]
    if (Math.ceil(seconds * this.frameRate) >= Math.trunc(longest * this.frameRate)) {
      const limit = duration <= maxDuration ? 'duration' : 'maxDuration'
      throw new RangeError(`audio: got ${seconds.toFixed(2)} s, expected less than ${limit}, ${longest} s`)
    }
    return this._begin(options, convertAudio(prompt, sampleRate, this.sampleRate, this.channels))
  }

  /**
   * @param {GenerateOptions} options
   * @param {AudioChannels | null} prompt at the codec's rate
   * @returns {Promise<Started>}
   */
  async _begin(options, prompt) {
    const { description, duration = this.duration, takes = 1, seed = randomSeed(), signal } = options
    signal?.throwIfAborted()
    if (!(takes >= 1 && takes === Math.trunc(takes))) throw new RangeError(`takes: got ${takes}, expected 1 or more`)
    if (!(duration > 0 && duration < Infinity))
      throw new RangeError(`duration: got ${duration} s, expected more than 0`)
    if (description && !this.text) {
      throw new BundleError(
        `${this.manifest.path}: got a description, but the bundle contains no text encoder; export it again with --text`,
      )
    }
    const selfWav = await this._selfWav(options, takes, duration, seed)
    const states = (await this.text?.encode(description)) ?? null
    const codes = prompt && (await this.codec.encode(prompt))
    const generation = await this.lm.begin({
      prompt: codes && Array(takes).fill(codes),
      texts: Array(takes).fill(states),
      selfWav,
      duration,
      maxDuration: options.maxDuration,
      extendStride: options.extendStride,
      sampling: {
        temperature: options.temperature,
        topK: options.topK,
        topP: options.topP,
        cfgCoef: options.cfgCoef,
        cfgCoefBeta: options.cfgCoefBeta,
      },
      seed,
      signal,
    })
    return { generation, seed }
  }

  /**
   * The melody or style of each window; null where none is given.
   *
   * @param {GenerateOptions} options
   * @param {number} takes
   * @param {number} duration
   * @param {number | bigint} seed
   */
  async _selfWav(options, takes, duration, seed) {
    if (!options.melody) return null
    const { selfWavGraph, selfWavKind } = this.lm
    if (!selfWavGraph) throw new TypeError('melody: this model takes no melody; load a melody or style model')
    const rate = options.melodySampleRate ?? 0
    const audio = validateAudio('melody', options.melody, rate)
    const converted = convertAudio(audio, rate, this.sampleRate, this.channels) // to the model's channels first, as audiocraft
    const [mono] = convertAudio(converted, this.sampleRate, this.sampleRate, 1)
    if (selfWavKind === 'melody') {
      const { maxDuration = this.maxDuration } = options
      const window = duration > maxDuration ? maxDuration : null
      return melodyConditioning(selfWavGraph, mono, takes, this.sampleRate, window)
    }
    const { evalQ = 3, excerptLength = 3, excerptStart } = options
    const levels = this.manifest.require('model').style_levels ?? 0
    if (!(evalQ >= 1 && evalQ <= levels)) throw new RangeError(`evalQ: got ${evalQ}, expected 1 to ${levels}`)
    if (!this.mert) {
      throw new BundleError(`${this.manifest.path}: the bundle contains no MERT; export it again with --mert`)
    }
    const excerpt = { seed, excerptLength, excerptStart }
    const features = await mertFeatures(this.mert, mono, this.sampleRate, excerpt)
    return styleConditioning(selfWavGraph, features, takes, evalQ)
  }

  /**
   * Run a generation to its end and decode all takes.
   *
   * @param {Started} started
   * @param {GenerateOptions} options
   * @returns {Promise<Generated>}
   */
  async _complete({ generation, seed }, { onProgress }) {
    for await (const done of generation) onProgress?.(done, generation.total)
    /** @type {Take[]} */
    const takes = []
    for (const codes of generation.codes()) {
      const own = typeof seed === 'bigint' ? seed + BigInt(takes.length) : seed + takes.length
      takes.push({ audio: await this.codec.decode(codes), codes, seed: own })
    }
    return { ...takes[0], sampleRate: this.sampleRate, takes }
  }
}

/**
 * Run a generation, and give its codes at least `size` frames at a time. The prompt's come before anything is generated.
 *
 * @param {Generation} generation
 * @param {number} size
 * @param {GenerateOptions['onProgress']} onProgress
 * @param {GenerateOptions['onCodes']} onCodes
 */
async function* streamCodes(generation, size, onProgress, onCodes) {
  let start = 0
  const next = () => {
    const codes = generation.codes(start)
    start = generation.frames
    onCodes?.(codes[0])
    return codes
  }
  if (generation.frames) yield next()
  for await (const done of generation) {
    onProgress?.(done, generation.total)
    if (generation.frames >= start + size || done === generation.total) {
      yield next()
    }
  }
}

/**
 * Audio as one array a channel; throws where it is empty, not finite, or has no sample rate.
 *
 * @param {'audio' | 'melody'} name of the argument
 * @param {Float32Array | AudioChannels} audio
 * @param {number} sampleRate
 * @returns {AudioChannels}
 */
function validateAudio(name, audio, sampleRate) {
  const channels = audio instanceof Float32Array ? [audio] : audio
  const samples = channels?.[0]?.length
  const isChannel = (/** @type {unknown} */ c) => c instanceof Float32Array && c.length === samples
  if (!Array.isArray(channels) || !samples || !channels.every(isChannel)) {
    throw new TypeError(`${name}: expected a Float32Array, or a list of one per channel, of equal length and not empty`)
  }
  if (channels.some((channel) => channel.some((sample) => !Number.isFinite(sample)))) {
    throw new RangeError(`${name}: got NaN or infinity, expected finite samples`)
  }
  if (!(sampleRate >= 1)) {
    const option = name === 'audio' ? 'sampleRate' : 'melodySampleRate'
    throw new RangeError(`${option}: got ${sampleRate}, expected samples per second`)
  }
  return channels
}
