/** Stands in for the module `electron` in Node: what js/electron/main.js uses of it, and what the tests ask of it. */

import { fork } from 'node:child_process'
import { EventEmitter } from 'node:events'

/** @typedef {(event: { sender: any, senderFrame: any }, value?: any) => Promise<any>} Handler */

const HOOKS = new URL('./electron_hooks.js', import.meta.url).href

/** What the app has done: for the tests. */
export const seen = {
  /** @type {BrowserWindow | undefined} */
  window: undefined,
  /** @type {Map<string, Handler>} */
  handlers: new Map(),
  /** @type {{ scheme: string, privileges: any }[]} */
  schemes: [],
  /** @type {Record<string, (request: { url: string }) => Promise<Response>>} */
  protocols: {},
  /** @type {(channel: string, value: any) => void} what the window hears */
  onSend: () => {},
  /** @type {string | undefined} where the user saves */
  filePath: undefined,
  /** @type {any} */
  dialog: undefined,
  isSandboxed: false,
  hasQuit: false,
}

export const app = Object.assign(new EventEmitter(), {
  isPackaged: false,
  getAppPath: () => '/nowhere',
  whenReady: async () => {},
  enableSandbox: () => (seen.isSandboxed = true),
  quit: () => (seen.hasQuit = true),
})

export class BrowserWindow {
  /** @param {any} options */
  constructor(options) {
    this.options = options
    this.webContents = new WebContents()
    this.url = ''
    seen.window = this
  }

  /** @param {string} url */
  async loadURL(url) {
    this.url = url
    this.webContents.mainFrame.url = url
  }

  isDestroyed() {
    return false
  }
}

export class WebContents extends EventEmitter {
  mainFrame = { url: '', parent: null }
  /** @type {(details: any) => { action: 'deny' }} */
  opener = () => ({ action: 'deny' })
  session = {
    /** @type {(contents: any, name: string, reply: (allowed: boolean) => void) => void} */
    onRequest: () => {},
    /** @type {() => boolean} */
    onCheck: () => true,
    setPermissionRequestHandler(
      /** @type {(contents: any, name: string, reply: (allowed: boolean) => void) => void} */ f,
    ) {
      this.onRequest = f
    },
    setPermissionCheckHandler(/** @type {() => boolean} */ f) {
      this.onCheck = f
    },
  }

  /** @param {(details: any) => { action: 'deny' }} opener */
  setWindowOpenHandler(opener) {
    this.opener = opener
  }

  /** @param {string} channel @param {any} value */
  send(channel, value) {
    seen.onSend(channel, structuredClone(value))
  }
}

export const dialog = {
  /** @param {BrowserWindow} _window @param {any} options */
  async showSaveDialog(_window, options) {
    seen.dialog = options
    return { filePath: seen.filePath }
  },
}

export const ipcMain = {
  /** @param {string} channel @param {Handler} handler */
  handle: (channel, handler) => void seen.handlers.set(channel, handler),
}

export const protocol = {
  /** @param {{ scheme: string, privileges: any }[]} schemes */
  registerSchemesAsPrivileged: (schemes) => void seen.schemes.push(...schemes),
  /** @param {string} scheme @param {(request: { url: string }) => Promise<Response>} handler */
  handle: (scheme, handler) => void (seen.protocols[scheme] = handler),
}

export const utilityProcess = {
  /**
   * A process of Node, whose messages are cloned as Electron's are.
   *
   * @param {string} path
   * @param {string[]} args
   * @param {{ serviceName: string }} _options
   */
  fork(path, args, _options) {
    const child = fork(path, args, { serialization: 'advanced', execArgv: ['--import', HOOKS] })
    return Object.assign(child, { postMessage: (/** @type {any} */ message) => void child.send(message) })
  },
}

// of the preload script
export const contextBridge = { exposeInMainWorld: (/** @type {string} */ _name, /** @type {any} */ _api) => {} }
export const ipcRenderer = {
  invoke: async (/** @type {string} */ _channel, /** @type {any} */ _value) => /** @type {any} */ ({}),
  on: (/** @type {string} */ _channel, /** @type {(event: any, value: any) => void} */ _listener) => {},
}
