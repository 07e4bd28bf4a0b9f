/**
 * The Electron app without Electron: its main process and its model's process in Node, its page and preload script in
 * Chromium, with electron.js in place of Electron.
 */

import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'

import * as ort from 'onnxruntime-node'
import { chromium } from 'playwright-core'

import { decodeWav, encodeWav, MusicGen } from '../src/index.js'
import { executablePath, FLAGS, skip } from './chromium.js'
import { app, seen } from './electron.js'
import './electron_hooks.js'
import { BUNDLE, clip } from './kit.js'

/** @typedef {import('playwright-core').Page} Page */

const SLOW = { timeout: 60_000 }
const APP = new URL('../electron/', import.meta.url)
const appFile = (/** @type {string} */ name) => readFile(new URL(name, APP), 'utf8')

/** Send a message as the window's page does. @param {string} channel @param {any} [value] @param {any} [frame] */
async function ask(channel, value, frame = seen.window?.webContents.mainFrame) {
  const event = { sender: seen.window?.webContents, senderFrame: frame }
  return seen.handlers.get(channel)?.(event, structuredClone(value))
}

/** @type {string} */
let folder
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'clean-lm-electron-'))
  process.argv[2] = BUNDLE
  await import('../electron/main.js')
  assert.deepEqual(Object.keys((await ask('ready')).value), ['sampleRate', 'native'])
})
after(async () => {
  app.emit('window-all-closed')
  assert.equal(seen.hasQuit, true)
  await rm(folder, { recursive: true })
})

describe('the main process', () => {
  test("its window is as Electron's security checklist asks", async () => {
    const { webPreferences } = seen.window?.options
    assert.match(webPreferences.preload, /preload\.cjs$/)
    delete webPreferences.preload
    assert.deepEqual(webPreferences, { contextIsolation: true, sandbox: true, nodeIntegration: false })
    assert.equal(seen.isSandboxed, true)
    assert.deepEqual(seen.schemes, [{ scheme: 'app', privileges: { standard: true, secure: true } }])
    const contents = seen.window?.webContents
    assert.deepEqual(contents?.opener({}), { action: 'deny' })
    for (const event of ['will-navigate', 'will-frame-navigate', 'will-redirect', 'will-attach-webview']) {
      let isPrevented = false
      contents?.emit(event, { preventDefault: () => (isPrevented = true) })
      assert.ok(isPrevented, event)
    }
    assert.equal(contents?.session.onCheck(), false)
    contents?.session.onRequest(null, 'media', (allowed) => assert.equal(allowed, false))
    assert.match(await appFile('index.html'), /default-src 'none'; script-src 'self'; style-src 'self'/)
  })

  test("it serves the page's files, and nothing else", async () => {
    assert.equal(seen.window?.url, 'app://page/index.html')
    const get = async (/** @type {string} */ path) => await seen.protocols.app({ url: `app://page/${path}` })
    assert.equal(await (await get('window.js')).text(), await appFile('window.js'))
    assert.equal((await get('window.js')).headers.get('content-type'), 'text/javascript; charset=utf-8')
    for (const path of ['', 'main.js', 'model.js', '../window.js', '%2e%2e/README.md', 'window.js?a']) {
      assert.equal((await get(path)).status, 404, path)
    }
    assert.equal((await seen.protocols.app({ url: 'app://other/window.js' })).status, 404)
  })

  test('other pages and frames get no answer', async () => {
    const page = 'app://page/index.html'
    const wrong = [null, { url: page, parent: {} }, { url: 'https://example.org/', parent: null }]
    for (const channel of seen.handlers.keys()) {
      for (const frame of wrong) assert.match((await ask(channel, {}, frame)).error, /not from the window's page/)
      const other = await seen.handlers.get(channel)?.({ sender: {}, senderFrame: { url: page, parent: null } })
      assert.match(other.error, /not from the window's page/)
    }
    assert.deepEqual([...seen.handlers.keys()], ['ready', 'continue', 'cancel', 'save'])
  })

  test('one generation at a time; errors are in words', async () => {
    const request = { audio: clip(0.2, 44100), sampleRate: 44100, options: { duration: 20 } }
    const running = ask('continue', request)
    assert.match((await ask('continue', request)).error, /^a generation is running/)
    await ask('cancel')
    assert.deepEqual(await running, { value: { cancelled: true } })
    const short = { ...request, options: { duration: 0.1 } }
    assert.match((await ask('continue', short)).error, /^audio: got 0.20 s, expected less than duration/)
    assert.match((await ask('continue', { ...request, options: { signal: 1 } })).error, /^options: got signal/)
  })

  test('a sound that cannot be saved', async () => {
    const sound = { name: 'a', audio: clip(0.1, 8000), sampleRate: 8000 }
    seen.filePath = undefined
    assert.deepEqual(await ask('save', sound), { value: null })
    seen.filePath = join(folder, 'none', 'a.wav')
    assert.match((await ask('save', sound)).error, /no such file or directory/)
    assert.match((await ask('save', { ...sound, sampleRate: 0 })).error, /^sampleRate: got 0/)
  })
})

describe('the page', { skip, timeout: 200_000 }, () => {
  /** @type {import('playwright-core').Browser} */
  let browser
  /** @type {Page} */
  let page
  /** @type {{ name: string, mimeType: string, buffer: Buffer }} */
  let loop
  /** @type {string[]} */
  const failures = []

  before(async () => {
    browser = await chromium.launch({ executablePath, args: FLAGS })
    page = await browser.newPage()
    page.on('pageerror', (error) => failures.push(error.message))
    page.on('console', (message) => message.type() === 'error' && failures.push(message.text()))
    await page.route('http://localhost/**', async (route) => {
      const { pathname } = new URL(route.request().url())
      const response = await seen.protocols.app({ url: `app://page${pathname}` })
      const headers = Object.fromEntries(response.headers)
      await route.fulfill({ status: response.status, headers, body: await response.text() })
    })
    await page.exposeFunction('invoke', ask)
    seen.onSend = (channel, value) =>
      page.evaluate(([channel, value]) => Reflect.get(globalThis, 'hear')(channel, value), [channel, value])
    await page.addInitScript(`{
      const listeners = {}
      globalThis.hear = (channel, value) => listeners[channel]({}, value)
      const contextBridge = { exposeInMainWorld: (name, value) => (globalThis[name] = value) }
      const on = (channel, listener) => (listeners[channel] = listener)
      const ipcRenderer = { invoke: (...given) => globalThis.invoke(...given), on }
      new Function('require', ${JSON.stringify(await appFile('preload.cjs'))})(() => ({ contextBridge, ipcRenderer }))
    }`)
    await page.goto('http://localhost/index.html')
    await page.getByText('Ready', { exact: true }).waitFor(SLOW)
    const rate = await page.evaluate(() => new AudioContext().sampleRate) // so that the page does not resample it
    loop = {
      name: 'a loop.wav',
      mimeType: 'audio/wav',
      buffer: Buffer.from(encodeWav(clip(0.2, rate), rate, 'float32')),
    }
  })
  after(async () => {
    seen.onSend = () => {}
    await ask('cancel')
    await browser?.close()
  })

  test('two takes are those of the model, and are saved as WAV', async () => {
    await page.locator('#file').setInputFiles(loop)
    await page.locator('#seconds').fill('1')
    await page.locator('#takes').fill('2')
    await page.locator('#start').click()
    await page.getByText('Done', { exact: true }).waitFor(SLOW)
    assert.equal(await page.locator('#progress').evaluate((bar) => Reflect.get(bar, 'value')), 1)
    const lines = await page.locator('#results li').allInnerTexts()
    assert.match(lines[0], /^a loop seed 7, 1\.2 s/)
    assert.match(lines[1], /^a loop seed 8, 1\.2 s/)
    seen.filePath = join(folder, 'take.wav')
    await page.getByText('Save…').nth(1).click()
    await page.getByText(`Saved as ${seen.filePath}`).waitFor()
    assert.equal(seen.dialog.defaultPath, 'a loop seed 8.wav')
    const { audio, sampleRate } = decodeWav(await readFile(seen.filePath))
    const model = await MusicGen.load(BUNDLE, { ort: /** @type {any} */ (ort) })
    const prompt = decodeWav(loop.buffer)
    const options = { duration: prompt.audio[0].length / prompt.sampleRate + 1, takes: 2, seed: 7 }
    const { takes } = await model.generateContinuation(prompt.audio, prompt.sampleRate, options)
    assert.equal(sampleRate, model.sampleRate)
    assert.equal(audio[0].length, takes[1].audio[0].length)
    const off = Math.max(...takes[1].audio[0].map((x, i) => Math.abs(x - audio[0][i])))
    assert.ok(off < 1e-5, `differs by ${off}`)
  })

  test('a take is played and stopped', async () => {
    await page.getByText('Play').first().click()
    await page.getByText('Stop').first().click()
    assert.deepEqual(failures, [])
  })

  test('a generation is cancelled, and what there is is kept', async () => {
    await page.locator('#seconds').fill('300')
    await page.locator('#takes').fill('1')
    const send = seen.onSend
    const chunk = new Promise((resolve) => {
      seen.onSend = async (channel, value) => {
        await send(channel, value)
        if (channel === 'chunk') resolve(undefined)
      }
    })
    await page.locator('#start').click()
    await chunk // without one, nothing would be kept
    seen.onSend = send
    assert.ok((await page.locator('#progress').evaluate((bar) => Number(Reflect.get(bar, 'value')))) > 0)
    assert.equal(await page.locator('#start').isDisabled(), true)
    await page.locator('#cancel').click()
    await page.getByText('Cancelled').waitFor(SLOW)
    assert.equal(await page.locator('#start').isEnabled(), true)
    assert.equal(await page.locator('#cancel').isDisabled(), true)
    assert.match(await page.locator('#results li').innerText(), /^a loop seed 7, \d+\.\d s/)
  })

  test('errors are shown in words', async () => {
    await page.locator('#file').setInputFiles({ ...loop, name: 'notes.txt', buffer: Buffer.from('no audio') })
    await page.locator('#start').click()
    await page.getByText('“notes.txt” is not audio that can be read here').waitFor()
    await page.locator('#file').setInputFiles(loop)
    await page.locator('#description').fill('x'.repeat(10_001))
    await page.locator('#start').click()
    await page.getByText('description: got a text of 10001 characters').waitFor()
    assert.equal(await page.locator('#status').getAttribute('class'), 'error')
    assert.equal(await page.locator('#start').isEnabled(), true)
  })

  test('its policy allows no other script, and nothing of another place', async () => {
    failures.length = 0
    const blocked = await page.evaluate(async () => {
      const script = Object.assign(document.createElement('script'), { textContent: 'globalThis.ran = true' })
      document.body.append(script)
      const fetched = await fetch('http://localhost/window.js').then(
        () => true,
        () => false,
      )
      return { ran: Reflect.get(globalThis, 'ran'), fetched }
    })
    assert.deepEqual(blocked, { ran: undefined, fetched: false })
    assert.match(failures.join('\n'), /Content Security Policy/)
  })
})

test("electron-builder's configuration packs every file of the app that it runs", async () => {
  const { files } = JSON.parse(await appFile('electron-builder.json'))
  const packed = (/** @type {string} */ name) => /^[^/]*\.(js|cjs|css)$/.test(name) || files.includes(name)
  assert.equal(files[0], '*.{js,cjs,css}')
  const left = (await readdir(APP)).filter((name) => !packed(name) && !name.startsWith('.'))
  const builds = ['README.md', 'bundle', 'dist', 'electron-builder.json', 'node_modules', 'package-lock.json']
  assert.deepEqual(
    left.filter((name) => !builds.includes(name)),
    [],
  )
})
