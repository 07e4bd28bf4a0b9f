/**
 * The page: a loop, what continues it, and the takes that came of it.
 *
 * For tests and for the console, window.cleanLm has
 *     takes       every take that is kept: see Take in takes.js
 *     lastTake    the last complete one, its codes and samples among it
 *     player      what is heard
 */

import { dropped, openFolder, served } from './bundles.js'
import { bundle, choice, engine, listenToModel, load, offerFolder, offerServed } from './model.js'
import { keepPage } from './offline.js'
import { $, calm, complain, complainUnlessStopped, field, say, select, url, working } from './page.js'
import { promptOf, readSound, Recorder } from './sound.js'
import { addTake, changed, draw, finish, listenToStage, measured, player, showLoop, takes } from './stage.js'
import { clock } from './takes.js'

/**
 * @typedef {import('./takes.js').Take} Take
 * @typedef {import('./sound.js').Loop} Loop
 * @typedef {import('./worker.js').Loaded} Loaded
 */

const PATIENCE = 3000 // ms that a worker has to end what it does

/** @type {Loop | null} */
let loop = null
/** @type {Take | null} */
let lastTake = null
let number = 0
let busy = false
let stopped = false

Object.defineProperty(window, 'cleanLm', {
  value: {
    takes,
    player,
    get lastTake() {
      return lastTake
    },
  },
})

// ---- the loop

/** @param {Loop} sound */
function useLoop(sound) {
  loop = sound
  const { audio, sampleRate, name } = sound
  for (const id of ['drop', 'player', 'loop-fields']) $(id).hidden = id === 'drop'
  $('alert').hidden = true
  document.body.classList.add('has-loop')
  const filled = audio[0].length
  showLoop({ samples: audio, filled, complete: true, sampleRate, speed: Infinity, name, part: () => part(sound) })
  allow()
  say(`${name}: ${(filled / sampleRate).toFixed(1)} s, ${sampleRate} Hz.`)
}

/** What of a loop is continued. @param {Loop} sound */
const part = (sound) => promptOf(sound, field('prompt').valueAsNumber || 0, select('side').value === 'start')

/** Generating is possible, or not. */
function allow() {
  field('generate').disabled = !loop || !bundle || busy
}

/** @param {Promise<Loop>} reading */
async function readLoop(reading) {
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
      await readLoop(recording.stop())
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

async function demoLoop() {
  await readLoop(
    fetch(new URL('../loop.wav', import.meta.url)).then(async (response) => {
      if (!response.ok) throw new Error(`The demo loop is not there (HTTP ${response.status}).`)
      return readSound(await response.blob(), 'Demo loop')
    }),
  )
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
  const { from, to } = part(/** @type {Loop} */ (loop))
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

/**
 * @param {import('./engine.js').Request} asked
 * @param {Loaded} loaded
 */
async function oneTake(asked, loaded) {
  const runs = engine()
  if (!runs) throw new Error('no model is loaded')
  const made = newTake(asked, loaded)
  const started = performance.now()
  let flowing = 0 // since when columns come: the first one reads the loop
  say(`Take ${made.number} is generated.`)
  working(0, 'Reading the loop')
  try {
    made.codes = await runs.generate(asked, {
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
        measured(made)
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
  addTake(made)
  return made
}

function stop() {
  if (!busy) return
  stopped = true
  const asked = engine()
  say('Stopping.')
  asked?.cancel()
  // Whoever loads, or reads a long loop, does not hear it: then the worker is ended.
  setTimeout(
    () => busy && stopped && asked === engine() && asked?.close(),
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
  allow()
  if (focused === $('generate') || focused === $('stop')) $(now ? 'stop' : 'generate').focus() // not lost with the button
}

// ---- what is pressed

function listen() {
  $('settings').addEventListener('submit', generate)
  $('stop').addEventListener('click', stop)
  $('alert-close').addEventListener('click', () => ($('alert').hidden = true))
  $('roll').addEventListener('click', () => (field('seed').value = String(drawSeed())))
  for (const id of ['prompt', 'side']) $(id).addEventListener('input', draw)
  for (const button of document.querySelectorAll('[data-record]')) button.addEventListener('click', record)
  for (const button of document.querySelectorAll('[data-demo]')) button.addEventListener('click', demoLoop)
  field('file').addEventListener('change', () => {
    const file = field('file').files?.[0]
    field('file').value = '' // the same file may come again
    if (file) readLoop(readSound(file, file.name))
  })
  field('folder').addEventListener('change', () => offerFolder(openFolder(field('folder').files ?? [])))
  addEventListener('choice', allow)
  document.addEventListener('keydown', ({ key }) => key === 'Escape' && stop())
  listenToDrops()
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
    if (folder && busy) complain(new Error('A take is being generated: stop it before another model is opened.'))
    else if (folder) await offerFolder(openFolder(files))
    else if (files[0]) await readLoop(readSound(files[0], files[0].name))
  })
}

const drawSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 100_000

async function begin() {
  listen()
  listenToStage()
  listenToModel()
  field('seed').value = url.get('seed') ?? String(drawSeed())
  await keepPage() // before anything else is asked for, or that would not be kept
  const { bundles, loop: hasLoop } = await served()
  for (const button of document.querySelectorAll('[data-demo]')) /** @type {HTMLElement} */ (button).hidden = !hasLoop
  await offerServed(bundles)
}

await begin()
