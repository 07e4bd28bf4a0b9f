/** Electron's main process: opens a window, and answers its three messages with the engine. See README.md. */

import { fileURLToPath } from 'node:url'

import { app, BrowserWindow, ipcMain } from 'electron'

import { Engine } from './engine.js'

const here = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url))
const bundle = process.argv[process.argv.length - 1]
/** @type {AbortController | undefined} */
let running

await app.whenReady()
const window = new BrowserWindow({ width: 720, height: 420, webPreferences: { preload: here('preload.cjs') } })
const send = (/** @type {string} */ channel, /** @type {any[]} */ ...values) =>
  window.isDestroyed() || window.webContents.send(channel, ...values)

const engine = new Engine(bundle, (done, total) => send('progress', done, total))
ipcMain.handle('ready', () => engine.ready)
ipcMain.handle('continue', (_, audio, sampleRate, options) => {
  running = new AbortController()
  const onChunk = (/** @type {Float32Array[]} */ chunk) => send('chunk', chunk)
  const onProgress = (/** @type {number} */ done, /** @type {number} */ total) => send('progress', done, total)
  return engine.continue(audio, sampleRate, options, { onChunk, onProgress, signal: running.signal })
})
ipcMain.handle('cancel', () => running?.abort())

await window.loadFile(here('index.html'))
app.on('window-all-closed', async () => {
  await engine.close()
  app.quit()
})
