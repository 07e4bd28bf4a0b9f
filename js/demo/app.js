/**
 * The page: a loop, what continues it, and the takes that came of it.
 *
 * For tests and for the console, window.cleanLm has
 *     takes       every take that is kept: see Take in takes.js
 *     lastTake    the last complete one, its codes and samples among it
 *     player      what is heard
 */

import { encodeWav } from '../src/audio.js'
import { dropped, openFolder, openServed, served, sizeOf } from './bundles.js'
import { Engine } from './engine.js'
import { backendFor, explain, inspect, memoryNote, variantFor } from './machine.js'
import { Player } from './player.js'
import { promptOf, readSound, Recorder } from './sound.js'
import { aboutTake, clock, TakeList } from './takes.js'
import { drawWaveform } from './waveform.js'

/**
 * @typedef {import('./takes.js').Take} Take
 * @typedef {import('./takes.js').Slot} Slot
 * @typedef {import('./bundles.js').Bundle} Bundle
 * @typedef {import('./sound.js').Loop} Loop
 * @typedef {import('./worker.js').Loaded} Loaded
 */

const SMALL = 64e6 // bytes of a model that is loaded before anyone asks
const PATIENCE = 3000 // ms that a worker has to end what it does

/** @template {HTMLElement} [T=HTMLElement] @param {string} id @returns {T} */
const $ = (id) => /** @type {T} */ (document.getElementById(id))
/** @param {string} id */
const field = (id) => /** @type {HTMLInputElement} */ ($(id))
/** @param {string} id */
const select = (id) => /** @type {HTMLSelectElement} */ ($(id))
const url = new URLSearchParams(location.search)
const calm = matchMedia('(prefers-reduced-motion: reduce)')

const machine = await inspect()
const player = new Player()

/** @type {{ name: string, open: () => Promise<Bundle> }[]} what the list of models has */
const offers = []
/** @type {Bundle | null} */
let bundle = null
/** @type {{ engine: Engine, key: string, loaded: Promise<Loaded> } | null} */
let model = null
/** @type {Loop | null} */
let loop = null
/** @type {Take[]} */
const takes = []
/** @type {import('./player.js').Sounding | null} what the waveform shows: the loop or a take */
let shown = null
/** @type {Record<Slot, Take | null>} */
const slots = { A: null, B: null }
/** @type {Take | null} */
let lastTake = null
let number = 0
let busy = false
let stopped = false

const list = new TakeList($('list'), { play: toggle, assign, download, remove })
Object.defineProperty(window, 'cleanLm', {
  value: {
    takes,
    player,
    get lastTake() {
      return lastTake
    },
  },
})

// ---- what is said

/** @param {unknown} error */
function complain(error) {
  $('alert-text').textContent = explain(error)
  $('alert').hidden = false
}

/** @param {string} text */
const say = (text) => void ($('status').textContent = text)

const megabytes = (/** @type {number} */ bytes) =>
  bytes < 1e7 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.round(bytes / 1e6)} MB`

// ---- the model

/** Backend and variant, as they are chosen now. */
function choice() {
  const { backend, note } = backendFor(select('backend').value, machine)
  const threads = Number(url.get('threads')) || machine.threads
  const variant = bundle ? variantFor(bundle.tree, backend, machine, select('variant').value) : undefined
  return { backend, threads, variant, note }
}

function showChoice() {
  const { backend, threads, variant, note } = choice()
  const lacks = select('backend').value === 'webgpu' && !machine.gpu
  const size = bundle ? sizeOf(bundle.tree, variant) : 0
  $('note').textContent = [note, memoryNote(size, backend, machine)].filter(Boolean).join(' ')
  $('note').hidden = !$('note').textContent
  const name = backend === 'webgpu' ? 'WebGPU' : `WebAssembly, ${threads} thread${threads > 1 ? 's' : ''}`
  $('chip-backend').textContent = name
  $('n-backend').textContent = backend === 'webgpu' && machine.gpu?.name ? `${name}, ${machine.gpu.name}` : name
  $('n-size').textContent = bundle ? [variant, megabytes(size)].filter(Boolean).join(', ') : '–'
  if (lacks)
    complain(
      new Error('This browser has no WebGPU, or its graphics card is not supported. WebAssembly is used instead.'),
    )
  $('generate').toggleAttribute('disabled', !loop || !bundle || busy)
}

/** @param {Bundle} chosen */
function useBundle(chosen) {
  bundle = chosen
  const { tree } = chosen
  const names = Object.keys(tree.variants ?? {})
  const options = names.map((name) => new Option(`${name}, ${megabytes(sizeOf(tree, name))}`, name))
  select('variant').replaceChildren(new Option('Automatic', ''), ...options)
  select('variant').disabled = names.length < 2
  if (names.includes(url.get('variant') ?? '')) select('variant').value = url.get('variant') ?? ''
  const takesText = 'text_encoder' in tree.graphs
  field('text').disabled = !takesText
  $('text-hint').textContent = takesText
    ? 'Optional, for example “warm pads, slow house”.'
    : 'This model was exported without a text encoder: it takes no description.'
  field('duration').value = url.get('duration') ?? String(tree.defaults.duration)
  field('temperature').value = String(tree.defaults.temperature)
  field('topk').value = String(tree.defaults.top_k)
  field('cfg').value = String(tree.defaults.cfg_coef)
  modelChanged()
}

/** Load it now if it is small; a large one waits until it is asked for. */
function modelChanged() {
  model?.engine.close()
  model = null
  showChoice()
  if (bundle && sizeOf(bundle.tree, choice().variant) < SMALL) load().catch(complainUnlessStopped)
}

/** The model that is chosen, loaded once. */
function load() {
  if (!bundle) throw new Error('no bundle is open')
  const { backend, threads, variant } = choice()
  const { source, name } = bundle
  const key = [name, backend, threads, variant].join('|')
  if (model?.key === key && !model.engine.closed) return model.loaded
  const engine = new Engine()
  const loaded = engine.load({ source, backend, threads, variant, secure: machine.secure }, ({ done, total }) => {
    working(done / total, `Loading the model: ${megabytes(done)} of ${megabytes(total)}`)
  })
  model = { engine, key, loaded }
  working(0, 'Loading the model')
  return loaded.then(
    (result) => {
      working(null, '')
      say('The model is ready.')
      showOffline(result)
      return result
    },
    (error) => {
      working(null, '')
      if (model?.engine === engine) model = null
      engine.close()
      throw error
    },
  )
}

/** @param {Loaded} loaded */
function showOffline({ kept }) {
  const controlled = Boolean(navigator.serviceWorker?.controller)
  const text = !controlled
    ? ''
    : kept
      ? 'This page and this model are kept in the browser: both work without a network.'
      : typeof bundle?.source === 'string'
        ? 'This page is kept for use without a network; its model was too large to keep.'
        : 'This page is kept for use without a network; this model stays in its folder.'
  $('offline').textContent = text
  $('chip-offline').hidden = !(controlled && kept)
  $('chip-offline').textContent = 'Works offline'
  if (kept) navigator.storage?.persist?.()
}

/** @param {number | null} part @param {string} text */
function working(part, text) {
  $('working').hidden = part === null
  $('progress-text').textContent = text
  if (part !== null) field('progress').value = /** @type {any} */ (part)
}

// ---- the loop

/** @param {Loop} sound */
function useLoop(sound) {
  loop = sound
  const seconds = sound.audio[0].length / sound.sampleRate
  for (const id of ['drop', 'player', 'loop-fields']) $(id).hidden = id === 'drop'
  $('alert').hidden = true
  document.body.classList.add('has-loop')
  if (player.state !== 'paused') player.pause()
  show(loopSound())
  showChoice()
  say(`${sound.name}: ${seconds.toFixed(1)} s, ${sound.sampleRate} Hz.`)
}

/** The loop as it is played. */
function loopSound() {
  const { audio, sampleRate, name } = /** @type {Loop} */ (loop)
  return { samples: audio, filled: audio[0].length, complete: true, sampleRate, speed: Infinity, name }
}

/** @param {Promise<Loop>} reading */
async function take(reading) {
  try {
    useLoop(await reading)
  } catch (error) {
    complain(error)
  }
}

/** @type {Recorder | null} */
let recorder = null

async function record() {
  try {
    if (recorder) {
      const recording = recorder
      recorder = null
      await take(recording.stop())
    } else {
      recorder = await Recorder.start()
      say('Recording. Press again to end it.')
    }
  } catch (error) {
    complain(error)
  }
  showRecording()
}

function showRecording() {
  for (const button of document.querySelectorAll('[data-record]')) {
    button.classList.toggle('recording', Boolean(recorder))
    button.textContent = recorder ? `Stop recording, ${clock(recorder.seconds)}` : 'Record'
  }
  if (recorder) setTimeout(showRecording, 500)
}

// ---- generating

/** What the form says, or null, where it is said what is wrong. */
function request() {
  /** @type {[string, (value: number) => boolean, string][]} */
  const rules = [
    ['duration', (n) => n > 0 && n <= 300, 'Seconds in all: more than 0, up to 300.'],
    ['prompt', (n) => n > 0, 'Of the loop: more than 0 seconds.'],
    ['seed', (n) => Number.isSafeInteger(n) && n >= 0, 'Seed: a whole number from 0 up.'],
    ['temperature', (n) => n >= 0, 'Temperature: 0 or more.'],
    ['topk', (n) => Number.isSafeInteger(n) && n >= 0, 'Top-k: a whole number, 0 for all.'],
    ['cfg', (n) => Number.isFinite(n), 'Guidance: a number, 1 for none.'],
  ]
  const wrong = rules.filter(([id, holds]) => {
    const ok = field(id).value !== '' && holds(field(id).valueAsNumber)
    field(id).setAttribute('aria-invalid', String(!ok))
    return !ok
  })
  const { audio, sampleRate } = /** @type {Loop} */ (loop)
  const { from, to } = promptOf(
    { name: '', audio, sampleRate },
    field('prompt').valueAsNumber,
    /** @type {any} */ (select('side').value),
  )
  const duration = field('duration').valueAsNumber
  if (!wrong.length && (to - from) / sampleRate >= duration) {
    field('duration').setAttribute('aria-invalid', 'true')
    wrong.push([
      'duration',
      () => false,
      `Seconds in all: more than the ${((to - from) / sampleRate).toFixed(1)} s of the loop that are continued.`,
    ])
  }
  if (wrong.length) {
    say(wrong.map(([, , text]) => text).join(' '))
    field(wrong[0][0]).focus()
    return null
  }
  return {
    prompt: audio.map((channel) => channel.slice(from, to)),
    sampleRate,
    options: {
      description: field('text').disabled ? null : field('text').value || null,
      duration,
      seed: field('seed').valueAsNumber,
      temperature: field('temperature').valueAsNumber,
      topK: field('topk').valueAsNumber,
      cfgCoef: field('cfg').valueAsNumber,
      chunkSeconds: 0.5,
    },
  }
}

/** @param {Event} event */
async function generate(event) {
  event.preventDefault()
  if (busy || !loop || !bundle) return
  const asked = request()
  if (!asked) return
  player.unlock(bundle.tree.model.sample_rate) // in the tap: later no phone would play it
  $('alert').hidden = true
  $('stage').scrollIntoView({ block: 'nearest', behavior: calm.matches ? 'auto' : 'smooth' })
  setBusy(true)
  stopped = false
  try {
    const loaded = await load()
    for (let n = Number(select('takes').value); n > 0 && !stopped; n--) {
      await oneTake({ ...asked, options: { ...asked.options, seed: field('seed').valueAsNumber } }, loaded)
      field('seed').value = String(field('seed').valueAsNumber + 1)
    }
  } catch (error) {
    complainUnlessStopped(error)
  } finally {
    setBusy(false)
  }
}

/** @param {unknown} error */
function complainUnlessStopped(error) {
  if (/** @type {Error} */ (error)?.name === 'AbortError') return
  complain(error)
  say('')
}

/**
 * @param {import('./engine.js').Request} asked
 * @param {Loaded} loaded
 */
async function oneTake(asked, loaded) {
  const engine = /** @type {Engine} */ (model?.engine)
  const made = newTake(asked, loaded)
  const started = performance.now()
  let flowing = 0 // since when columns come: the first one reads the loop
  say(`Take ${made.number} is generated.`)
  working(0, 'Reading the loop')
  try {
    made.codes = await engine.generate(asked, {
      onChunk(audio) {
        audio.forEach((channel, c) =>
          made.samples[c].set(channel.subarray(0, made.samples[c].length - made.filled), made.filled),
        )
        made.filled = Math.min(made.filled + audio[0].length, made.samples[0].length)
        changed(made)
      },
      onProgress({ done, total, ms }) {
        const now = performance.now()
        const column = (made.samples[0].length - made.seam) / made.sampleRate / total // seconds of sound
        flowing ||= now
        made.ms = ms
        made.speed = done > 1 ? (1000 * column * (done - 1)) / (now - flowing) : 0
        made.realTime = (1000 * column * done) / (now - started)
        const left = made.speed ? `, about ${Math.ceil((column * (total - done)) / made.speed)} s left` : ''
        working(done / total, `${Math.round((100 * done) / total)} %${left}`)
        if (made === shown) showNumbers(made)
      },
    })
    made.state = 'done'
    lastTake = made
    say(`Take ${made.number} is complete: ${(made.filled / made.sampleRate).toFixed(1)} s, seed ${made.seed}.`)
  } catch (error) {
    made.state = 'stopped'
    say(`Take ${made.number} was stopped.`)
    throw error
  } finally {
    finish(made)
    working(null, '')
  }
}

/**
 * @param {import('./engine.js').Request} asked
 * @param {Loaded} loaded
 * @returns {Take}
 */
function newTake({ prompt, sampleRate: rate, options }, { sampleRate, channels, frameRate, variant }) {
  const { duration = 0, description, seed } = options
  const hop = sampleRate / frameRate
  const samples = Math.trunc(duration * frameRate) * hop
  /** @type {Take} */
  const made = {
    number: ++number,
    seed: Number(seed),
    text: description ?? '',
    loop: loop?.name ?? '',
    samples: Array.from({ length: channels }, () => new Float32Array(samples)),
    filled: 0,
    complete: false,
    sampleRate,
    seam: Math.ceil((prompt[0].length / rate) * frameRate) * hop,
    speed: 0,
    realTime: 0,
    runs: [choice().backend === 'webgpu' ? 'WebGPU' : 'WebAssembly', variant].filter(Boolean).join(', '),
    ms: 0,
    codes: null,
    state: 'generating',
  }
  takes.push(made)
  list.add(made)
  assign(made, slots.A ? 'B' : 'A')
  $('no-takes').hidden = true
  if (player.state === 'paused' || player.sound === null || !isTake(player.sound)) {
    show(made)
    player.play(made, 0)
  }
  return made
}

/** No more of it will come: where it was stopped, what there is of it is a take if anything new can be heard. @param {Take} made */
function finish(made) {
  made.samples = made.samples.map((channel) => channel.slice(0, made.filled))
  made.complete = true
  if (made.filled > made.seam) changed(made)
  else remove(made)
}

function stop() {
  if (!busy) return
  stopped = true
  const engine = model?.engine
  say('Stopping.')
  engine?.cancel()
  // Whoever loads, or reads a long loop, does not hear it: then the worker is ended.
  setTimeout(
    () => busy && stopped && engine === model?.engine && engine?.close(),
    takes.at(-1)?.state === 'generating' ? PATIENCE : 0,
  )
}

/** @param {boolean} now */
function setBusy(now) {
  const focused = document.activeElement
  busy = now
  $('stop').hidden = !now
  $('generate').hidden = now
  for (const id of ['backend', 'variant', 'bundle', 'folder'])
    field(id).disabled = now || (id === 'variant' && select('variant').options.length < 3)
  showChoice()
  if (focused === $('generate') || focused === $('stop')) $(now ? 'stop' : 'generate').focus() // not lost with the button
}

// ---- what is heard and seen

/** @param {import('./player.js').Sounding} sound @returns {sound is Take} */
const isTake = (sound) => 'seed' in sound

/** @param {import('./player.js').Sounding} sound */
function show(sound) {
  shown = sound
  $('to-seam').hidden = $('download').hidden = $('seam').hidden = !isTake(sound)
  if (isTake(sound)) showNumbers(sound)
  draw()
  refresh()
}

let drawing = 0

/** Draw the waveform, once for all that asks for it in a frame. */
function draw() {
  cancelAnimationFrame(drawing)
  drawing = requestAnimationFrame(() => {
    if (!shown || $('player').hidden) return
    const { samples, filled } = shown
    const bright = isTake(shown) ? { from: shown.seam, to: Infinity } : loopPrompt()
    drawWaveform(/** @type {HTMLCanvasElement} */ ($('canvas')), { samples, filled, ...bright })
    if (isTake(shown)) $('seam').style.left = `${(100 * shown.seam) / samples[0].length}%`
  })
}

/** The part of the loop that will be continued. */
function loopPrompt() {
  return promptOf(
    /** @type {Loop} */ (loop),
    field('prompt').valueAsNumber || 0,
    /** @type {any} */ (select('side').value),
  )
}

/** @param {Take} made more of it is there */
function changed(made) {
  if (made === shown) draw()
  player.fill()
  refresh()
}

/** @param {Take} made */
function showNumbers(made) {
  $('n-column').textContent = made.ms ? `${made.ms < 10 ? made.ms.toFixed(1) : Math.round(made.ms)} ms` : '–'
  $('n-speed').textContent = made.realTime ? `${made.realTime.toFixed(2)}×` : '–'
}

/** Everything but the waveform. */
function refresh() {
  if (!shown) return
  const playing = player.state !== 'paused' && player.sound === shown
  const waiting = playing && player.state === 'waiting'
  $('sound-name').textContent = isTake(shown) ? `Take ${shown.number}, seed ${shown.seed}` : (loop?.name ?? '')
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

/** @param {import('./player.js').Sounding} sound */
function waitingText({ speed, filled }) {
  if (!filled || !speed) return 'Waiting for the first sound'
  const seconds = Math.ceil(player.lacking / speed)
  return `Waiting for more sound (${speed.toFixed(1)}× real time), about ${Math.max(1, seconds)} s`
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

/** @param {import('./player.js').Sounding} sound */
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
  if (shown === made) show(takes.at(-1) ?? loopSound())
  else refresh()
}

// ---- what is pressed

function listen() {
  $('settings').addEventListener('submit', generate)
  $('stop').addEventListener('click', stop)
  $('alert-close').addEventListener('click', () => ($('alert').hidden = true))
  $('play').addEventListener('click', () => shown && toggle(shown))
  $('to-seam').addEventListener('click', () => {
    if (!shown || !isTake(shown)) return
    player.play(shown, Math.max(0, shown.seam / shown.sampleRate - 1)) // one second before, to hear it come
    refresh()
  })
  $('ab').addEventListener('click', swap)
  $('download').addEventListener('click', () => shown && isTake(shown) && download(shown))
  $('roll').addEventListener('click', () => (field('seed').value = String(drawSeed())))
  player.addEventListener('state', refresh)
  for (const id of ['prompt', 'side']) $(id).addEventListener('input', () => shown && !isTake(shown) && draw())
  for (const button of document.querySelectorAll('[data-record]')) button.addEventListener('click', record)
  for (const button of document.querySelectorAll('[data-demo]')) button.addEventListener('click', demoLoop)
  select('backend').addEventListener('change', modelChanged)
  select('variant').addEventListener('change', modelChanged)
  select('bundle').addEventListener('change', openOffer)
  field('file').addEventListener('change', () => {
    const file = field('file').files?.[0]
    field('file').value = '' // the same file may come again
    if (file) take(readSound(file, file.name))
  })
  field('folder').addEventListener('change', () => offerFolder(openFolder(field('folder').files ?? [])))
  listenToWave()
  listenToKeys()
  listenToDrops()
  new ResizeObserver(draw).observe($('wave'))
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw)
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

function listenToKeys() {
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    if (event.key === 'Escape') stop()
    const typing = /** @type {HTMLElement} */ (event.target).matches('input, select, textarea')
    if (event.key.toLowerCase() === 'x' && !typing) swap()
    if (event.key === ' ' && event.target === document.body && shown) {
      event.preventDefault()
      toggle(shown)
    }
  })
}

function listenToDrops() {
  const root = document.documentElement
  addEventListener('dragover', (event) => {
    event.preventDefault()
    root.classList.add('dragging')
  })
  addEventListener('dragleave', (event) => event.relatedTarget || root.classList.remove('dragging'))
  addEventListener('drop', async (event) => {
    event.preventDefault()
    root.classList.remove('dragging')
    if (!event.dataTransfer) return
    const { files, folder } = await dropped(event.dataTransfer)
    if (folder) await offerFolder(openFolder(files))
    else if (files[0]) await take(readSound(files[0], files[0].name))
  })
}

// ---- the beginning

/** @param {{ name: string, open: () => Promise<Bundle> }[]} more */
function offer(more) {
  offers.push(...more)
  for (const { name } of more) select('bundle').add(new Option(name))
}

/** Open the model that is chosen in the list. */
async function openOffer() {
  const index = select('bundle').selectedIndex
  try {
    const opened = await offers[index].open()
    if (index === select('bundle').selectedIndex) useBundle(opened)
  } catch (error) {
    complain(error)
  }
}

/** @param {Promise<Bundle[]>} opening */
async function offerFolder(opening) {
  try {
    const first = offers.length
    offer((await opening).map((found) => ({ name: found.name, open: async () => found })))
    select('bundle').selectedIndex = first
    $('alert').hidden = true
    await openOffer()
  } catch (error) {
    complain(error)
  }
}

async function demoLoop() {
  await take(
    fetch(new URL('../loop.wav', import.meta.url)).then(async (response) => {
      if (!response.ok) throw new Error(`The demo loop is not there (HTTP ${response.status}).`)
      return readSound(await response.blob(), 'Demo loop')
    }),
  )
}

const drawSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 100_000

/** Keep the page for use without a network: what came before the service worker did is given to it. */
async function keepPage() {
  if (!navigator.serviceWorker) return
  try {
    await navigator.serviceWorker.register(new URL('../sw.js', import.meta.url))
    const controlled = new Promise((resolve) =>
      navigator.serviceWorker.addEventListener('controllerchange', resolve, { once: true }),
    )
    if (navigator.serviceWorker.controller) return
    await Promise.race([controlled, new Promise((resolve) => setTimeout(resolve, 3000))])
    const cache = await caches.open('clean-lm-page')
    const loaded = performance.getEntriesByType('resource').map(({ name }) => name)
    await cache.addAll([
      location.href.split('?')[0],
      ...new Set(loaded.filter((name) => new URL(name).origin === location.origin)),
    ])
  } catch (error) {
    console.warn('not kept for offline use:', error) // a private window has no caches: all else works
  }
}

async function begin() {
  listen()
  follow()
  field('seed').value = url.get('seed') ?? String(drawSeed())
  if (['webgpu', 'wasm'].includes(url.get('backend') ?? '')) select('backend').value = url.get('backend') ?? ''
  showChoice()
  await keepPage() // before anything else is asked for, or that would not be kept
  const { bundles: names, loop: hasLoop } = await served()
  for (const button of document.querySelectorAll('[data-demo]')) /** @type {HTMLElement} */ (button).hidden = !hasLoop
  offer(names.map((name) => ({ name, open: () => openServed(name) })))
  if (names.includes(url.get('bundle') ?? '')) select('bundle').value = url.get('bundle') ?? ''
  if (names.length) await openOffer()
  else say('No model is served here: open the folder of a bundle under “Runs on”.')
}

await begin()
