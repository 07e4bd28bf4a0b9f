/** audiocraft's MusicGen on a bundle: audio, descriptions and melodies in, audio out. */

import { convertAudio, convertAudioInPieces, validateAudio } from './audio.js'
import { Codec } from './audio_codec.js'
import { melodyConditioning, mertFeatures, styleConditioning } from './conditioning.js'
import { BundleError } from './files.js'
import { yieldToEventLoop } from './generation.js'
import { HubFiles } from './hub.js'
import { LanguageModel, randomSeed } from './language_model.js'
import { Manifest } from './manifest.js'
import { requireAudio } from './memory.js'
import { CONTINUE, GENERATE, STREAM, STREAM_CONTINUATION, validateCodes, validateOptions } from './options.js'
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
 * @property {Int32Array[] | number[][] | null} [promptCodes] continuations: codes of an earlier one, one array a
 *   codebook, in place of audio
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
    const { graphs, defaults } = manifest.tree
    this.manifest = manifest
    this.lm = new LanguageModel(manifest)
    this.codec = new Codec(manifest)
    this.text = 'text_encoder' in graphs ? new TextConditioner(manifest, tokenizer) : null
    this.mert = 'style_features' in graphs ? manifest.graph('style_features') : null
    this.duration = defaults.duration
  }

  /**
   * Load a bundle. Throws BundleError where it cannot be used.
   *
   * @param {import('./files.js').Source} source a folder's path (Node) or URL, hf:user/repo of the Hugging Face hub, files
   *   by name, or a function that returns a file by its name
   * @param {import('./manifest.js').LoadOptions & { tokenizer?: import('./text_encoder.js').TokenizerFactory, lazy?: boolean }} options
   *   tokenizer: default @huggingface/tokenizers; lazy: load what encodes texts and melodies with its first use; default:
   *   true for a folder on a disk (Node), false otherwise; from the hub, Node downloads all of it at once
   */
  static async load(source, options) {
    const manifest = await Manifest.open(source, options)
    const model = new MusicGen(manifest, options.tokenizer)
    const { lazy = manifest.files.folder !== null } = options
    const graphs = lazy ? [model.lm.graph, model.codec.encoder, model.codec.streamDecoder] : model.graphs()
    // from the hub to a disk, everything is downloaded now: no download begins in the middle of a generation
    const all = manifest.files instanceof HubFiles && manifest.files.folder !== null && options.lazy === undefined
    const names = (all ? model.graphs() : graphs).flatMap(({ entry }) => manifest.filesOf(entry))
    if (model.text && (all || !lazy)) names.push('tokenizer.json')
    manifest.addToTotal(names)
    if (all) for (const name of names) await manifest.verify(name)
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
   * @param {Float32Array | AudioChannels | null} audio the prompt: mono, or one array a channel; null with promptCodes
   * @param {number | null} sampleRate of the prompt, any; null with promptCodes
   * @param {GenerateOptions} [options]
   * @returns {Promise<Generated>}
   */
  async generateContinuation(audio, sampleRate, options = {}) {
    this._validate('generateContinuation', options, CONTINUE)
    return this._complete(await this._continue(audio, sampleRate, options), options)
  }

  /**
   * Generate audio from a description, a melody or nothing.
   *
   * @param {GenerateOptions} [options]
   * @returns {Promise<Generated>}
   */
  async generate(options = {}) {
    this._validate('generate', options, GENERATE)
    return this._complete(await this._begin(options, null), options)
  }

  /**
   * What generateContinuation returns, in chunks while it is being generated; the prompt's own chunks come at once.
   *
   * Generation does not wait for the consumer. It ends when the consumer leaves the loop, or when the signal aborts.
   *
   * @param {Float32Array | AudioChannels | null} audio
   * @param {number | null} sampleRate
   * @param {GenerateOptions & { chunkSeconds?: number }} [options] chunkSeconds: length of a chunk; default 1
   * @returns {AsyncGenerator<AudioChannels, void, void>}
   */
  async *streamContinuation(audio, sampleRate, options = {}) {
    this._validate('streamContinuation', options, STREAM_CONTINUATION)
    yield* this._stream(() => this._continue(audio, sampleRate, options, true), options)
  }

  /**
   * What generate returns, in chunks while it is being generated.
   *
   * @param {GenerateOptions & { chunkSeconds?: number }} [options]
   * @returns {AsyncGenerator<AudioChannels, void, void>}
   */
  async *stream(options = {}) {
    this._validate('stream', options, STREAM)
    yield* this._stream(() => this._begin(options, null, 0, true), options)
  }

  /**
   * Throw unless the options are those of a call, and within bounds.
   *
   * @param {string} call
   * @param {object} options
   * @param {import('./options.js').Table} table
   */
  _validate(call, options, table) {
    validateOptions(call, options, table, 1 / this.frameRate)
  }

  /**
   * @param {() => Promise<Started>} start
   * @param {GenerateOptions & { chunkSeconds?: number }} options
   * @returns {AsyncGenerator<AudioChannels, void, void>}
   */
  async *_stream(start, { chunkSeconds = 1, takes = 1, onProgress, onCodes, signal }) {
    const size = Math.round(chunkSeconds * this.frameRate)
    if (takes !== 1) throw new RangeError(`takes: got ${takes}, expected 1: a stream has one take; start one for each`)
    const { generation } = await start()
    const codes = streamCodes(generation, size, onProgress, onCodes)
    for await (const [audio] of prefetch(this.codec.decodeStream(codes, size, signal))) yield audio
  }

  /**
   * @param {Float32Array | AudioChannels | null} audio
   * @param {number | null} sampleRate
   * @param {GenerateOptions} options
   * @param {boolean} [streams] its audio is not kept
   */
  async _continue(audio, sampleRate, options, streams = false) {
    const { promptCodes } = options
    if (promptCodes) {
      if (audio) throw new TypeError('promptCodes: got audio too, expected one of them; pass null for audio')
      validateCodes('promptCodes', promptCodes, this.lm.codebooks, this.lm.card)
      const frames = promptCodes[0].length
      this._validateLength('promptCodes', frames, frames / this.frameRate, options)
      return this._begin(options, promptCodes, frames, streams)
    }
    const rate = /** @type {number} */ (sampleRate)
    const prompt = validateAudio('audio', audio, rate)
    const seconds = prompt[0].length / rate
    const frames = Math.ceil(seconds * this.frameRate)
    this._validateLength('audio', frames, seconds, options)
    const encode = async () => this.codec.encode(await this._convert('audio', prompt, rate, options.signal))
    return this._begin(options, encode, frames, streams)
  }

  /**
   * Audio at the codec's rate, with its channels; throws where nothing of it is left.
   *
   * @param {string} name of the argument
   * @param {AudioChannels} audio
   * @param {number} rate
   * @param {AbortSignal} [signal]
   */
  async _convert(name, audio, rate, signal) {
    const pause = async () => {
      await yieldToEventLoop()
      signal?.throwIfAborted()
    }
    const converted = await convertAudioInPieces(audio, rate, this.sampleRate, this.channels, pause)
    if (converted[0].length) return converted
    throw new RangeError(
      `${name}: got ${audio[0].length} samples at ${rate} Hz, less than one at ${this.sampleRate} Hz; expected longer audio`,
    )
  }

  /**
   * Throw where a prompt leaves nothing to generate.
   *
   * @param {'audio' | 'promptCodes'} name
   * @param {number} frames
   * @param {number} seconds
   * @param {GenerateOptions} options
   */
  _validateLength(name, frames, seconds, { duration = this.duration, maxDuration = this.maxDuration }) {
    const longest = Math.min(duration, maxDuration)
    if (frames > 0 && frames < Math.trunc(longest * this.frameRate)) return
    const limit = duration <= maxDuration ? 'duration' : 'maxDuration'
    throw new RangeError(
      `${name}: got ${seconds.toFixed(2)} s, expected less than ${limit}, ${longest} s, and more than 0`,
    )
  }

  /**
   * @param {GenerateOptions} options
   * @param {ArrayLike<ArrayLike<number>> | null | (() => Promise<Int32Array[]>)} prompt codes, or what encodes them
   * @param {number} [frames] of the prompt
   * @param {boolean} [streams] its audio is not kept
   * @returns {Promise<Started>}
   */
  async _begin(options, prompt, frames = 0, streams = false) {
    const { description, duration = this.duration, takes = 1, seed = randomSeed(), signal } = options
    signal?.throwIfAborted()
    if (Array.isArray(seed)) throw new TypeError('seed: got a list, expected one: take b has seed + b')
    this._requireMemory(options, frames, streams)
    if (description && !this.text) {
      throw new BundleError(
        `${this.manifest.path}: got a description, but the bundle contains no text encoder; export it again with --text`,
      )
    }
    const selfWav = await this._selfWav(options, takes, duration, seed)
    const states = (await this.text?.encode(description)) ?? null
    signal?.throwIfAborted()
    const codes = typeof prompt === 'function' ? await prompt() : prompt
    signal?.throwIfAborted()
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
   * Throw a RangeError if this device cannot hold what is going to be generated, or if there is nothing to generate.
   *
   * @param {GenerateOptions} options
   * @param {number} frames of the prompt
   * @param {boolean} streams its audio is not kept
   */
  _requireMemory(options, frames, streams) {
    const { description, melody, duration = this.duration, takes = 1 } = options
    const { maxDuration, extendStride, cfgCoef, cfgCoefBeta } = options
    const windows = this.lm.windows(frames, { duration, maxDuration, extendStride })
    this.lm.requireMemory(windows, takes, description ? 1 : 0, melody, { cfgCoef, cfgCoefBeta })
    if (streams) return
    const samples = takes * this.channels * duration * this.sampleRate
    requireAudio(takes > 1 ? 'takes' : 'duration', samples, `${duration} s of audio, which a stream does not keep`)
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
    const rate = /** @type {number} */ (options.melodySampleRate)
    const audio = validateAudio('melody', options.melody, rate)
    const seconds = audio[0].length / rate
    requireAudio('melody', this.channels * seconds * this.sampleRate, `${seconds} s of melody`)
    const converted = await this._convert('melody', audio, rate, options.signal) // to the model's channels first, as audiocraft
    const [mono] = convertAudio(converted, this.sampleRate, this.sampleRate, 1)
    if (selfWavKind === 'melody') {
      const { maxDuration = this.maxDuration } = options
      const window = duration > maxDuration ? maxDuration : null
      return melodyConditioning(selfWavGraph, mono, takes, this.sampleRate, window)
    }
    const { evalQ = 3, excerptLength = 3, excerptStart } = options
    const levels = this.manifest.tree.model.style_levels ?? 0
    if (evalQ > levels) throw new RangeError(`evalQ: got ${evalQ}, expected 1 to ${levels}`)
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
  async _complete({ generation, seed }, { onProgress, signal }) {
    for await (const done of generation) onProgress?.(done, generation.total)
    /** @type {Take[]} */
    const takes = []
    for (const codes of generation.codes()) {
      takes.push({ audio: await this.codec.decode(codes, signal), codes, seed: seedOf(seed, takes.length) })
    }
    return { ...takes[0], sampleRate: this.sampleRate, takes }
  }
}

/**
 * The seed of take b: a number, or a BigInt where the first one is, or where a number would be rounded.
 *
 * @param {number | bigint} seed
 * @param {number} b
 */
function seedOf(seed, b) {
  const exact = typeof seed === 'number' && Number.isSafeInteger(seed + b)
  return exact ? seed + b : BigInt(seed) + BigInt(b)
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
