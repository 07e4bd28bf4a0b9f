/** audiocraft's MusicGen on a bundle: audio, descriptions and melodies in, audio out. */

import { convertAudio, convertAudioInPieces, validateAudio } from './audio.js'
import { Codec } from './audio_codec.js'
import { melodyConditioning, mertFeatures, styleConditioning, validateFeatures } from './conditioning.js'
import { BundleError } from './files.js'
import { yieldToEventLoop } from './generation.js'
import { HubFiles } from './hub.js'
import { COLUMNS, LanguageModel, randomSeed, seedsOf } from './language_model.js'
import { Manifest } from './manifest.js'
import { requireAudio } from './memory.js'
import { framesOf, MusicalTime, secondsOf } from './musical_time.js'
import { CONTINUE, GENERATE, STREAM, STREAM_CONTINUATION, validateCodes, validateOptions } from './options.js'
import { prefetch } from './prefetch.js'
import { TextConditioner } from './text_encoder.js'

/**
 * @typedef {import('./audio.js').AudioChannels} AudioChannels
 * @typedef {import('./generation.js').Generation} Generation
 * @typedef {number | bigint | (number | bigint)[]} Seed
 * @typedef {{ generation: Generation, seed: Seed, takes: number }} Started
 * @typedef {{ prompts: number | null, frames: number, codes: () => Promise<Int32Array[][] | null> }} Prompt what is
 *   continued, not yet encoded: how many prompts of how many frames, and what gives their codes
 * @typedef {{ first: number, length: number }} Part samples of the result that are returned
 * @typedef {{ prompt: Prompt, options: GenerateOptions, part: Part | null }} Request what a call generates; part: null for
 *   all of it
 * @typedef {Float32Array | AudioChannels} Audio mono, or one array a channel
 * @typedef {Int32Array[] | number[][]} Codes one array a codebook
 * @typedef {string | null} Text null or "": none
 *
 * @typedef {object} GenerateOptions what is given per prompt is one value for all of them, or a list of one for each
 * @property {Text | Text[]} [description] per prompt
 * @property {Text | Text[]} [negativeDescription] per prompt, a text that guidance leads away from; default: none
 * @property {number} [duration] seconds in all, the prompt included; default: the bundle's
 * @property {number} [topK] sample from the k most probable codes; 0: from all
 * @property {number} [topP] sample from the most probable codes up to this sum of probabilities; 0: off
 * @property {number} [temperature] 0: always the most probable code
 * @property {number} [cfgCoef] classifier-free guidance; 1: none
 * @property {number | null} [cfgCoefBeta] double guidance of melody and style models
 * @property {boolean} [twoStepCfg] the unconditional pass apart, as audiocraft's two_step_cfg: other logits in melody and
 *   style models
 * @property {number} [extendStride] seconds from one window to the next, where the duration is longer than one
 * @property {number} [maxDuration] seconds of a window; default: what the model was trained on
 * @property {Seed} [seed] the same seed gives the same take in every language: take b of the result has seed + b, or the
 *   list's; default: a random one
 * @property {number} [takes] how many are generated of each prompt, which is read once for all of them
 * @property {Audio | (Audio | null)[]} [melody] per prompt, the melody that melody models follow, or the audio whose
 *   style style models take on; in a list, the channels of one are a list too, and null is none
 * @property {number} [melodySampleRate] required with a melody
 * @property {Float32Array | (Float32Array | null)[]} [styleFeatures] per prompt, in style models: MERT's features
 *   [F x width] of a style, in place of its audio
 * @property {number} [evalQ] style models: how many levels of quantization are kept, fewer are freer; default 3
 * @property {number} [excerptLength] style models: seconds of the melody that are used; default 3
 * @property {number} [excerptStart] style models: where they begin; default: chosen by the seed
 * @property {Codes | Codes[] | null} [promptCodes] continuations: codes of earlier ones, in place of audio
 * @property {import('./musical_time.js').Grid} [musicalTime] in place of a duration: the audio is this many whole bars, to
 *   the sample, and begins on a bar line. Continuations: the prompt is cut to whole bars, up to the last bar line of the
 *   audio. The codes are those of whole frames, and may begin before the audio and end after it
 * @property {AbortSignal} [signal] cancels: the promise is rejected with the signal's reason
 * @property {import('./files.js').OnProgress} [onProgress] called with the columns sampled so far and their total
 * @property {(codes: Int32Array[], rows: Int32Array[][]) => void} [onCodes] streams: called with the codes of the next
 *   frames, the prompt's first: of the first take, and of all
 *
 * @typedef {object} Take
 * @property {AudioChannels} audio
 * @property {Int32Array[]} codes one array a codebook
 * @property {number | bigint} seed
 * @property {number} prompt which prompt it is a take of: 0, 1, ...
 *
 * @typedef {Take & { sampleRate: number, takes: Take[] }} Generated the first take, and all of them: those of the first
 *   prompt, those of the second, ...
 */

/** No prompt. @type {Prompt} */
const NOTHING = { prompts: null, frames: 0, codes: async () => null }

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
   * @param {Audio | Audio[] | null} audio the prompt: mono, or one array a channel; a list of lists of channels: several
   *   prompts of equal length. null with promptCodes
   * @param {number | null} sampleRate of the prompt, any; null with promptCodes
   * @param {GenerateOptions} [options]
   * @returns {Promise<Generated>}
   */
  async generateContinuation(audio, sampleRate, options = {}) {
    this._validate('generateContinuation', options, CONTINUE)
    return this._complete(this._continuation(audio, sampleRate, options))
  }

  /**
   * Generate audio from a description, a melody or nothing.
   *
   * @param {GenerateOptions} [options]
   * @returns {Promise<Generated>}
   */
  async generate(options = {}) {
    this._validate('generate', options, GENERATE)
    return this._complete(this._generation(options))
  }

  /**
   * What generateContinuation returns, in chunks while it is being generated; the prompt's own chunks come at once.
   *
   * Generation does not wait for the consumer. It ends when the consumer leaves the loop, or when the signal aborts.
   *
   * @param {Audio | null} audio
   * @param {number | null} sampleRate
   * @param {GenerateOptions & { chunkSeconds?: number }} [options] chunkSeconds: length of a chunk; default 1
   * @returns {AsyncGenerator<AudioChannels, void, void>}
   */
  async *streamContinuation(audio, sampleRate, options = {}) {
    this._validate('streamContinuation', options, STREAM_CONTINUATION)
    const request = this._continuation(audio, sampleRate, options)
    this._requireOneTake(request)
    yield* firstOf(this._stream(request))
  }

  /**
   * What generate returns, in chunks while it is being generated.
   *
   * @param {GenerateOptions & { chunkSeconds?: number }} [options]
   * @returns {AsyncGenerator<AudioChannels, void, void>}
   */
  async *stream(options = {}) {
    this._validate('stream', options, STREAM)
    const request = this._generation(options)
    this._requireOneTake(request)
    yield* firstOf(this._stream(request))
  }

  /**
   * streamContinuation with several prompts or takes: each chunk is that of all takes, in generateContinuation's order.
   *
   * @param {Audio | Audio[] | null} audio
   * @param {number | null} sampleRate
   * @param {GenerateOptions & { chunkSeconds?: number }} [options]
   * @returns {AsyncGenerator<AudioChannels[], void, void>}
   */
  async *streamContinuationTakes(audio, sampleRate, options = {}) {
    this._validate('streamContinuationTakes', options, STREAM_CONTINUATION)
    yield* this._stream(this._continuation(audio, sampleRate, options))
  }

  /**
   * stream with several descriptions or takes: each chunk is that of all takes, in generate's order.
   *
   * @param {GenerateOptions & { chunkSeconds?: number }} [options]
   * @returns {AsyncGenerator<AudioChannels[], void, void>}
   */
  async *streamTakes(options = {}) {
    this._validate('streamTakes', options, STREAM)
    yield* this._stream(this._generation(options))
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
   * @param {Request & { options: { chunkSeconds?: number } }} request
   * @returns {AsyncGenerator<AudioChannels[], void, void>}
   */
  async *_stream({ prompt, options, part }) {
    const { chunkSeconds = 1, onProgress, onCodes, signal } = options
    const size = Math.round(chunkSeconds * this.frameRate)
    const { generation } = await this._begin(options, prompt, true)
    const codes = streamCodes(generation, size, onProgress, onCodes)
    const chunks = prefetch(this.codec.decodeStream(codes, size, signal))
    yield* part ? partOf(chunks, part) : chunks
  }

  /**
   * Throw unless a stream has one take.
   *
   * @param {Request} request
   */
  _requireOneTake({ prompt, options }) {
    const rows = promptsOf(options, prompt) * (options.takes ?? 1)
    if (rows === 1) return
    throw new RangeError(
      `takes: got ${rows}, expected 1: a stream has one take; for all of them use streamTakes or streamContinuationTakes`,
    )
  }

  /**
   * What a call without a prompt generates.
   *
   * @param {GenerateOptions} options
   * @returns {Request}
   */
  _generation(options) {
    if (!options.musicalTime) return { prompt: NOTHING, options, part: null }
    const time = wholeBars(options)
    if (time.promptBars !== null) {
      throw new RangeError(`promptBars: got ${time.promptBars}, expected null: there is no prompt; give bars alone`)
    }
    const bars = time.bars ?? Math.max(1, Math.trunc(this.duration / time.bar + 1e-9))
    return this._inBars(NOTHING, options, framesOf(time, 0, bars, this.codec))
  }

  /**
   * What a call with a prompt generates, its prompt checked and not yet encoded.
   *
   * @param {Audio | Audio[] | null} audio
   * @param {number | null} sampleRate
   * @param {GenerateOptions} options
   * @returns {Request}
   */
  _continuation(audio, sampleRate, options) {
    const { musicalTime, promptCodes, signal } = options
    if (promptCodes) return { prompt: this._promptOfCodes(promptCodes, audio, options), options, part: null }
    const rate = /** @type {number} */ (sampleRate)
    const prompts = (isListOfAudio(audio) ? audio : [audio]).map((one) =>
      validateAudio('audio', one, 'sampleRate', rate),
    )
    const lengths = new Set(prompts.map((channels) => channels[0].length))
    if (lengths.size > 1) throw unequal('audio', [...lengths], 'samples')
    if (musicalTime) return this._continuedBars(prompts, rate, options)
    const seconds = prompts[0][0].length / rate
    const frames = Math.ceil(seconds * this.frameRate)
    this._validateLength('audio', frames, seconds, options)
    const convert = (/** @type {AudioChannels} */ one) => this._convert('audio', one, rate, signal)
    return { prompt: this._promptOf(prompts, frames, convert), options, part: null }
  }

  /**
   * A continuation in whole bars. The prompt ends on a bar line and is whole frames, as the codec fills a part of one up
   * with silence: the first frame has what comes before the bars, or silence at the beginning of the track.
   *
   * @param {AudioChannels[]} prompts
   * @param {number} rate
   * @param {GenerateOptions} options
   * @returns {Request}
   */
  _continuedBars(prompts, rate, options) {
    const given = wholeBars(options)
    const samples = prompts[0][0].length
    const time = given.resolved(given.wholeBars(samples, rate) * given.bar, this.duration)
    const { end } = time.prompt(samples, rate)
    const [promptBars, bars] = /** @type {number[]} */ ([time.promptBars, time.bars])
    const frames = framesOf(time, promptBars, bars, this.codec)
    const wanted = frames.prompt * this.codec.hop
    const needed = Math.ceil((wanted * rate) / this.sampleRate) // of the audio: the same time, or a sample more
    const convert = async (/** @type {AudioChannels} */ one) => {
      const last = one.map((channel) => upTo(channel, end, needed))
      const converted = await this._convert('audio', last, rate, options.signal)
      return converted.map((channel) => channel.slice(-wanted))
    }
    const request = this._inBars(this._promptOf(prompts, frames.prompt, convert), options, frames)
    this._validateLength('promptBars', frames.prompt, frames.prompt / this.frameRate, request.options)
    return request
  }

  /**
   * @param {Prompt} prompt
   * @param {GenerateOptions} options
   * @param {import('./musical_time.js').Frames} frames
   * @returns {Request}
   */
  _inBars(prompt, options, { all, first, length }) {
    const { maxDuration = this.maxDuration } = options
    const seconds = secondsOf(all, this.frameRate)
    // windows round once more: half a frame keeps them from losing one
    const duration = seconds > maxDuration ? (all + 0.5) / this.frameRate : seconds
    CONTINUE.duration('musicalTime', duration, 1 / this.frameRate)
    // options may be inherited
    return { prompt, options: Object.assign(Object.create(options), { duration }), part: { first, length } }
  }

  /**
   * @param {Codes | Codes[]} promptCodes
   * @param {Audio | Audio[] | null} audio
   * @param {GenerateOptions} options
   * @returns {Prompt}
   */
  _promptOfCodes(promptCodes, audio, options) {
    if (audio) throw new TypeError('promptCodes: got audio too, expected one of them; pass null for audio')
    if (options.musicalTime) {
      throw new TypeError('promptCodes: got musicalTime too, but codes have no bar lines; expected one of them')
    }
    const codes = /** @type {Int32Array[][]} */ (isListOfCodes(promptCodes) ? promptCodes : [promptCodes])
    for (const row of codes) validateCodes('promptCodes', row, this.lm.codebooks, this.lm.card)
    const lengths = new Set(codes.map((row) => row[0].length))
    if (lengths.size > 1) throw unequal('promptCodes', [...lengths], 'frames')
    const frames = codes[0][0].length
    this._validateLength('promptCodes', frames, frames / this.frameRate, options)
    return { prompts: codes.length, frames, codes: async () => codes }
  }

  /**
   * @param {AudioChannels[]} prompts
   * @param {number} frames
   * @param {(prompt: AudioChannels) => Promise<AudioChannels>} convert to what the codec encodes
   * @returns {Prompt}
   */
  _promptOf(prompts, frames, convert) {
    const codes = async () => {
      const encoded = []
      for (const one of prompts) encoded.push(await this.codec.encode(await convert(one)))
      return encoded
    }
    return { prompts: prompts.length, frames, codes }
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
   * @param {'audio' | 'promptBars' | 'promptCodes'} name
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
   * @param {Prompt} prompt
   * @param {boolean} [streams] its audio is not kept
   * @returns {Promise<Started>}
   */
  async _begin(options, prompt, streams = false) {
    const { duration = this.duration, takes = 1, seed = randomSeed(), signal } = options
    signal?.throwIfAborted()
    const prompts = promptsOf(options, prompt)
    const seeds = seedsOf(seed, prompts * takes)
    const descriptions = perPrompt(options.description, prompts)
    const negatives = perPrompt(options.negativeDescription, prompts)
    this._requireMemory(options, prompt, prompts, streams)
    if ([...descriptions, ...negatives].some(Boolean) && !this.text) {
      throw new BundleError(
        `${this.manifest.path}: got a description, but the bundle contains no text encoder; export it again with --text`,
      )
    }
    const selfWav = await this._selfWav(options, prompts, duration, seeds[0])
    const texts = await this._encodeTexts(descriptions)
    const negativeTexts = negatives.some(Boolean) ? await this._encodeTexts(negatives) : null
    signal?.throwIfAborted()
    const codes = await prompt.codes()
    signal?.throwIfAborted()
    const generation = await this.lm.begin({
      prompt: codes,
      texts,
      negatives: negativeTexts,
      selfWav,
      takes,
      duration,
      maxDuration: options.maxDuration,
      extendStride: options.extendStride,
      sampling: {
        temperature: options.temperature,
        topK: options.topK,
        topP: options.topP,
        cfgCoef: options.cfgCoef,
        cfgCoefBeta: options.cfgCoefBeta,
        twoStepCfg: options.twoStepCfg,
      },
      seed: seeds,
      signal,
    })
    return { generation, seed, takes }
  }

  /**
   * The text encoder's states of each text, null for none; equal texts are encoded once.
   *
   * @param {(Text | undefined)[]} texts
   */
  async _encodeTexts(texts) {
    /** @type {Map<Text | undefined, Float32Array | null>} */
    const states = new Map()
    for (const text of texts) if (!states.has(text)) states.set(text, (await this.text?.encode(text)) ?? null)
    return texts.map((text) => states.get(text) ?? null)
  }

  /**
   * Throw a RangeError if this device cannot hold what is going to be generated, or if there is nothing to generate.
   *
   * @param {GenerateOptions} options
   * @param {Prompt} prompt
   * @param {number} prompts
   * @param {boolean} streams its audio is not kept
   */
  _requireMemory(options, prompt, prompts, streams) {
    const { melody, styleFeatures, duration = this.duration, takes = 1 } = options
    const { maxDuration, extendStride, cfgCoef, cfgCoefBeta } = options
    const isTexted = [options.description, options.negativeDescription].flat().some(Boolean)
    const windows = this.lm.windows(prompt.frames, { duration, maxDuration, extendStride })
    this.lm.requireMemory(windows, prompts, takes, Number(isTexted), melody ?? styleFeatures, { cfgCoef, cfgCoefBeta })
    if (streams) return
    const samples = prompts * takes * this.channels * duration * this.sampleRate
    const name = takes > 1 ? 'takes' : prompts > 1 ? 'prompts' : 'duration'
    requireAudio(name, samples, `${duration} s of audio, which a stream does not keep`)
  }

  /**
   * The melody or style of each window; null where none is given.
   *
   * @param {GenerateOptions} options
   * @param {number} prompts
   * @param {number} duration
   * @param {bigint} seed
   */
  async _selfWav(options, prompts, duration, seed) {
    const { melody, styleFeatures, maxDuration = this.maxDuration } = options
    if (styleFeatures) return this._style(options, perPrompt(styleFeatures, prompts))
    if (!melody) return null
    const { selfWavGraph, selfWavKind } = this.lm
    if (!selfWavGraph) throw new TypeError('melody: this model takes no melody; load a melody or style model')
    const rate = /** @type {number} */ (options.melodySampleRate)
    const mono = await eachOnce(perPrompt(isListOfAudio(melody) ? melody : [melody], prompts), (one) =>
      this._mono(one, rate, options.signal),
    )
    if (mono.every((wav) => wav === null)) return null
    if (selfWavKind === 'melody') {
      const window = duration > maxDuration ? maxDuration : null
      return melodyConditioning(selfWavGraph, mono, this.sampleRate, window)
    }
    const { excerptLength = 3, excerptStart } = options
    const { mert } = this
    if (!mert) {
      throw new BundleError(
        `${this.manifest.path}: the bundle contains no MERT; export it again with --mert, or pass styleFeatures`,
      )
    }
    const excerpt = { seed, excerptLength, excerptStart }
    this._requireLevels(options)
    return this._style(options, await eachOnce(mono, (wav) => mertFeatures(mert, wav, this.sampleRate, excerpt)))
  }

  /**
   * @param {GenerateOptions} options
   * @param {(Float32Array | null)[]} features MERT's, of each prompt
   */
  _style(options, features) {
    const { selfWavGraph, selfWavKind } = this.lm
    if (options.styleFeatures && options.melody) {
      throw new TypeError('styleFeatures: got a melody too, expected one of them')
    }
    if (!selfWavGraph || selfWavKind !== 'style') {
      throw new TypeError('styleFeatures: this model takes no style; load a style model')
    }
    this._requireLevels(options)
    validateFeatures(selfWavGraph, features)
    return features.every((row) => row === null) ? null : styleConditioning(selfWavGraph, features, options.evalQ ?? 3)
  }

  /** @param {GenerateOptions} options */
  _requireLevels({ evalQ = 3 }) {
    const levels = this.manifest.tree.model.style_levels ?? 0
    if (evalQ > levels) throw new RangeError(`evalQ: got ${evalQ}, expected 1 to ${levels}`)
  }

  /**
   * A melody or style as mono audio at the model's rate, by way of its channels, as audiocraft.
   *
   * @param {Audio} melody
   * @param {number} rate
   * @param {AbortSignal} [signal]
   */
  async _mono(melody, rate, signal) {
    const audio = validateAudio('melody', melody, 'melodySampleRate', rate)
    const seconds = audio[0].length / rate
    requireAudio('melody', this.channels * seconds * this.sampleRate, `${seconds} s of melody`)
    const [mono] = convertAudio(await this._convert('melody', audio, rate, signal), this.sampleRate, this.sampleRate, 1)
    return mono
  }

  /**
   * Run a generation to its end and decode all takes.
   *
   * @param {Request} request
   * @returns {Promise<Generated>}
   */
  async _complete({ prompt, options, part }) {
    const { onProgress, signal } = options
    const { generation, seed, takes: each } = await this._begin(options, prompt)
    for await (const done of generation) onProgress?.(done, generation.total, COLUMNS)
    /** @type {Take[]} */
    const takes = []
    for (const codes of generation.codes()) {
      const row = takes.length
      const whole = await this.codec.decode(codes, signal)
      const audio = part ? whole.map((channel) => channel.slice(part.first, part.first + part.length)) : whole
      takes.push({ audio, codes, seed: seedOf(seed, row), prompt: Math.floor(row / each) })
    }
    return { ...takes[0], sampleRate: this.sampleRate, takes }
  }
}

/** The first take's chunks. @param {AsyncIterable<AudioChannels[]>} chunks @returns {AsyncGenerator<AudioChannels, void, void>} */
async function* firstOf(chunks) {
  for await (const [first] of chunks) yield first
}

/**
 * A part of audio that comes in chunks.
 *
 * @param {AsyncIterable<AudioChannels[]>} chunks of all takes
 * @param {Part} part
 * @returns {AsyncGenerator<AudioChannels[], void, void>}
 */
async function* partOf(chunks, { first, length }) {
  let at = -first // where the chunk begins in the part
  for await (const takes of chunks) {
    const [start, end] = [Math.max(0, -at), Math.max(0, length - at)]
    at += takes[0][0].length
    if (start < Math.min(end, takes[0][0].length)) {
      yield takes.map((channels) => channels.map((channel) => channel.slice(start, end)))
    }
  }
}

/** The grid of options with whole bars; throws where another length is given, too. @param {GenerateOptions} options */
function wholeBars({ musicalTime, duration }) {
  if (duration === undefined) return new MusicalTime(/** @type {import('./musical_time.js').Grid} */ (musicalTime))
  throw new TypeError(`duration: got ${duration} s and musicalTime, whose bars are the length; expected one of them`)
}

/**
 * The last samples before `end`, silence before the channel begins.
 *
 * @param {Float32Array} channel
 * @param {number} end
 * @param {number} samples
 */
function upTo(channel, end, samples) {
  const last = new Float32Array(samples)
  last.set(channel.subarray(Math.max(0, end - samples), end), Math.max(0, samples - end))
  return last
}

/**
 * How many prompts are asked for: as many as the longest list has. Throws where two lists differ.
 *
 * @param {GenerateOptions} options
 * @param {Prompt} prompt
 */
function promptsOf({ description, negativeDescription, melody, styleFeatures }, { prompts }) {
  const lists = {
    prompts: prompts ?? 1,
    description: Array.isArray(description) ? description.length : 1,
    negativeDescription: Array.isArray(negativeDescription) ? negativeDescription.length : 1,
    melody: isListOfAudio(melody) ? melody.length : 1,
    styleFeatures: Array.isArray(styleFeatures) ? styleFeatures.length : 1,
  }
  const several = Object.entries(lists).filter(([, length]) => length !== 1)
  const most = several.length ? several[0][1] : 1
  if (most > 0 && several.every(([, length]) => length === most)) return most
  const found = several.map(([name, length]) => `${length} in ${name}`).join(', ')
  throw new RangeError(`prompts: got ${found}, expected one number above 0, or one value for all prompts`)
}

/**
 * A value for each prompt; null where none is given.
 *
 * @template T
 * @param {T | T[] | undefined} value one for all prompts, or a list
 * @param {number} prompts
 * @returns {(T | null)[]}
 */
function perPrompt(value, prompts) {
  if (Array.isArray(value) && value.length === prompts) return value
  const one = Array.isArray(value) ? value[0] : value
  return Array(prompts).fill(one ?? null)
}

/**
 * What a function makes of each item, null of null; of the same item it is asked once.
 *
 * @template {object} T
 * @template R
 * @param {(T | null)[]} items
 * @param {(item: T) => Promise<R>} make
 * @returns {Promise<(R | null)[]>}
 */
async function eachOnce(items, make) {
  /** @type {Map<T, R>} */
  const made = new Map()
  for (const item of items) if (item && !made.has(item)) made.set(item, await make(item))
  return items.map((item) => (item ? /** @type {R} */ (made.get(item)) : null))
}

/** Whether audio is a list of several, and not of the channels of one. @param {unknown} audio @returns {audio is (Audio | null)[]} */
const isListOfAudio = (audio) => Array.isArray(audio) && audio.some((one) => one === null || Array.isArray(one))

/** Whether codes are those of several prompts. @param {any} codes @returns {codes is Codes[]} */
function isListOfCodes(codes) {
  const first = Array.isArray(codes) && Array.isArray(codes[0]) ? codes[0][0] : null
  return Array.isArray(first) || ArrayBuffer.isView(first)
}

/** @param {string} name @param {number[]} lengths @param {string} unit */
const unequal = (name, lengths, unit) =>
  new RangeError(
    `${name}: got ${lengths.slice(0, 5).join(', ')} ${unit}, expected prompts of equal length; cut them, or call once for each`,
  )

/**
 * The seed of row b: a number, or a BigInt where the first one is, or where a number would be rounded.
 *
 * @param {Seed} seed
 * @param {number} b
 */
function seedOf(seed, b) {
  if (Array.isArray(seed)) return seed[b]
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
    onCodes?.(codes[0], codes)
    return codes
  }
  if (generation.frames) yield next()
  for await (const done of generation) {
    onProgress?.(done, generation.total, COLUMNS)
    if (generation.frames >= start + size || done === generation.total) {
      yield next()
    }
  }
}
