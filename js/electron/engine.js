/** The main process's side of the model's process: turns messages into promises. */

import { fileURLToPath } from 'node:url'

/**
 * @typedef {import('./messages.js').Progress} Progress
 * @typedef {{ onProgress?: (progress: Progress) => void, onChunk?: (takes: import('./messages.js').Audio[]) => void }} Listen
 * @typedef {Listen & { resolve: (result: any) => void, reject: (error: Error) => void }} Listener
 *
 * @typedef {object} Child a process as utilityProcess.fork returns it
 * @property {(message: any) => void} postMessage
 * @property {() => boolean} kill
 * @property {(event: any, listener: (value: any) => void) => void} on
 */

export class Engine {
  /**
   * Start the process, which loads the bundle.
   *
   * @param {(path: string, args: string[], options: { serviceName: string }) => Child} fork Electron's utilityProcess.fork
   * @param {string} bundle its folder
   * @param {(progress: Progress) => void} [onProgress] of loading
   */
  constructor(fork, bundle, onProgress) {
    const path = fileURLToPath(new URL('./model.js', import.meta.url))
    this.child = fork(path, [], { serviceName: 'MusicGen' })
    /** @type {Map<number, Listener>} */
    this.listeners = new Map()
    this.last = 0
    /** @type {Error | undefined} why the process ended */
    this.failure = undefined
    this.child.on('message', (message) => this._hear(message))
    this.child.on('exit', (code) => this._end(code))
    /** @type {Promise<import('./messages.js').Model>} resolves when the bundle is loaded */
    this.ready = this._ask({ type: 'load', id: 0, bundle }, { onProgress })
    this.ready.catch(() => {}) // continue() reports the error
  }

  /**
   * Continue audio. onChunk gets the takes' chunks while they are generated.
   *
   * @param {import('./messages.js').Request} request
   * @param {Listen & { signal?: AbortSignal }} [listen]
   * @returns {Promise<void>}
   */
  async continue(request, { signal, ...listen } = {}) {
    await this.ready
    signal?.throwIfAborted()
    const id = ++this.last
    const cancel = () => this.child.postMessage({ type: 'cancel', id })
    signal?.addEventListener('abort', cancel)
    try {
      await this._ask({ type: 'continue', id, ...request }, listen)
    } finally {
      signal?.removeEventListener('abort', cancel)
    }
  }

  /** End the process. */
  close() {
    this.failure ??= new Error('the engine was closed')
    this.child.kill()
  }

  /**
   * @param {import('./messages.js').Load | import('./messages.js').Continue} message
   * @param {Listen} listen
   * @returns {Promise<any>}
   */
  _ask(message, listen) {
    if (this.failure) return Promise.reject(this.failure) // nobody would answer
    return new Promise((resolve, reject) => {
      this.listeners.set(message.id, { ...listen, resolve, reject })
      this.child.postMessage(message)
    })
  }

  /** @param {import('./messages.js').FromModel} message */
  _hear(message) {
    const listener = this.listeners.get(message.id)
    if (!listener) return
    if (message.type === 'progress') {
      const { done, total, unit } = message
      listener.onProgress?.({ done, total, unit })
      return
    }
    if (message.type === 'chunk') return listener.onChunk?.(message.takes)
    this.listeners.delete(message.id)
    if (message.type === 'done') listener.resolve(message.result)
    else listener.reject(new Error(message.message))
  }

  /** @param {number} code */
  _end(code) {
    this.failure ??= new Error(
      `the model's process ended (exit code ${code}), perhaps for want of memory: start the app again, ` +
        'with fewer takes or seconds',
    )
    for (const { reject } of this.listeners.values()) reject(this.failure)
    this.listeners.clear()
  }
}
