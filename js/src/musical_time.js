/**
 * Bars and beats: which part of a track is the prompt, and where the result ends, to the sample.
 *
 *     track    |offset|---- bar 0 ----|---- bar 1 ----|---- bar 2 ----|--- a part of a bar
 *                                     |<- prompt: 2 bars, up to the last line ->|<- new bars ->|
 *
 * @typedef {object} Grid a track's bars, and how many of them are used
 * @property {number} bpm beats a minute
 * @property {number | null} [promptBars] whole bars to continue from; default: as many as fit into the prompt
 * @property {number | null} [bars] of the result, the prompt's among them; default: as many as fit into the duration
 * @property {number} [beatsPerBar] default 4
 * @property {number} [offset] seconds from the beginning of the track to its first bar line; default 0
 */

import { MUSICAL_TIME, validateOptions } from './options.js'

const ROUNDING = 2 // samples that a track may be shorter than its bars: what is rounded once more when a track is rendered

/** A track's grid, and how many of its bars are used. Every number is that of Python's MusicalTime. */
export class MusicalTime {
  /** @param {Grid} grid or another MusicalTime */
  constructor(grid) {
    validateOptions('musicalTime', grid, MUSICAL_TIME)
    const { bpm, promptBars = null, bars = null, beatsPerBar = 4, offset = 0 } = grid
    MUSICAL_TIME.bpm('bpm', bpm, 0) // which has no default
    if (bars !== null && promptBars !== null && bars <= promptBars) {
      throw new RangeError(`bars: got ${bars}, expected more than the prompt's ${promptBars}, which are among them`)
    }
    this.bpm = bpm
    this.promptBars = promptBars
    this.bars = bars
    this.beatsPerBar = beatsPerBar
    this.offset = offset
    Object.freeze(this)
  }

  /** Seconds. */
  get beat() {
    return 60 / this.bpm
  }

  /** Seconds. */
  get bar() {
    return this.beat * this.beatsPerBar
  }

  /**
   * With numbers for null: the whole bars in these seconds, one bar of prompt and one new bar at least.
   *
   * @param {number} promptSeconds
   * @param {number} duration seconds
   */
  resolved(promptSeconds, duration) {
    const most = this.bars === null ? Infinity : this.bars - 1
    const promptBars = this.promptBars ?? Math.trunc(Math.max(1, Math.min(promptSeconds / this.bar + 1e-9, most)))
    const bars = this.bars ?? Math.max(promptBars + 1, Math.trunc(duration / this.bar + 1e-9))
    return new MusicalTime({ ...this, promptBars, bars })
  }

  /**
   * The sample at which a bar begins, the first one at 0.
   *
   * @param {number} bar
   * @param {number} rate samples a second
   */
  line(bar, rate) {
    return roundToEven((this.offset + bar * this.bar) * rate)
  }

  /**
   * Samples of so many bars: a loop of them goes round in a sequencer of this tempo.
   *
   * @param {number} bars
   * @param {number} rate
   */
  length(bars, rate) {
    return roundToEven(bars * this.bar * rate)
  }

  /**
   * How many whole bars a track has.
   *
   * @param {number} samples
   * @param {number} rate
   */
  wholeBars(samples, rate) {
    let whole = Math.ceil((samples + ROUNDING - this.offset * rate) / (this.bar * rate))
    while (this.line(whole, rate) > samples + ROUNDING) whole--
    return Math.max(0, whole)
  }

  /**
   * The prompt of a track that has so many samples: its first sample, and the one after its last. Throws a RangeError for
   * a track that is too short.
   *
   * @param {number} samples
   * @param {number} rate
   * @param {'end' | 'start'} [from] up to the last bar line of the track, or from its first
   * @returns {{ start: number, end: number }}
   */
  prompt(samples, rate, from = 'end') {
    const { promptBars, bar, offset } = this
    if (promptBars === null) throw new TypeError('promptBars: got null, expected a number of bars; resolved gives one')
    const whole = this.wholeBars(samples, rate)
    if (whole < promptBars) {
      throw new RangeError(
        `promptBars: got ${promptBars}, the track has ${whole} whole bars of ${bar.toFixed(3)} s from ${offset} s on; ` +
          'expected fewer, or another bpm or offset',
      )
    }
    const last = from === 'end' ? whole : promptBars
    return { start: this.line(last - promptBars, rate), end: Math.min(samples, this.line(last, rate)) }
  }
}

/**
 * @typedef {object} Frames of a generation in whole bars
 * @property {number} prompt frames of the prompt, which end on its last bar line
 * @property {number} all
 * @property {number} first samples before the first bar line, as the prompt's first frame begins before it
 * @property {number} length samples of the result
 */

/**
 * The codec's frames that hold so many bars, the first promptBars of which are given.
 *
 *     frames  |----|----|----|----|----|----|----|----|----|
 *     bars      |<-- promptBars -->|<-- new bars ->|
 *
 * @param {MusicalTime} time
 * @param {number} promptBars
 * @param {number} bars
 * @param {{ sampleRate: number, hop: number }} codec
 * @returns {Frames}
 */
export function framesOf(time, promptBars, bars, { sampleRate, hop }) {
  const [given, length] = [time.length(promptBars, sampleRate), time.length(bars, sampleRate)]
  const prompt = Math.ceil(given / hop)
  const first = prompt * hop - given
  return { prompt, all: Math.ceil((first + length) / hop), first, length }
}

/**
 * A duration that Math.trunc(duration * frameRate), audiocraft's arithmetic, takes for so many frames.
 *
 * @param {number} frames
 * @param {number} frameRate
 */
export function secondsOf(frames, frameRate) {
  let found = frames / frameRate
  while (Math.trunc(found * frameRate) < frames) found += found * (2 ** -53 + 2 ** -105) // the next float (Rump 2009)
  return found
}

/** To the nearest whole number; halves to the even one, as Python's round. @param {number} x */
function roundToEven(x) {
  const floor = Math.floor(x)
  const rest = x - floor
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor
}
