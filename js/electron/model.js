/** MusicGen in a process of its own, so that it blocks neither the window nor the main process. See messages.js. */

import { MusicGen } from 'clean-lm'
import * as ort from 'onnxruntime-node'

/**
 * @typedef {import('./messages.js').FromModel} FromModel
 * @typedef {import('./messages.js').ToModel} ToModel
 */

/** Electron's port to the main process. @type {{ on: (event: 'message', listener: (event: { data: ToModel }) => void) => void, postMessage: (message: FromModel) => void }} */
const port = Reflect.get(process, 'parentPort')
/** @type {Promise<MusicGen>} */
let loading
/** @type {Map<number, AbortController>} */
const running = new Map()

port.on('message', async ({ data }) => {
  const { type, id } = data
  try {
    if (type === 'cancel') running.get(id)?.abort(new Error('cancelled'))
    else port.postMessage({ id, type: 'done', result: type === 'load' ? await load(data) : await generate(data) })
  } catch (error) {
    port.postMessage({ id, type: 'failed', message: /** @type {Error} */ (error).message })
  }
})

/** @param {import('./messages.js').Load} message */
async function load({ bundle }) {
  loading = MusicGen.load(bundle, { ort: /** @type {any} */ (ort), onProgress: progress(0, 'bytes') })
  const { sampleRate, lm } = await loading
  return { sampleRate, native: lm.native }
}

/** @param {import('./messages.js').Continue} message */
async function generate({ id, audio, sampleRate, options }) {
  const controller = new AbortController()
  running.set(id, controller)
  try {
    const model = await loading
    const listen = { signal: controller.signal, onProgress: progress(id, 'columns') }
    const stream = model.streamContinuationTakes(audio, sampleRate, { ...options, ...listen })
    for await (const takes of stream) port.postMessage({ id, type: 'chunk', takes })
  } finally {
    running.delete(id)
  }
}

/** @param {number} id @param {'bytes' | 'columns'} unit */
const progress = (id, unit) => (/** @type {number} */ done, /** @type {number} */ total) =>
  port.postMessage({ id, type: 'progress', done, total, unit })
