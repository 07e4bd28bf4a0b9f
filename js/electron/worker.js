/**
 * MusicGen in a thread of its own, so that it blocks neither the window nor the main process.
 *
 *     in   { id, audio, sampleRate, options }     start        { id, cancel }
 *     out  { id, chunk } ... { id, progress } ... { id, done }, or { id, error }; id 0: loading
 */

import { parentPort, workerData } from 'node:worker_threads'

import { MusicGen } from 'clean-lm'
import * as ort from 'onnxruntime-node'

const port = /** @type {import('node:worker_threads').MessagePort} */ (parentPort)
const loading = MusicGen.load(workerData.bundle, {
  ort: /** @type {any} */ (ort),
  onProgress: (done, total) => port.postMessage({ id: 0, progress: [done, total] }),
})
/** @type {Map<number, AbortController>} */
const running = new Map()

loading.then(
  ({ sampleRate }) => port.postMessage({ id: 0, done: { sampleRate } }),
  (error) => port.postMessage({ id: 0, error: error.message }),
)

port.on('message', async ({ id, cancel, audio, sampleRate, options }) => {
  if (cancel) {
    running.get(id)?.abort(new Error('cancelled'))
    return
  }
  const controller = new AbortController()
  running.set(id, controller)
  const onProgress = (/** @type {number[]} */ ...progress) => port.postMessage({ id, progress })
  const streamOptions = { ...options, signal: controller.signal, onProgress }
  try {
    const model = await loading
    for await (const chunk of model.streamContinuation(audio, sampleRate, streamOptions))
      port.postMessage({ id, chunk })
    port.postMessage({ id, done: {} })
  } catch (error) {
    port.postMessage({ id, error: /** @type {Error} */ (error).message })
  } finally {
    running.delete(id)
  }
})
