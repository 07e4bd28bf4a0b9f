/** The page's side of the worker: turns messages into promises. */

/**
 * @typedef {import('./worker.js').Settings} Settings
 * @typedef {import('./worker.js').Loaded} Loaded
 * @typedef {import('./worker.js').FromWorker} FromWorker
 * @typedef {Omit<import('./worker.js').Generate, 'type'>} Request
 *
 * @typedef {object} Listeners
 * @property {(chunk: Float32Array[]) => void} onChunk
 * @property {(progress: import('./worker.js').Progress) => void} onProgress
 */

/** One worker with one model. Another model gets a new worker, so that all memory of the last one is freed. */
export class Engine {
  constructor() {
    this.worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' })
    /** @type {(message: FromWorker) => void} */
    this.onMessage = () => {}
    /** @type {(reason: Error) => void} */
    this.reject = () => {}
    this.worker.onmessage = ({ data }) => this.onMessage(data)
    this.worker.onerror = ({ message }) => {
      this.closed = true
      this.reject(new Error(message || 'The model stopped: its worker ended.'))
    }
    this.closed = false
  }

  /**
   * @param {Settings} settings
   * @param {(loading: import('./worker.js').Loading) => void} onLoading
   * @returns {Promise<Loaded>}
   */
  load(settings, onLoading) {
    return this._ask({ type: 'load', ...settings }, (message, resolve) => {
      if (message.type === 'loading') onLoading(message)
      if (message.type === 'loaded') resolve(message)
    })
  }

  /**
   * @param {Request} request
   * @param {Listeners} listeners
   * @returns {Promise<Int32Array[]>} codes
   */
  generate(request, { onChunk, onProgress }) {
    return this._ask({ type: 'generate', ...request }, (message, resolve) => {
      if (message.type === 'chunk') onChunk(message.audio)
      if (message.type === 'progress') onProgress(message)
      if (message.type === 'done') resolve(message.codes)
    })
  }

  /** Cancel the generation: its promise is rejected with an AbortError. */
  cancel() {
    this.worker.postMessage({ type: 'cancel' })
  }

  close() {
    this.closed = true
    this.worker.terminate()
    this.reject(new DOMException('the worker was closed', 'AbortError'))
  }

  /**
   * Send a message, and handle answers until one resolves the promise.
   *
   * @template T
   * @param {import('./worker.js').ToWorker} message
   * @param {(message: FromWorker, resolve: (result: T) => void) => void} handle
   * @returns {Promise<T>}
   */
  _ask(message, handle) {
    return new Promise((resolve, reject) => {
      this.reject = reject
      this.onMessage = (answer) => {
        if (answer.type === 'failed') reject(errorOf(answer))
        else handle(answer, resolve)
      }
      this.worker.postMessage(message)
    })
  }
}

/** @param {import('./worker.js').Failed} failed */
function errorOf({ name, message }) {
  const error = new Error(message)
  error.name = name
  return error
}
