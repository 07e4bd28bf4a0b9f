/** Plays and draws the loop or a take, and manages the list of takes. */

import { resample } from '../src/audio.js'
import { encodeWav } from '../src/wav.js'
import { Lanes } from './lanes.js'
import { $, calm } from './page.js'
import { Player } from './player.js'
import { aboutTake, clock, pace, TakeList } from './takes.js'
import { drawWaveform } from './waveform.js'

/**
 * @typedef {import('./takes.js').Take} Take
 * @typedef {import('./takes.js').Slot} Slot
 * @typedef {import('./player.js').Playable} Playable
 * @typedef {Playable & { name: string, part: () => { from: number, to: number } }} LoopSound part: the samples that are continued
 */

export const player = new Player()
/** @type {Take[]} */
export const takes = []
/** @type {LoopSound | Take | null} whose waveform is drawn */
let shown = null
/** @type {LoopSound | null} */
let loop = null
/** @type {Record<Slot, Take | null>} */
const slots = { A: null, B: null }
const list = new TakeList($('list'), { play: toggle, assign, download, remove })
const lanes = new Lanes($('lanes'), (take, part) => goTo(take, part === null ? null : part * shownSeconds()))

/** @param {Playable} sound @returns {sound is Take} */
const isTake = (sound) => 'seed' in sound

/** @param {LoopSound} sound */
export function showLoop(sound) {
  loop = sound
  if (player.state !== 'paused') player.pause()
  show(sound)
}

/** Add a take. It is played at once, unless another take is playing. @param {Take} take */
export function addTake(take) {
  takes.push(take)
  list.add(take)
  lanes.add(take)
  assign(take, slots.A ? 'B' : 'A')
  $('no-takes').hidden = true
  if (player.state === 'paused' || player.sound === null || !isTake(player.sound)) {
    show(take)
    player.play(take, 0)
  }
}

/** A take has more samples. @param {Take} take */
export function changed(take) {
  draw()
  player.fill()
  refresh()
}

/** A take is complete or was stopped. It stays in the list if it has any generated samples. @param {Take} take */
export function finish(take) {
  take.samples = take.samples.map((channel) => channel.slice(0, take.filled))
  take.complete = true
  if (take.filled > take.seam) changed(take)
  else remove(take)
}

/** @param {LoopSound | Take} sound */
function show(sound) {
  shown = sound
  $('to-seam').hidden = $('download').hidden = $('seam').hidden = !isTake(sound)
  $('repeat').hidden = !(isTake(sound) && sound.bars)
  if (isTake(sound)) showNumbers(sound)
  draw()
  refresh()
}

let drawing = 0

/** Draw the waveform with the next frame; several calls before it draw once. */
export function draw() {
  cancelAnimationFrame(drawing)
  drawing = requestAnimationFrame(() => {
    if (!shown || $('player').hidden) return
    const { samples, filled } = shown
    const bright = isTake(shown) ? { from: shown.seam, to: Infinity } : shown.part()
    drawWaveform(/** @type {HTMLCanvasElement} */ ($('canvas')), { samples, filled, ...bright })
    if (isTake(shown)) $('seam').style.left = `${(100 * shown.seam) / samples[0].length}%`
    lanes.draw(isTake(shown) ? shown : null)
  })
}

/** How long the time axis is. */
const shownSeconds = () => (shown ? shown.samples[0].length / shown.sampleRate : 0)

/** @param {Take} take */
function showNumbers(take) {
  $('n-column').textContent = take.ms ? `${take.ms < 10 ? take.ms.toFixed(1) : Math.round(take.ms)} ms` : '–'
  $('n-speed').textContent = take.realTime ? pace(take.realTime) : '–'
}

/** A take's numbers have changed. @param {Take} take */
export function measured(take) {
  if (take === shown) showNumbers(take)
}

/** Update everything but the waveform. */
function refresh() {
  if (!shown) return
  const playing = player.state !== 'paused' && player.sound === shown
  const waiting = playing && player.state === 'waiting'
  $('sound-name').textContent = isTake(shown) ? `Take ${shown.number}, seed ${shown.seed}` : shown.name
  $('sound-about').textContent = isTake(shown)
    ? aboutTake(shown)
    : `${(shown.filled / shown.sampleRate).toFixed(1)} s, ${shown.sampleRate / 1000} kHz: the coloured part is continued`
  $('player').classList.toggle('playing', playing)
  $('play').setAttribute('aria-label', playing ? 'Pause' : 'Play')
  $('buffering').hidden = !waiting
  if (waiting) $('buffering').textContent = waitingText(shown)
  $('ab').hidden = !(slots.A && slots.B)
  $('ab-a').toggleAttribute('data-on', shown === slots.A)
  $('ab-b').toggleAttribute('data-on', shown === slots.B)
  $('ab').setAttribute(
    'aria-label',
    `Compare A and B: now ${shown === slots.A ? 'A' : shown === slots.B ? 'B' : 'neither'}`,
  )
  list.update(shown, playing, slots)
  tick()
}

/** @param {Playable} sound */
function waitingText({ speed, filled }) {
  if (!filled || !speed) return 'Waiting for the first sound'
  const seconds = Math.ceil(player.lacking / speed)
  return `Waiting for more sound (${pace(speed)} real time), about ${Math.max(1, seconds)} s`
}

/** Move the playhead. */
function tick() {
  if (!shown) return
  const { sampleRate, samples, filled, complete } = shown
  const [total, ready] = [samples[0].length / sampleRate, filled / sampleRate]
  const at = player.sound === shown ? player.position : 0
  $('head').style.left = `${(100 * at) / total}%`
  if (
    $('wave').getAttribute('aria-valuenow') === at.toFixed(1) &&
    $('wave').getAttribute('aria-valuemax') === total.toFixed(1)
  )
    return
  $('time').textContent = `${clock(at)} / ${clock(total)}`
  $('wave').setAttribute('aria-valuemax', total.toFixed(1))
  $('wave').setAttribute('aria-valuenow', at.toFixed(1))
  $('wave').setAttribute(
    'aria-valuetext',
    `${clock(at)} of ${clock(total)}${complete ? '' : `, ${clock(ready)} generated`}`,
  )
}

function follow() {
  if (player.state !== 'paused') tick()
  if (player.state === 'waiting') refresh()
  if (calm.matches) setTimeout(follow, 250)
  else requestAnimationFrame(follow)
}

/** @param {LoopSound | Take} sound */
function toggle(sound) {
  if (sound === player.sound && player.state !== 'paused') return player.pause()
  // To compare takes, another one goes on at the same position. The loop is not in step with them.
  const comparing = player.sound && player.state !== 'paused' && isTake(player.sound) && isTake(sound)
  const at = comparing ? player.position : sound === player.sound ? undefined : 0
  if (sound !== shown) show(sound)
  player.play(sound, at)
}

function swap() {
  const other = shown === slots.A ? slots.B : slots.A
  if (other) goTo(other, null)
}

/** Show a take. @param {Take} take @param {number | null} seconds where; null: where the player is in another take */
function goTo(take, seconds) {
  const at = seconds ?? (player.sound && isTake(player.sound) ? player.position : 0)
  if (take !== shown) show(take)
  seek(at)
}

function repeat() {
  if ($('repeat').hidden) return
  player.repeat(!player.repeats)
  $('repeat').setAttribute('aria-pressed', String(player.repeats))
}

/** @param {Take} take @param {Slot} slot */
function assign(take, slot) {
  const other = slot === 'A' ? 'B' : 'A'
  if (slots[other] === take) slots[other] = slots[slot] // swap them
  slots[slot] = take
  refresh()
}

/** @param {number} seconds */
function seek(seconds) {
  if (!shown) return
  player.seek(shown, Math.max(0, Math.min(seconds, shown.filled / shown.sampleRate)))
  refresh()
}

/** @param {Take} take */
function download(take) {
  const { bars, filled, samples, sampleRate, state } = take
  const file =
    bars && state === 'done' // so that it is as long as the loop's own bars
      ? encodeWav(
          samples.map((channel) =>
            resample(channel, sampleRate, bars.sampleRate, { length: bars.samples, exact: true }),
          ),
          bars.sampleRate,
        )
      : encodeWav(
          samples.map((channel) => channel.subarray(0, filled)),
          sampleRate,
        )
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([file], { type: 'audio/wav' }))
  link.download = `${take.loop.replace(/\.\w+$/, '') || 'loop'} seed ${take.seed}.wav`
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

/** @param {Take} take */
function remove(take) {
  if (player.sound === take) player.pause()
  takes.splice(takes.indexOf(take), 1)
  list.remove(take)
  lanes.remove(take)
  for (const slot of /** @type {Slot[]} */ (['A', 'B'])) if (slots[slot] === take) slots[slot] = null
  $('no-takes').hidden = takes.length > 0
  const left = takes.at(-1) ?? loop
  if (shown === take && left) return show(left)
  draw()
  refresh()
}

export function listenToStage() {
  $('play').addEventListener('click', () => shown && toggle(shown))
  $('to-seam').addEventListener('click', () => {
    if (!shown || !isTake(shown)) return
    player.play(shown, Math.max(0, shown.seam / shown.sampleRate - 1)) // begin one second before it
    refresh()
  })
  $('ab').addEventListener('click', swap)
  $('repeat').addEventListener('click', repeat)
  $('download').addEventListener('click', () => shown && isTake(shown) && download(shown))
  player.addEventListener('state', refresh)
  listenToWave()
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const typing = /** @type {HTMLElement} */ (event.target).matches('input, select, textarea')
    if (event.key.toLowerCase() === 'x' && !typing) swap()
    if (event.key.toLowerCase() === 'l' && !typing) repeat()
    if (event.key !== ' ' || event.target !== document.body || !shown) return
    event.preventDefault()
    toggle(shown)
  })
  new ResizeObserver(draw).observe($('wave'))
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw)
  follow()
}

function listenToWave() {
  $('wave').addEventListener('click', ({ clientX }) => {
    const { left, width } = $('wave').getBoundingClientRect()
    if (shown) seek(((clientX - left) / width) * (shown.samples[0].length / shown.sampleRate))
  })
  $('wave').addEventListener('keydown', (event) => {
    if (!shown) return
    const [end, at] = [shown.filled / shown.sampleRate, player.sound === shown ? player.position : 0]
    const places = /** @type {Record<string, number>} */ ({
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowDown: at - 1,
      ArrowUp: at + 1,
      PageDown: at - 5,
      PageUp: at + 5,
      Home: 0,
      End: end,
    })
    if (event.key === ' ') toggle(shown)
    else if (event.key in places) seek(places[event.key])
    else return
    event.preventDefault()
  })
}
