/** Runs MusicGen in a worker thread, for an Electron main process or any other Node program. */

import { Worker } from 'node:worker_threads'

/**
 * @typedef {(done: number, total: number) => void} OnProgress
 *
 * @typedef {object} Listener
 * @property {(result: any) => void} resolve
 * @property {(error: Error) => void} reject
 * @property {OnProgress} [onProgress]
 * @property {(chunk: Float32Array[]) => void} [onChunk]
 */

export class Engine {
  /**
   * Start a worker, which loads the bundle.
   *
   * @param {string} bundle its folder
   * @param {OnProgress} [onProgress] called with the bytes loaded so far and their total
   */
  constructor(bundle, onProgress) {
    this.worker = new Worker(new URL('./worker.js', import.meta.url), { workerData: { bundle } })
    /** @type {Map<number, Listener>} */
    this.listeners = new Map()
    this.last = 0
    /** @type {Error | undefined} why the worker ended */
    this.failure = undefined
    this.worker.on('message', ({ id, chunk, progress, done, error }) => {
      const listener = this.listeners.get(id)
      if (!listener) return
      if (progress) listener.onProgress?.(progress[0], progress[1])
      if (chunk) listener.onChunk?.(chunk)
      if (error) listener.reject(new Error(error))
      if (done) listener.resolve(done)
      if (done || error) this.listeners.delete(id)
    })
    this.worker.on('error', (error) => this._fail(error))
    this.worker.on('exit', () => this._fail(new Error('the engine was closed')))
    /** @type {Promise<{ sampleRate: number }>} resolves when the bundle is loaded */
    this.ready = new Promise((resolve, reject) => this.listeners.set(0, { resolve, reject, onProgress }))
    this.ready.catch(() => {}) // continue() reports the error
  }

  /**
   * Continue audio. onChunk gets the chunks while they are generated.
   *
   * @param {Float32Array[] | null} audio one array a channel; null with options.promptCodes
   * @param {number | null} sampleRate
   * @param {import('clean-lm').GenerateOptions & { chunkSeconds?: number }} options without functions and signals, which cannot be
   *   sent to a worker
   * @param {{ onChunk?: (chunk: Float32Array[]) => void, onProgress?: OnProgress, signal?: AbortSignal }} [listen]
   * @returns {Promise<void>}
   */
  async continue(audio, sampleRate, options, { onChunk, onProgress, signal } = {}) {
    await this.ready
    signal?.throwIfAborted()
    if (this.failure) throw this.failure // nobody would answer
    const id = ++this.last
    const cancel = () => this.worker.postMessage({ id, cancel: true })
    signal?.addEventListener('abort', cancel)
    try {
      await new Promise((resolve, reject) => {
        this.listeners.set(id, { resolve, reject, onChunk, onProgress })
        this.worker.postMessage({ id, audio, sampleRate, options })
      })
    } finally {
      signal?.removeEventListener('abort', cancel)
    }
  }

  /** Terminate the worker. */
  async close() {
    await this.worker.terminate()
  }

  /** @param {Error} error */
  _fail(error) {
    this.failure ??= error
    for (const { reject } of this.listeners.values()) reject(error)
    this.listeners.clear()
  }
}
