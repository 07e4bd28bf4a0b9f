/**
 * The page: takes a loop, has it continued, and collects the takes.
 *
 * For tests and for the console there is window.cleanLm:
 *     takes       all takes in the list: see Take in takes.js
 *     lastTake    the last complete one, with its codes and samples
 *     player      see Player in player.js
 */

import { closeLoop } from '../src/splice.js'
import { dropped, openFolder, served } from './bundles.js'
import { part, request, showLengths } from './form.js'
import { bundle, choice, engine, listenToModel, load, offerFolder, offerServed } from './model.js'
import { keepPage } from './offline.js'
import { $, calm, complain, complainUnlessStopped, field, say, select, url, working } from './page.js'
import { readSound, Recorder } from './sound.js'
import { addTake, changed, draw, finish, listenToStage, measured, player, showLoop, takes } from './stage.js'
import { clock } from './takes.js'

/**
 * @typedef {import('./takes.js').Take} Take
 * @typedef {import('./sound.js').Loop} Loop
 * @typedef {import('../src/musical_time.js').MusicalTime} MusicalTime
 * @typedef {import('./worker.js').Loaded} Loaded
 */

const LOOP_FADE = 0.02 // seconds of what comes after a take, over its beginning when it is repeated
const CANCEL_TIMEOUT = 3000 // ms until a worker that does not cancel is terminated

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
  showLoop({
    ...{ samples: audio, filled, complete: true, closed: null, sampleRate, speed: Infinity, name },
    part: () => part(sound),
  })
  updateButton()
  say(`${name}: ${(filled / sampleRate).toFixed(1)} s, ${sampleRate} Hz.`)
}

/** Enable the button where there is a loop, a model, and nothing running. */
function updateButton() {
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
      say('Recording. Press the button again to stop.')
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
      if (!response.ok) throw new Error(`The server has no demo loop (HTTP ${response.status}).`)
      return readSound(await response.blob(), 'Demo loop')
    }),
  )
}

// ---- generating

/** @param {Event} event */
async function generate(event) {
  event.preventDefault()
  if (busy || !loop || !bundle) return
  const found = request(loop)
  if (!found) return
  const { time, ...wanted } = found
  player.unlock(bundle.tree.model.sample_rate) // while the tap is handled: phones refuse it later
  $('alert').hidden = true
  $('stage').scrollIntoView({ block: 'nearest', behavior: calm.matches ? 'auto' : 'smooth' })
  setBusy(true)
  stopped = false
  try {
    const loaded = await load()
    for (let n = Number(select('takes').value); n > 0 && !stopped; n--) {
      await generateTake({ ...wanted, options: { ...wanted.options, seed: field('seed').valueAsNumber } }, time, loaded)
      field('seed').value = String(field('seed').valueAsNumber + 1)
    }
  } catch (error) {
    complainUnlessStopped(error)
  } finally {
    setBusy(false)
  }
}

/**
 * Generate a take: its sound is played and drawn while it grows.
 *
 * @param {import('./engine.js').Request} wanted
 * @param {MusicalTime | null} time
 * @param {Loaded} loaded
 */
async function generateTake(wanted, time, loaded) {
  const running = engine()
  if (!running) throw new Error('no model is loaded')
  const take = newTake(wanted, time, loaded)
  const fade = time ? Math.round(LOOP_FADE * take.sampleRate) : 0
  const all = take.samples.map(({ length }) => new Float32Array(length + fade)) // with what comes after the bars
  take.samples = all.map((channel) => channel.subarray(0, channel.length - fade))
  let received = 0
  const started = performance.now()
  let firstColumn = 0 // when it was sampled: until then the model reads the loop
  say(`Generating take ${take.number}.`)
  working(0, 'Reading the loop')
  try {
    take.codes = await running.generate(wanted, {
      onChunk(audio) {
        audio.forEach((channel, c) => all[c].set(channel.subarray(0, all[c].length - received), received))
        received = Math.min(received + audio[0].length, all[0].length)
        take.filled = Math.min(received, take.samples[0].length)
        changed(take)
      },
      onProgress({ done, total, ms }) {
        const now = performance.now()
        const column = (take.samples[0].length - take.seam) / take.sampleRate / total // seconds of audio
        firstColumn ||= now
        take.ms = ms
        take.speed = done > 1 ? (1000 * column * (done - 1)) / (now - firstColumn) : 0
        take.realTime = (1000 * column * done) / (now - started)
        const left = take.speed ? `, about ${Math.ceil((column * (total - done)) / take.speed)} s left` : ''
        working(done / total, `${Math.round((100 * done) / total)} %${left}`)
        measured(take)
      },
    })
    take.state = 'done'
    if (time) take.closed = closeLoop(all, take.filled, fade)
    lastTake = take
    say(`Take ${take.number} is complete: ${(take.filled / take.sampleRate).toFixed(1)} s, seed ${take.seed}.`)
  } catch (error) {
    take.state = 'stopped'
    say(`Take ${take.number} was stopped.`)
    throw error
  } finally {
    finish(take)
    working(null, '')
  }
}

/**
 * An empty take, in the list.
 *
 * @param {import('./engine.js').Request} wanted
 * @param {MusicalTime | null} time
 * @param {Loaded} loaded
 * @returns {Take}
 */
function newTake({ prompt, sampleRate: rate, options }, time, { sampleRate, channels, frameRate, variant }) {
  const { duration = 0, description, seed } = options
  const hop = sampleRate / frameRate
  const [promptBars, bars] = [Number(time?.promptBars), Number(time?.bars)]
  const samples = time ? time.length(bars, sampleRate) : Math.trunc(duration * frameRate) * hop
  /** @type {Take} */
  const take = {
    number: ++number,
    seed: Number(seed),
    text: String(description ?? ''),
    loop: loop?.name ?? '',
    samples: Array.from({ length: channels }, () => new Float32Array(samples)),
    filled: 0,
    complete: false,
    closed: null,
    bars: time && { count: bars, sampleRate: rate, samples: time.length(bars, rate) },
    sampleRate,
    seam: time ? time.length(promptBars, sampleRate) : Math.ceil((prompt[0].length / rate) * frameRate) * hop,
    speed: 0,
    realTime: 0,
    runs: [choice().backend === 'webgpu' ? 'WebGPU' : 'WebAssembly', variant].filter(Boolean).join(', '),
    ms: 0,
    codes: null,
    state: 'generating',
  }
  addTake(take)
  return take
}

function stop() {
  if (!busy) return
  stopped = true
  const running = engine()
  say('Stopping.')
  running?.cancel()
  // A worker that is loading or reading a long loop does not handle the message: then it is terminated.
  setTimeout(
    () => busy && stopped && running === engine() && running?.close(),
    takes.at(-1)?.state === 'generating' ? CANCEL_TIMEOUT : 0,
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
  updateButton()
  if (focused === $('generate') || focused === $('stop')) $(now ? 'stop' : 'generate').focus() // the hidden button would lose it
}

// ---- events

function listen() {
  $('settings').addEventListener('submit', generate)
  $('stop').addEventListener('click', stop)
  $('alert-close').addEventListener('click', () => ($('alert').hidden = true))
  $('roll').addEventListener('click', () => (field('seed').value = String(drawSeed())))
  for (const id of ['prompt', 'prompt-bars', 'side']) $(id).addEventListener('input', draw)
  field('bpm').addEventListener('input', () => {
    showLengths(loop)
    draw()
  })
  for (const button of document.querySelectorAll('[data-record]')) button.addEventListener('click', record)
  for (const button of document.querySelectorAll('[data-demo]')) button.addEventListener('click', demoLoop)
  field('file').addEventListener('change', () => {
    const file = field('file').files?.[0]
    field('file').value = '' // so that the same file can be chosen again
    if (file) readLoop(readSound(file, file.name))
  })
  field('folder').addEventListener('change', () => offerFolder(openFolder(field('folder').files ?? [])))
  addEventListener('choice', updateButton)
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
    if (folder && busy) complain(new Error('A take is being generated: stop it before you open another model.'))
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
  await keepPage() // before any other request, or it would not be kept
  const { bundles, loop: hasLoop } = await served()
  for (const button of document.querySelectorAll('[data-demo]')) /** @type {HTMLElement} */ (button).hidden = !hasLoop
  await offerServed(bundles)
}

await begin()
