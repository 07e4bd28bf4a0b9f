/** Electron's main process: opens a window, and answers its three messages with the engine. See README.md. */

import { fileURLToPath } from 'node:url'

import { app, BrowserWindow, ipcMain } from 'electron'

import { Engine } from './engine.js'
import { validateContinue } from './requests.js'

const here = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url))
const bundle = process.argv[process.argv.length - 1]
/** @type {AbortController | undefined} */
let running

app.enableSandbox()
await app.whenReady()
const window = new BrowserWindow({
  width: 720,
  height: 420,
  webPreferences: { preload: here('preload.cjs'), contextIsolation: true, sandbox: true, nodeIntegration: false },
})
lock(window.webContents)
const send = (/** @type {string} */ channel, /** @type {any[]} */ ...values) =>
  window.isDestroyed() || window.webContents.send(channel, ...values)

const engine = new Engine(bundle, (done, total) => send('progress', done, total))
handle('ready', () => engine.ready)
handle('continue', async (/** @type {any[]} */ ...given) => {
  const { audio, sampleRate, options } = validateContinue(...given)
  if (running) throw new Error('a generation is running: cancel it, or wait for its end')
  const controller = new AbortController()
  running = controller
  const onChunk = (/** @type {Float32Array[]} */ chunk) => send('chunk', chunk)
  const onProgress = (/** @type {number} */ done, /** @type {number} */ total) => send('progress', done, total)
  try {
    await engine.continue(audio, sampleRate, options, { onChunk, onProgress, signal: controller.signal })
  } finally {
    running = undefined
  }
})
handle('cancel', () => running?.abort())

await window.loadFile(here('index.html'))
app.on('window-all-closed', async () => {
  await engine.close()
  app.quit()
})

/**
 * Answer a message of the window's own page, and of no frame in it.
 *
 * @param {string} channel
 * @param {(...values: any[]) => any} answer
 */
function handle(channel, answer) {
  ipcMain.handle(channel, (event, ...values) => {
    if (event.senderFrame !== window.webContents.mainFrame) throw new Error(`${channel}: not from the window's page`)
    return answer(...values)
  })
}

/** The page stays the page: it opens nothing, goes nowhere, and gets no permission. @param {any} contents */
function lock(contents) {
  contents.setWindowOpenHandler(() => ({ action: 'deny' }))
  for (const event of ['will-navigate', 'will-frame-navigate', 'will-redirect', 'will-attach-webview']) {
    contents.on(event, (/** @type {Event} */ given) => given.preventDefault())
  }
  contents.session.setPermissionRequestHandler(
    (/** @type {any} */ _, /** @type {string} */ _name, /** @type {any} */ reply) => reply(false),
  )
  contents.session.setPermissionCheckHandler(() => false)
}
