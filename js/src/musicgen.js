/** audiocraft's MusicGen over a bundle: sound in, sound out. */

import { ahead } from './ahead.js'
import { convertAudio } from './audio.js'
import { Codec } from './codec.js'
import { LanguageModel, randomSeed } from './lm.js'
import { Manifest } from './manifest.js'
import { melody, mertFeatures, style } from './self_wav.js'
import { BundleError } from './source.js'
import { TextConditioner } from './text.js'

/**
 * @typedef {import('./codec.js').Sound} Sound
 * @typedef {import('./generation.js').Generation} Generation
 *
 * @typedef {object} GenerateOptions
 * @property {string | null} [description] none, null or "" for no description
 * @property {number} [duration] seconds in all, the prompt included; the bundle's where not given
 * @property {number} [topK] 0: off
 * @property {number} [topP] 0: off
 * @property {number} [temperature] 0: the most probable codes
 * @property {number} [cfgCoef] classifier-free guidance
 * @property {number | null} [cfgCoefBeta] double guidance of melody and style models
 * @property {number} [extendStride] seconds from one window to the next, where the sound is longer than one
 * @property {number} [maxDuration] seconds of a window, what the model was trained on where not given
 * @property {number | bigint} [seed] the same seed is the same take in every language; drawn where not given
 * @property {number} [takes] how many are generated at once; take b is drawn with seed + b
 * @property {Float32Array | Sound} [melody] what melody models follow and style models sound like
 * @property {number} [melodySampleRate]
 * @property {number} [evalQ] style models: how many levels of quantisation are kept, the fewer, the freer; 3
 * @property {number} [excerptLength] style models: seconds that are heard; 3
 * @property {number} [excerptStart] style models: where from; drawn with the seed where not given
 * @property {AbortSignal} [signal] cancels: the promise is rejected with its reason
 * @property {(done: number, total: number) => void} [onProgress] columns drawn
 * @property {(codes: Int32Array[]) => void} [onCodes] of a stream: the codes of its next frames, the prompt's first
 *
 * @typedef {object} Take
 * @property {Sound} audio one array a channel
 * @property {Int32Array[]} codes one array a codebook
 * @property {number | bigint} seed
 *
 * @typedef {Take & { sampleRate: number, takes: Take[] }} Generated the first take, and all of them
 */

/** Longer than maxDuration is generated in windows: each begins with the last one's frames from extendStride on. */
export class MusicGen {
  /**
   * @param {Manifest} manifest
   * @param {import('./text.js').TokenizerFactory} [tokenizer]
   */
  constructor(manifest, tokenizer) {
    const graphs = manifest.need('graphs')
    this.manifest = manifest
    this.lm = new LanguageModel(manifest)
    this.codec = new Codec(manifest)
    this.text = 'text_encoder' in graphs ? new TextConditioner(manifest, tokenizer) : null
    this.mert = 'style_features' in graphs ? manifest.graph('style_features') : null
    /** @type {number} */
    this.duration = manifest.need('defaults', 'duration').duration
  }

  /**
   * Open a bundle: a folder (Node), the URL of one, files by their names, or a function of a name.
   *
   * @param {import('./source.js').Source} source
   * @param {import('./manifest.js').LoadOptions & { tokenizer?: import('./text.js').TokenizerFactory, lazy?: boolean }} options
   *   tokenizer: in place of @huggingface/tokenizers; lazy: what reads texts and melodies is opened when it is first
   *   asked for, as where not given from a folder on a disk, but not from elsewhere
   */
  static async load(source, options) {
    const manifest = await Manifest.open(source, options)
    const model = new MusicGen(manifest, options.tokenizer)
    const { lazy = manifest.files.folder !== null } = options
    const graphs = lazy ? [model.lm.graph, model.codec.encoder, model.codec.stream] : model.graphs()
    manifest.expect(graphs.flatMap(({ entry }) => manifest.filesOf(entry)))
    if (model.text && !lazy) manifest.expect(['tokenizer.json'])
    for (const graph of graphs) await graph.session() // one after the other: the memory of one download at a time
    if (!lazy) await model.text?.tokenizer()
    return model
  }

  /** All that a generation may ask for. */
  graphs() {
    const { lm, codec, text, mert } = this
    const graphs = [lm.graph, lm.condition, lm.wav, codec.encoder, codec.stream, text?.graph, mert]
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
   * Continue sound to `duration` seconds in all, the prompt included, as the codec renders it.
   *
   * @param {Float32Array | Sound} audio the prompt: mono, or one array a channel
   * @param {number} sampleRate its own, any
   * @param {GenerateOptions} [options]
   * @returns {Promise<Generated>}
   */
  async generateContinuation(audio, sampleRate, options = {}) {
    return this._finish(await this._continue(audio, sampleRate, options), options)
  }

  /**
   * Music from a description, a melody or nothing.
   *
   * @param {GenerateOptions} [options]
   * @returns {Promise<Generated>}
   */
  async generate(options = {}) {
    return this._finish(await this._begin(options, null), options)
  }

  /**
   * generateContinuation's sound in chunks, while it is still being generated; those of the prompt come at once.
   *
   * It is generated ahead of whoever takes the chunks, until the iterator ends, as `break` ends it, or the signal does.
   *
   * @param {Float32Array | Sound} audio
   * @param {number} sampleRate
   * @param {GenerateOptions & { chunkSeconds?: number }} [options] chunkSeconds: of a chunk, 1 where not given
   * @returns {AsyncGenerator<Sound, void, void>}
   */
  async *streamContinuation(audio, sampleRate, options = {}) {
    yield* this._stream(() => this._continue(audio, sampleRate, options), options)
  }

  /**
   * generate's sound in chunks.
   *
   * @param {GenerateOptions & { chunkSeconds?: number }} [options]
   * @returns {AsyncGenerator<Sound, void, void>}
   */
  async *stream(options = {}) {
    yield* this._stream(() => this._begin(options, null), options)
  }

  /**
   * @param {() => Promise<Started>} start
   * @param {GenerateOptions & { chunkSeconds?: number }} options
   * @returns {AsyncGenerator<Sound, void, void>}
   */
  async *_stream(start, { chunkSeconds = 1, takes = 1, onProgress, onCodes }) {
    const size = Math.round(chunkSeconds * this.frameRate)
    if (!(size >= 1)) {
      throw new RangeError(`chunkSeconds: got ${chunkSeconds}, expected ${1 / this.frameRate} (a frame) or more`)
    }
    if (takes !== 1) throw new RangeError(`takes: got ${takes}, a stream is one; start several, one after the other`)
    const { generation } = await start()
    const codes = parts(generation, size, onProgress, onCodes)
    for await (const [sound] of ahead(this.codec.decodeStream(codes, size))) yield sound
  }

  /**
   * @param {Float32Array | Sound} audio
   * @param {number} sampleRate
   * @param {GenerateOptions} options
   */
  async _continue(audio, sampleRate, options) {
    const prompt = checked('audio', audio, sampleRate)
    const { duration = this.duration, maxDuration = this.maxDuration } = options
    const [seconds, longest] = [prompt[0].length / sampleRate, Math.min(duration, maxDuration)]
    if (Math.ceil(seconds * this.frameRate) >= Math.trunc(longest * this.frameRate)) {
      const what = duration <= maxDuration ? 'the duration of' : 'a window of'
      throw new RangeError(`audio: got ${seconds.toFixed(2)} s, expected less than ${what} ${longest} s`)
    }
    return this._begin(options, convertAudio(prompt, sampleRate, this.sampleRate, this.channels))
  }

  /**
   * @typedef {{ generation: Generation, seed: number | bigint }} Started
   *
   * @param {GenerateOptions} options
   * @param {Sound | null} prompt at the codec's rate
   * @returns {Promise<Started>}
   */
  async _begin(options, prompt) {
    const { description, duration = this.duration, takes = 1, seed = randomSeed(), signal } = options
    signal?.throwIfAborted()
    if (!(takes >= 1 && takes === Math.trunc(takes))) throw new RangeError(`takes: got ${takes}, expected 1 or more`)
    if (!(duration > 0 && duration < Infinity))
      throw new RangeError(`duration: got ${duration} s, expected more than 0`)
    if (description && !this.text) {
      const path = this.manifest.files.label('manifest.json')
      throw new BundleError(`${path}: has no text encoder for a description; export it with --text`)
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
   * A melody or a style as the model takes it; null where there is none.
   *
   * @param {GenerateOptions} options
   * @param {number} takes
   * @param {number} duration
   * @param {number | bigint} seed
   */
  async _selfWav(options, takes, duration, seed) {
    if (!options.melody) return null
    const { wav, kind } = this.lm
    if (!wav) throw new TypeError('melody: this model takes no melody: it has no conditioners.self_wav')
    const rate = options.melodySampleRate ?? 0
    const sound = checked('melody', options.melody, rate)
    const converted = convertAudio(sound, rate, this.sampleRate, this.channels) // by way of its channels, as audiocraft
    const [heard] = convertAudio(converted, this.sampleRate, this.sampleRate, 1)
    if (kind === 'melody') {
      const { maxDuration = this.maxDuration } = options
      return melody(wav, heard, takes, this.sampleRate, duration > maxDuration ? maxDuration : null)
    }
    const { evalQ = 3, excerptLength = 3, excerptStart } = options
    const levels = this.manifest.need('model').style_levels ?? 0
    if (!(evalQ >= 1 && evalQ <= levels)) throw new RangeError(`evalQ: got ${evalQ}, this model has ${levels} levels`)
    if (!this.mert) {
      const path = this.manifest.files.label('manifest.json')
      throw new BundleError(`${path}: has no MERT to hear a style with; export it with --mert`)
    }
    const excerpt = { seed, excerptLength, excerptStart }
    return style(wav, await mertFeatures(this.mert, heard, this.sampleRate, excerpt), takes, evalQ)
  }

  /**
   * @param {Started} started
   * @param {GenerateOptions} options
   * @returns {Promise<Generated>}
   */
  async _finish({ generation, seed }, { onProgress }) {
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
 * A generation's frames, `size` or more at a time, those of the prompt before anything is generated.
 *
 * @param {Generation} generation
 * @param {number} size
 * @param {GenerateOptions['onProgress']} onProgress
 * @param {GenerateOptions['onCodes']} onCodes
 */
async function* parts(generation, size, onProgress, onCodes) {
  let given = 0
  const next = () => {
    const codes = generation.codes(given)
    given = generation.frames
    onCodes?.(codes[0])
    return codes
  }
  if (generation.frames) yield next()
  for await (const done of generation) {
    onProgress?.(done, generation.total)
    if (generation.frames >= given + size || done === generation.total) {
      yield next()
    }
  }
}

/**
 * Sound as one array a channel; throws where it is none.
 *
 * @param {string} name
 * @param {Float32Array | Sound} audio
 * @param {number} sampleRate
 * @returns {Sound}
 */
function checked(name, audio, sampleRate) {
  const sound = audio instanceof Float32Array ? [audio] : audio
  const samples = sound?.[0]?.length
  if (!Array.isArray(sound) || !samples || sound.some((c) => !(c instanceof Float32Array) || c.length !== samples)) {
    throw new TypeError(`${name}: expected a Float32Array, or one a channel of equal length, not empty`)
  }
  if (sound.some((channel) => channel.some((sample) => !Number.isFinite(sample)))) {
    throw new RangeError(`${name}: got NaN or infinity, expected finite samples`)
  }
  if (!(sampleRate >= 1)) {
    throw new RangeError(
      `${name === 'audio' ? 'sampleRate' : `${name}SampleRate`}: got ${sampleRate}, expected samples a second`,
    )
  }
  return sound
}
