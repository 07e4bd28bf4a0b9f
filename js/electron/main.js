/** Electron's main process: opens a window, and answers its messages with the engine. See README.md. */

import { readFile, writeFile } from 'node:fs/promises'
import { extname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

import { encodeWav } from 'clean-lm'
import { app, BrowserWindow, dialog, ipcMain, protocol, utilityProcess } from 'electron'

import { Engine } from './engine.js'
import { validateContinue, validateSave } from './messages.js'

const here = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url))
const PAGE = 'app://page/'
const FILES = ['index.html', 'style.css', 'window.js']
const TYPES = /** @type {Record<string, string>} */ ({
  '.html': 'text/html',
  '.css': 'text/css',
  '.js': 'text/javascript',
})

app.enableSandbox()
protocol.registerSchemesAsPrivileged([{ scheme: 'app', privileges: { standard: true, secure: true } }])
app.whenReady().then(start) // not awaited here: Electron is not ready before this module is

async function start() {
  protocol.handle('app', serve)
  const window = new BrowserWindow({
    ...{ width: 720, height: 560, title: 'Continue a loop' },
    webPreferences: { preload: here('preload.cjs'), contextIsolation: true, sandbox: true, nodeIntegration: false },
  })
  lock(window.webContents)
  const send = (/** @type {string} */ channel, /** @type {any} */ value) =>
    window.isDestroyed() || window.webContents.send(channel, value)

  const bundle = app.isPackaged ? join(app.getAppPath(), '..', 'bundle') : resolve(process.argv[2] ?? here('bundle'))
  const fork = utilityProcess.fork.bind(utilityProcess)
  const engine = new Engine(fork, bundle, (progress) => send('progress', progress))
  app.on('window-all-closed', () => {
    engine.close()
    app.quit()
  })
  answer(window, engine, send)
  await window.loadURL(`${PAGE}index.html`)
}

/** The page's files, and nothing else. @param {{ url: string }} request */
async function serve({ url }) {
  const name = FILES.find((name) => url === PAGE + name)
  if (!name) return new Response('not found', { status: 404 })
  const headers = { 'content-type': `${TYPES[extname(name)]}; charset=utf-8`, 'x-content-type-options': 'nosniff' }
  return new Response(await readFile(here(name)), { headers })
}

/**
 * Answer the messages of the window's own page.
 *
 * @param {BrowserWindow} window
 * @param {Engine} engine
 * @param {(channel: string, value: any) => void} send
 */
function answer(window, engine, send) {
  /** @type {AbortController | undefined} */
  let running
  handle(window, 'ready', () => engine.ready)
  handle(window, 'continue', async (given) => {
    const request = validateContinue(given)
    if (running) throw new Error('a generation is running: cancel it, or wait for its end')
    const { signal } = (running = new AbortController())
    const listen = {
      onProgress: (/** @type {any} */ progress) => send('progress', progress),
      onChunk: (/** @type {any} */ takes) => send('chunk', takes),
    }
    try {
      await engine.continue(request, { ...listen, signal })
      return { cancelled: false }
    } catch (error) {
      if (!signal.aborted || engine.failure) throw error
      return { cancelled: true }
    } finally {
      running = undefined
    }
  })
  handle(window, 'cancel', () => running?.abort())
  handle(window, 'save', async (given) => {
    const { name, audio, sampleRate } = validateSave(given)
    const filters = [{ name: 'WAV', extensions: ['wav'] }]
    const { filePath } = await dialog.showSaveDialog(window, { defaultPath: `${name}.wav`, filters })
    if (!filePath) return null
    await writeFile(filePath, encodeWav(audio, sampleRate, 'float32')) // others would clip loud takes
    return filePath
  })
}

/**
 * Answer a message of the window's page, and of no frame in it or other page. Electron would put its own words before an
 * error's, so errors are values.
 *
 * @param {BrowserWindow} window
 * @param {string} channel
 * @param {(value: any) => any} reply
 */
function handle(window, channel, reply) {
  ipcMain.handle(channel, async ({ sender, senderFrame }, value) => {
    const isPage = sender === window.webContents && senderFrame?.parent === null && senderFrame.url.startsWith(PAGE)
    if (!isPage) return { error: `${channel}: not from the window's page` }
    try {
      return { value: await reply(value) }
    } catch (error) {
      return { error: /** @type {Error} */ (error).message }
    }
  })
}

/** The page stays the page: it opens nothing, goes nowhere, and gets no permission. @param {import('electron').WebContents} contents */
function lock(contents) {
  contents.setWindowOpenHandler(() => ({ action: 'deny' }))
  const events = /** @type {'will-navigate'[]} */ ([
    'will-navigate',
    'will-frame-navigate',
    'will-redirect',
    'will-attach-webview',
  ])
  for (const event of events) contents.on(event, (given) => given.preventDefault())
  contents.session.setPermissionRequestHandler((_contents, _name, reply) => reply(false))
  contents.session.setPermissionCheckHandler(() => false)
}
