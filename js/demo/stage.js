/** What is heard and seen: the loop or a take, its waveform, and the list of takes. */

import { encodeWav } from '../src/audio.js'
import { $, calm } from './page.js'
import { Player } from './player.js'
import { aboutTake, clock, pace, TakeList } from './takes.js'
import { drawWaveform } from './waveform.js'

/**
 * @typedef {import('./takes.js').Take} Take
 * @typedef {import('./takes.js').Slot} Slot
 * @typedef {import('./player.js').Sounding} Sounding
 * @typedef {Sounding & { name: string, part: () => { from: number, to: number } }} LoopSound part: what is continued
 */

export const player = new Player()
/** @type {Take[]} */
export const takes = []
/** @type {LoopSound | Take | null} what the waveform shows */
let shown = null
/** @type {LoopSound | null} */
let loop = null
/** @type {Record<Slot, Take | null>} */
const slots = { A: null, B: null }
const list = new TakeList($('list'), { play: toggle, assign, download, remove })

/** @param {Sounding} sound @returns {sound is Take} */
const isTake = (sound) => 'seed' in sound

/** @param {LoopSound} sound */
export function showLoop(sound) {
  loop = sound
  if (player.state !== 'paused') player.pause()
  show(sound)
}

/** A take that begins: it is heard at once where no other one is. @param {Take} made */
export function addTake(made) {
  takes.push(made)
  list.add(made)
  assign(made, slots.A ? 'B' : 'A')
  $('no-takes').hidden = true
  if (player.state === 'paused' || player.sound === null || !isTake(player.sound)) {
    show(made)
    player.play(made, 0)
  }
}

/** @param {Take} made more of it is there */
export function changed(made) {
  if (made === shown) draw()
  player.fill()
  refresh()
}

/** No more of it will come: where it was stopped, what there is of it is a take if anything new can be heard. @param {Take} made */
export function finish(made) {
  made.samples = made.samples.map((channel) => channel.slice(0, made.filled))
  made.complete = true
  if (made.filled > made.seam) changed(made)
  else remove(made)
}

/** @param {LoopSound | Take} sound */
function show(sound) {
  shown = sound
  $('to-seam').hidden = $('download').hidden = $('seam').hidden = !isTake(sound)
  if (isTake(sound)) showNumbers(sound)
  draw()
  refresh()
}

let drawing = 0

/** Draw the waveform, once for all that asks for it in a frame. */
export function draw() {
  cancelAnimationFrame(drawing)
  drawing = requestAnimationFrame(() => {
    if (!shown || $('player').hidden) return
    const { samples, filled } = shown
    const bright = isTake(shown) ? { from: shown.seam, to: Infinity } : shown.part()
    drawWaveform(/** @type {HTMLCanvasElement} */ ($('canvas')), { samples, filled, ...bright })
    if (isTake(shown)) $('seam').style.left = `${(100 * shown.seam) / samples[0].length}%`
  })
}

/** @param {Take} made */
function showNumbers(made) {
  $('n-column').textContent = made.ms ? `${made.ms < 10 ? made.ms.toFixed(1) : Math.round(made.ms)} ms` : '–'
  $('n-speed').textContent = made.realTime ? pace(made.realTime) : '–'
}

/** @param {Take} made its numbers are newer */
export function measured(made) {
  if (made === shown) showNumbers(made)
}

/** Everything but the waveform. */
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

/** @param {Sounding} sound */
function waitingText({ speed, filled }) {
  if (!filled || !speed) return 'Waiting for the first sound'
  const seconds = Math.ceil(player.lacking / speed)
  return `Waiting for more sound (${pace(speed)} real time), about ${Math.max(1, seconds)} s`
}

/** The playhead. */
function tick() {
  if (!shown) return
  const { sampleRate, samples, filled, complete } = shown
  const [total, there] = [samples[0].length / sampleRate, filled / sampleRate]
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
    `${clock(at)} of ${clock(total)}${complete ? '' : `, ${clock(there)} are there`}`,
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
  // Another take goes on where the last one was, to be compared; the loop has times of its own.
  const comparing = player.sound && player.state !== 'paused' && isTake(player.sound) && isTake(sound)
  const at = comparing ? player.position : sound === player.sound ? undefined : 0
  if (sound !== shown) show(sound)
  player.play(sound, at)
}

function swap() {
  const other = shown === slots.A ? slots.B : slots.A
  if (!other) return
  const at = player.sound && isTake(player.sound) ? player.position : 0
  show(other)
  player.seek(other, at)
}

/** @param {Take} take @param {Slot} slot */
function assign(take, slot) {
  const other = slot === 'A' ? 'B' : 'A'
  if (slots[other] === take) slots[other] = slots[slot] // they change places
  slots[slot] = take
  refresh()
}

/** @param {number} seconds */
function seek(seconds) {
  if (!shown) return
  player.seek(shown, Math.max(0, Math.min(seconds, shown.filled / shown.sampleRate)))
  refresh()
}

/** @param {Take} made */
function download(made) {
  const file = encodeWav(
    made.samples.map((channel) => channel.subarray(0, made.filled)),
    made.sampleRate,
  )
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([file], { type: 'audio/wav' }))
  link.download = `${made.loop.replace(/\.\w+$/, '') || 'loop'} seed ${made.seed}.wav`
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

/** @param {Take} made */
function remove(made) {
  if (player.sound === made) player.pause()
  takes.splice(takes.indexOf(made), 1)
  list.remove(made)
  for (const slot of /** @type {Slot[]} */ (['A', 'B'])) if (slots[slot] === made) slots[slot] = null
  $('no-takes').hidden = takes.length > 0
  const left = takes.at(-1) ?? loop
  if (shown === made && left) show(left)
  else refresh()
}

export function listenToStage() {
  $('play').addEventListener('click', () => shown && toggle(shown))
  $('to-seam').addEventListener('click', () => {
    if (!shown || !isTake(shown)) return
    player.play(shown, Math.max(0, shown.seam / shown.sampleRate - 1)) // one second before, to hear it come
    refresh()
  })
  $('ab').addEventListener('click', swap)
  $('download').addEventListener('click', () => shown && isTake(shown) && download(shown))
  player.addEventListener('state', refresh)
  listenToWave()
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const typing = /** @type {HTMLElement} */ (event.target).matches('input, select, textarea')
    if (event.key.toLowerCase() === 'x' && !typing) swap()
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
