/** The window: decodes a file, has the main process continue it, plays the first take as it comes, and saves takes. */

/**
 * @typedef {import('./messages.js').Audio} Audio
 * @typedef {{ name: string, chunks: Audio[] }} Take
 */

const PROMPT = 15 // seconds: of a longer file, its end is continued
/** @type {import('./messages.js').Api} */
const musicgen = Reflect.get(globalThis, 'musicgen')
const element = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id))
const context = new AudioContext()
/** @type {Set<AudioBufferSourceNode>} */
const playing = new Set()
let [sampleRate, next] = [0, 0]
/** @type {Take[]} */
let takes = []

/** @param {string} text @param {boolean} [isError] */
function show(text, isError = false) {
  element('status').textContent = text
  element('status').classList.toggle('error', isError)
}
const fail = (/** @type {unknown} */ error) => show(/** @type {Error} */ (error).message, true)

musicgen.onProgress(({ done, total }) => (element('progress').value = done / total))
musicgen.onChunk((chunks) => {
  chunks.forEach((chunk, i) => takes[i].chunks.push(chunk))
  play(chunks[0])
})
element('form').onsubmit = (/** @type {Event} */ event) => {
  event.preventDefault()
  generate().catch(fail)
}
element('cancel').onclick = () => musicgen.cancel().catch(fail)
musicgen.ready().then((model) => {
  sampleRate = model.sampleRate
  element('start').disabled = false
  show(model.native ? 'Ready' : 'Ready, but slow with long loops: install koffi, see README.md')
}, fail)

/** Continue the chosen file with the form's values. */
async function generate() {
  const [file] = element('file').files
  const [seconds, count, seed] = ['seconds', 'takes', 'seed'].map((id) => Number(element(id).value))
  await context.resume()
  const audio = await decode(file)
  const duration = audio[0].length / context.sampleRate + seconds
  const options = { description: element('description').value || null, duration, takes: count, seed }
  const name = file.name.replace(/\.[^.]*$/, '')
  takes = Array.from({ length: count }, (_, i) => ({ name: `${name} seed ${seed + i}`, chunks: [] }))
  element('results').replaceChildren()
  stop()
  setRunning(true)
  element('progress').value = 0
  show('Generating…')
  try {
    const { cancelled } = await musicgen.continue({ audio, sampleRate: context.sampleRate, options })
    show(cancelled ? 'Cancelled: what there is so far is below' : 'Done')
  } finally {
    setRunning(false)
    element('results').replaceChildren(...takes.filter(({ chunks }) => chunks.length).map(row))
  }
}

/** @param {boolean} isRunning */
function setRunning(isRunning) {
  element('start').disabled = isRunning
  element('cancel').disabled = !isRunning
}

/** The end of a file, at the context's sample rate. @param {File} file @returns {Promise<Audio>} */
async function decode(file) {
  const bytes = await file.arrayBuffer()
  const sound = await context.decodeAudioData(bytes).catch(() => {
    throw new Error(`“${file.name}” is not audio that can be read here: choose a WAV, MP3, FLAC or Ogg file`)
  })
  const from = Math.max(0, sound.length - PROMPT * sound.sampleRate)
  return Array.from({ length: sound.numberOfChannels }, (_, c) => sound.getChannelData(c).slice(from))
}

/** Play audio after what is being played, or soon, if that has ended. @param {Audio} audio */
function play(audio) {
  const buffer = context.createBuffer(audio.length, audio[0].length, sampleRate)
  audio.forEach((channel, c) => buffer.copyToChannel(/** @type {Float32Array<ArrayBuffer>} */ (channel), c))
  const source = new AudioBufferSourceNode(context, { buffer })
  source.connect(context.destination)
  source.onended = () => playing.delete(source)
  playing.add(source)
  next = Math.max(next, context.currentTime + 0.1)
  source.start(next)
  next += buffer.duration
}

function stop() {
  for (const source of playing) source.stop()
  next = 0
}

/** A take's line, with buttons. @param {Take} take */
function row(take) {
  const audio = take.chunks[0].map((_, c) => join(take.chunks.map((chunk) => chunk[c])))
  const line = document.createElement('li')
  const save = async () => {
    const path = await musicgen.save({ name: take.name, audio, sampleRate })
    if (path) show(`Saved as ${path}`)
  }
  const listen = () => {
    stop()
    play(audio)
  }
  const buttons = [button('Play', listen), button('Stop', stop), button('Save…', () => save().catch(fail))]
  line.append(`${take.name}, ${(audio[0].length / sampleRate).toFixed(1)} s `, ...buttons)
  return line
}

/** @param {Float32Array[]} parts */
function join(parts) {
  const whole = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

/** @param {string} text @param {() => void} onclick */
function button(text, onclick) {
  return Object.assign(document.createElement('button'), { type: 'button', textContent: text, onclick })
}
