/**
 * Takes are heard while they are generated.
 *
 * Their sound is cut into pieces that are scheduled ahead, on the samples of a clock that runs at their own rate: no gap,
 * no click. Where sound runs out the clock stops, until there is enough to go on with.
 *
 *     sound      [========================......]      = there, . not yet
 *     scheduled  [ piece | piece | piece ]              AHEAD of what is heard
 *     heard      [=========]
 */

const AHEAD = 1.5 // seconds: timers of a page in the background come once a second
const PIECE = 0.5 // seconds
const FADE = 0.012 // seconds, where it starts or ends between pieces
const LONGEST_WAIT = 4 // seconds of sound that are waited for, where all of it would be too long

/**
 * @typedef {object} Sounding what can be played: a take, or the loop itself
 * @property {Float32Array[]} samples one array a channel, room for all of it
 * @property {number} filled samples that are there
 * @property {boolean} complete no more will come
 * @property {number} sampleRate
 * @property {number} speed seconds of sound that come in a second; Infinity where all is there
 *
 * @typedef {'paused' | 'playing' | 'waiting'} State waiting: for sound that is still being generated
 */

/** Plays one sound at a time. Dispatches "state" when what it does has changed. */
export class Player extends EventTarget {
  constructor() {
    super()
    /** @type {Map<number, AudioContext>} */
    this.contexts = new Map()
    /** @type {AudioContext | null} */
    this.context = null
    /** @type {Sounding | null} */
    this.sound = null
    /** @type {State} */
    this.state = 'paused'
    this.start = 0 // the sample that was heard first since it plays
    this.origin = 0 // when, by the context's clock
    this.next = 0 // the sample that is scheduled next
    /** @type {GainNode | null} */
    this.gain = null
    setInterval(() => this.fill(), 100)
  }

  /**
   * A context at the sound's own rate, or pieces would be resampled one by one, with clicks between. Phones want it to
   * be made in a tap: it is kept.
   *
   * @param {number} sampleRate
   */
  unlock(sampleRate) {
    const rate = Math.max(8_000, Math.min(sampleRate, 96_000)) // what every browser has
    const context = this.contexts.get(rate) ?? new AudioContext({ sampleRate: rate, latencyHint: 'playback' })
    this.contexts.set(rate, context)
    if (context.state !== 'running') context.resume()
    return context
  }

  /** Seconds. */
  get position() {
    if (!this.sound) return 0
    return this._sample() / this.sound.sampleRate
  }

  _sample() {
    const { context, sound, state } = this
    if (!context || !sound || state !== 'playing') return this.start
    const since = Math.max(0, context.currentTime - this.origin) * sound.sampleRate
    return Math.min(this.start + since, sound.filled)
  }

  /**
   * @param {Sounding} sound
   * @param {number} [seconds] where from; where it stood, if not given
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
   * @param {Sounding} sound
   * @param {number} seconds
   */
  seek(sound, seconds) {
    if (this.state !== 'paused') return this.play(sound, seconds)
    this.sound = sound
    this.start = Math.max(0, Math.min(Math.floor(seconds * sound.sampleRate), sound.filled))
    this._set('paused')
  }

  /** Seconds of sound that are still to come before it goes on; 0 where it can. */
  get lacking() {
    const { sound } = this
    if (!sound || sound.complete) return 0
    const [there, left] = [sound.filled - this.start, sound.samples[0].length - this.start].map(
      (n) => n / sound.sampleRate,
    )
    // Generated slower than it is heard, all that is left takes left / speed seconds: so much must be there before.
    const needed = Math.min(LONGEST_WAIT, left, Math.max(0.3, left * (1 - sound.speed)))
    return Math.max(0, needed - there)
  }

  /** Schedule what is there; called whenever there may be more. */
  fill() {
    const { sound, context } = this
    if (!sound || !context || this.state === 'paused') return
    if (this.state === 'waiting') {
      if (this.lacking > 0) return
      if (this.start >= sound.filled) return this._end()
      this._begin(context, sound.sampleRate)
    }
    const heard = this._sample()
    if (heard >= sound.filled) return sound.complete ? this._end() : this._wait()
    while (this.next < Math.min(sound.filled, heard + AHEAD * sound.sampleRate)) this._schedule(context, sound)
  }

  /**
   * @param {AudioContext} context
   * @param {number} sampleRate
   */
  _begin(context, sampleRate) {
    this.origin = Math.ceil((context.currentTime + 0.05) * sampleRate) / sampleRate // on a sample
    this.next = this.start
    this.gain = context.createGain()
    this.gain.gain.setValueAtTime(0, this.origin)
    this.gain.gain.linearRampToValueAtTime(1, this.origin + FADE)
    this.gain.connect(context.destination)
    this._set('playing')
  }

  /**
   * @param {AudioContext} context
   * @param {Sounding} sound
   */
  _schedule(context, sound) {
    const end = Math.min(sound.filled, this.next + Math.round(PIECE * sound.sampleRate))
    const piece = context.createBuffer(sound.samples.length, end - this.next, sound.sampleRate)
    sound.samples.forEach((channel, c) => piece.copyToChannel(channel.slice(this.next, end), c))
    const node = context.createBufferSource()
    node.buffer = piece
    node.connect(/** @type {GainNode} */ (this.gain))
    node.start(this.origin + (this.next - this.start) / sound.sampleRate)
    this.next = end
  }

  /** Sound ran out. */
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

  /** End what is scheduled, faded. */
  _silence() {
    const { gain, context } = this
    this.gain = null
    if (!gain || !context) return
    gain.gain.cancelScheduledValues(context.currentTime)
    gain.gain.setTargetAtTime(0, context.currentTime, FADE / 3)
    setTimeout(() => gain.disconnect(), 200)
  }

  /** @param {State} state */
  _set(state) {
    this.state = state
    this.dispatchEvent(new Event('state'))
  }
}
