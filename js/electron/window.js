/** The window: decodes a file, has the main process continue it, and plays the chunks as they arrive. */

/** @type {any} */
const musicgen = /** @type {any} */ (globalThis).musicgen
const element = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id))
const showStatus = (/** @type {string} */ text) => (element('status').textContent = text)
const context = new AudioContext()
let [sampleRate, next] = [0, 0]

musicgen.on(
  'progress',
  (/** @type {number} */ done, /** @type {number} */ total) => (element('progress').value = done / total),
)
musicgen.on('chunk', (/** @type {Float32Array[]} */ chunk) => {
  const buffer = context.createBuffer(chunk.length, chunk[0].length, sampleRate)
  chunk.forEach((channel, c) => buffer.copyToChannel(new Float32Array(channel), c))
  const source = new AudioBufferSourceNode(context, { buffer })
  source.connect(context.destination)
  next = Math.max(next, context.currentTime + 0.1) // after the last chunk, or soon, if that has ended
  source.start(next)
  next += buffer.duration
})

element('start').onclick = async () => {
  const [file] = element('file').files
  if (!file) return showStatus('Choose a loop first')
  try {
    await context.resume()
    const sound = await context.decodeAudioData(await file.arrayBuffer())
    const audio = Array.from({ length: sound.numberOfChannels }, (_, c) => sound.getChannelData(c))
    const seed = Number(element('seed').value)
    next = 0
    showStatus('Generating…')
    await musicgen.continue(audio, sound.sampleRate, { description: element('description').value, seed })
    showStatus('Done')
  } catch (error) {
    showStatus(/** @type {Error} */ (error).message)
  }
}
element('cancel').onclick = () => musicgen.cancel()

musicgen.ready().then(
  (/** @type {any} */ model) => {
    sampleRate = model.sampleRate
    element('start').disabled = false
    showStatus('Ready')
  },
  (/** @type {Error} */ error) => showStatus(error.message),
)
