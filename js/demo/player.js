/**
 * Plays takes while they are generated.
 *
 * Pieces of a take are scheduled ahead of time, each at an exact sample of an audio clock with the take's own rate, so
 * that there are no gaps and no clicks. Where the samples run out, the player waits until there are enough to go on.
 *
 *     take       [========================......]      = generated, . not yet
 *     scheduled  [ piece | piece | piece ]              up to AHEAD of the position
 *     played     [=========]
 *
 * A take that is to be repeated goes on, at the sample after its last one, with a copy whose beginning continues its end,
 * which the audio hardware's clock repeats.
 */

const AHEAD = 1.5 // seconds: timers of a background page run once a second
const PIECE = 0.5 // seconds
const FADE = 0.012 // seconds, where playing starts or stops
const LONGEST_WAIT = 4 // seconds of audio to wait for at most, even if playing will have to wait again

/**
 * @typedef {object} Playable something to play: a take, or the loop itself
 * @property {Float32Array[]} samples one array a channel, allocated at full length
 * @property {number} filled how many samples are generated
 * @property {boolean} complete whether it will not grow any more
 * @property {number} sampleRate
 * @property {number} speed seconds of audio generated per second; Infinity for the loop
 * @property {Float32Array[] | null} closed what is repeated, as long as samples; null: nothing, or not yet
 *
 * @typedef {'paused' | 'playing' | 'waiting'} State waiting: for samples that are still being generated
 */

/** Plays one sound at a time. Dispatches "state" when its state changes. */
export class Player extends EventTarget {
  constructor() {
    super()
    /** @type {Map<number, AudioContext>} */
    this.contexts = new Map()
    /** @type {AudioContext | null} */
    this.context = null
    /** @type {Playable | null} */
    this.sound = null
    /** @type {State} */
    this.state = 'paused'
    this.start = 0 // sample at which playing started
    this.origin = 0 // when it started, by the context's clock
    this.next = 0 // sample to schedule next
    /** @type {GainNode | null} */
    this.gain = null
    this.repeats = false
    /** @type {AudioBufferSourceNode | null} what repeats the sound, scheduled or playing */
    this.round = null
    setInterval(() => this.fill(), 100)
  }

  /**
   * An audio context at the sound's own rate: at another one, each piece would be resampled alone, with clicks between
   * them. Phones allow contexts to start only while a tap is handled, so they are kept.
   *
   * @param {number} sampleRate
   */
  unlock(sampleRate) {
    const rate = Math.max(8_000, Math.min(sampleRate, 96_000)) // all browsers support this range
    const context = this.contexts.get(rate) ?? new AudioContext({ sampleRate: rate, latencyHint: 'playback' })
    this.contexts.set(rate, context)
    if (context.state !== 'running') context.resume()
    return context
  }

  /** Where the player is, in seconds. */
  get position() {
    if (!this.sound) return 0
    return this._sample() / this.sound.sampleRate
  }

  _sample() {
    const { context, sound, state } = this
    if (!context || !sound || state !== 'playing') return this.start
    const at = this.start + Math.max(0, context.currentTime - this.origin) * sound.sampleRate
    return this.round ? at % sound.filled : Math.min(at, sound.filled)
  }

  /**
   * @param {Playable} sound
   * @param {number} [seconds] where to start; default: where it was paused
   */
  play(sound, seconds = sound === this.sound ? this.position : 0) {
    this._silence()
    this.context = this.unlock(sound.sampleRate)
    this.sound = sound
    const at = Math.floor(seconds * sound.sampleRate)
    this.start = at >= sound.filled && sound.complete ? 0 : Math.max(0, Math.min(at, sound.filled))
    this._set('waiting')
    this.fill()
  }

  pause() {
    this.start = this._sample()
    this._silence()
    this._set('paused')
  }

  /**
   * @param {Playable} sound
   * @param {number} seconds
   */
  seek(sound, seconds) {
    if (this.state !== 'paused') return this.play(sound, seconds)
    this.sound = sound
    this.start = Math.max(0, Math.min(Math.floor(seconds * sound.sampleRate), sound.filled))
    this._set('paused')
  }

  /** Whether sounds that can be repeated are. @param {boolean} on */
  repeat(on) {
    this.repeats = on
    if (!on && this.round && this.sound) this.play(this.sound, this.position)
    else this.fill()
  }

  /** How many seconds of audio are missing before playing goes on; 0: none. */
  get lacking() {
    const { sound } = this
    if (!sound || sound.complete) return 0
    const [ready, left] = [sound.filled - this.start, sound.samples[0].length - this.start].map(
      (n) => n / sound.sampleRate,
    )
    // To play to the end without waiting again, left * (1 - speed) seconds must be ready before playing starts.
    const needed = Math.min(LONGEST_WAIT, left, Math.max(0.3, left * (1 - sound.speed)))
    return Math.max(0, needed - ready)
  }

  /** Schedule the next pieces; called again and again while playing. */
  fill() {
    const { sound, context } = this
    if (!sound || !context || this.state === 'paused') return
    if (this.state === 'waiting') {
      if (this.lacking > 0) return
      if (this.start >= sound.filled) return this._end()
      this._begin(context, sound.sampleRate)
    }
    const position = this._sample()
    if (position >= sound.filled) return sound.complete ? this._end() : this._wait()
    while (this.next < Math.min(sound.filled, position + AHEAD * sound.sampleRate)) this._schedule(context, sound)
    if (this.repeats && sound.closed && !this.round && this.next === sound.filled) this._repeat(context, sound.closed)
  }

  /**
   * @param {AudioContext} context
   * @param {number} sampleRate
   */
  _begin(context, sampleRate) {
    this.origin = Math.ceil((context.currentTime + 0.05) * sampleRate) / sampleRate // at an exact sample
    this.next = this.start
    this.gain = context.createGain()
    this.gain.gain.setValueAtTime(0, this.origin)
    this.gain.gain.linearRampToValueAtTime(1, this.origin + FADE)
    this.gain.connect(context.destination)
    this._set('playing')
  }

  /**
   * @param {AudioContext} context
   * @param {Playable} sound
   */
  _schedule(context, sound) {
    const end = Math.min(sound.filled, this.next + Math.round(PIECE * sound.sampleRate))
    const piece = sound.samples.map((channel) => channel.slice(this.next, end))
    this._node(context, piece, sound.sampleRate).start(this._when(sound))
    this.next = end
  }

  /**
   * Repeat a sound after what is scheduled, its end.
   *
   * @param {AudioContext} context
   * @param {Float32Array[]} closed
   */
  _repeat(context, closed) {
    const sound = /** @type {Playable} */ (this.sound)
    this.round = this._node(context, closed, sound.sampleRate)
    this.round.loop = true
    this.round.start(this._when(sound))
  }

  /** When the next sample is to be played, by the context's clock. @param {Playable} sound */
  _when({ sampleRate }) {
    return this.origin + (this.next - this.start) / sampleRate
  }

  /**
   * @param {AudioContext} context
   * @param {Float32Array[]} channels
   * @param {number} sampleRate
   */
  _node(context, channels, sampleRate) {
    const node = context.createBufferSource()
    node.buffer = context.createBuffer(channels.length, channels[0].length, sampleRate)
    channels.forEach((channel, c) => node.buffer?.copyToChannel(/** @type {any} */ (channel), c))
    node.connect(/** @type {GainNode} */ (this.gain))
    return node
  }

  /** Wait for more samples. */
  _wait() {
    this.start = this._sample()
    this._silence()
    this._set('waiting')
  }

  _end() {
    this._silence()
    this.start = 0
    this._set('paused')
  }

  /** Fade out and drop what is scheduled. */
  _silence() {
    const { gain, round, context } = this
    this.gain = this.round = null
    if (!gain || !context) return
    gain.gain.cancelScheduledValues(context.currentTime)
    gain.gain.setTargetAtTime(0, context.currentTime, FADE / 3)
    round?.stop(context.currentTime + 0.2)
    setTimeout(() => gain.disconnect(), 200)
  }

  /** @param {State} state */
  _set(state) {
    this.state = state
    this.dispatchEvent(new Event('state'))
  }
}
