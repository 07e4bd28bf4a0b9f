/** The form: how much of the loop is continued, and to which length, in seconds or in bars. */

import { MusicalTime } from '../src/musical_time.js'
import { field, say, select } from './page.js'
import { promptOf } from './sound.js'

/**
 * @typedef {import('./sound.js').Loop} Loop
 * @typedef {[string, (value: number) => boolean, string]} Rule the field, what holds for it, and what to say otherwise
 */

const BEATS = 4 // of a bar
const LONGEST = 300 // seconds

/** The part of a loop that is continued; an empty one where it has fewer bars. @param {Loop} sound */
export function part(sound) {
  const side = select('side').value === 'start' ? 'start' : 'end'
  if (!inBars()) return promptOf(sound, numberIn('prompt') || 0, side === 'start')
  try {
    const time = new MusicalTime({ bpm: numberIn('bpm'), promptBars: numberIn('prompt-bars'), beatsPerBar: BEATS })
    const { start, end } = time.prompt(sound.audio[0].length, sound.sampleRate, side)
    return { from: start, to: end }
  } catch {
    return { from: 0, to: 0 } // the form says why when it is sent
  }
}

/** @param {string} id of a field */
const numberIn = (id) => field(id).valueAsNumber

/** Whether lengths are in bars: with a tempo. */
const inBars = () => field('bpm').value !== ''

/** The tempo, or the slowest one where it is none. */
function tempo() {
  const bpm = numberIn('bpm')
  return new MusicalTime({ bpm: bpm >= 20 && bpm <= 500 ? bpm : 20, beatsPerBar: BEATS })
}

/** Show the fields for seconds or for bars, with as many bars as fit into the seconds. @param {Loop | null} loop */
export function showLengths(loop) {
  for (const each of document.querySelectorAll('[data-length]')) {
    const element = /** @type {HTMLElement} */ (each)
    element.hidden = (element.dataset.length === 'bars') !== inBars()
  }
  if (inBars()) {
    const time = tempo()
    const most = loop ? time.wholeBars(loop.audio[0].length, loop.sampleRate) * time.bar : Infinity
    const { promptBars, bars } = time.resolved(Math.min(numberIn('prompt') || 1, most), numberIn('duration') || 1)
    field('prompt-bars').value = String(promptBars)
    field('bars').value = String(bars)
  }
}

/** @type {Rule[]} */
const RULES_OF_SECONDS = [
  ['duration', (n) => n > 0 && n <= LONGEST, `Total length: more than 0 and up to ${LONGEST} seconds.`],
  ['prompt', (n) => n > 0, 'Length of the loop to continue: more than 0 seconds.'],
]

/** @param {Loop} sound @returns {Rule[]} */
function rulesOfBars({ audio, sampleRate }) {
  const time = tempo()
  const [most, longest] = [time.wholeBars(audio[0].length, sampleRate), Math.floor(LONGEST / time.bar)]
  const between = (/** @type {number} */ n, /** @type {number} */ low, /** @type {number} */ high) =>
    Number.isInteger(n) && n >= low && n <= high
  const few = most
    ? `Loop to continue: 1 to ${most} bars, as many whole bars as it has.`
    : `The loop has no whole bar of ${time.bar.toFixed(1)} s: give a faster tempo, or none.`
  return [
    ['bpm', (n) => n >= 20 && n <= 500, 'Tempo: 20 to 500 beats a minute, or none.'],
    ['prompt-bars', (n) => between(n, 1, most), few],
    [
      'bars',
      (n) => between(n, numberIn('prompt-bars') + 1, longest),
      `Total length: more than the bars to continue, and up to ${longest} bars.`,
    ],
  ]
}

/** The request that the form describes; null where a field is wrong, after saying which. @param {Loop} loop */
export function request(loop) {
  /** @type {Rule[]} */
  const rules = [
    ...(inBars() ? rulesOfBars(loop) : RULES_OF_SECONDS),
    ['seed', (n) => Number.isSafeInteger(n) && n >= 0, 'Seed: a whole number, 0 or more.'],
    ['temperature', (n) => n >= 0, 'Temperature: 0 or more.'],
    ['topk', (n) => Number.isSafeInteger(n) && n >= 0, 'Top-k: a whole number, 0 for all.'],
    ['cfg', (n) => Number.isFinite(n), 'Guidance: a number, 1 for none.'],
  ]
  const wrong = rules.filter(([id, holds]) => {
    const ok = field(id).value !== '' && holds(field(id).valueAsNumber)
    field(id).setAttribute('aria-invalid', String(!ok))
    return !ok
  })
  const { audio, sampleRate } = loop
  const { from, to } = part(loop)
  const duration = numberIn('duration')
  if (!wrong.length && !inBars() && (to - from) / sampleRate >= duration) {
    field('duration').setAttribute('aria-invalid', 'true')
    wrong.push([
      'duration',
      () => false,
      `Total length: more than the ${((to - from) / sampleRate).toFixed(1)} s of the loop that it begins with.`,
    ])
  }
  if (wrong.length) {
    say(wrong.map(([, , text]) => text).join(' '))
    field(wrong[0][0]).focus()
    return null
  }
  const time = inBars() ? tempo() : null
  const [promptBars, bars] = [numberIn('prompt-bars'), numberIn('bars')]
  // a beat more than the bars, which closes the loop; the codec's first frame has what comes before the prompt
  const beats = { bpm: numberIn('bpm'), beatsPerBar: 1, promptBars: promptBars * BEATS, bars: bars * BEATS + 1 }
  return {
    time: time && new MusicalTime({ ...time, promptBars, bars }),
    prompt: audio.map((channel) => channel.slice(time ? 0 : from, to)),
    sampleRate,
    options: {
      description: field('text').disabled ? null : field('text').value || null,
      ...(time ? { musicalTime: beats } : { duration }),
      seed: numberIn('seed'),
      temperature: numberIn('temperature'),
      topK: numberIn('topk'),
      cfgCoef: numberIn('cfg'),
      chunkSeconds: 0.5,
    },
  }
}
