/**
 * The page of `clean-lm serve` in headless Chromium, beside the real service with tiny bundles.
 *
 *     CLEAN_LM_PYTHON=/path/to/python node --test js/test/service.test.js
 *
 * The default is the checkout's .venv. SCREENSHOTS=folder keeps screenshots there.
 */

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { chromium } from 'playwright-core'
import { executablePath, FLAGS, skip as noChromium } from './chromium.js'
import { KIT } from './kit.js'

/** @typedef {import('playwright-core').Page} Page */

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const LOOP = join(ROOT, 'demo/loop.wav')
const places = [process.env.CLEAN_LM_PYTHON, join(ROOT, '.venv/bin/python'), join(ROOT, '.venv/Scripts/python.exe')]
const python = places.find((path) => path && existsSync(path)) ?? ''
const skip = noChromium || (python ? false : `no Python in ${places.filter(Boolean).join(', ')}: set CLEAN_LM_PYTHON`)
const SLOW = { timeout: 300_000 } // a hang; other tests may take the processor
const TOKEN = 'a secret & more'
/** @type {(() => Promise<void>)[]} */
const stops = [] // of all services, so that none is left when a test fails
const folder = mkdtempSync(join(tmpdir(), 'clean-lm-service-'))

/** Start a service with its own folder for jobs. @param {string} name @param {...string} options */
async function serve(name, ...options) {
  const models = ['--models', join(KIT, 'bundles'), '--data', join(folder, name), '--threads', '1']
  const args = ['-m', 'clean_lm', 'serve', '--port', '0', ...models, ...options]
  const env = { ...process.env, OMP_NUM_THREADS: '1', CLEAN_LM_CACHE: join(folder, 'cache') }
  const child = spawn(python, args, { cwd: ROOT, env, stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  /** @type {string} */
  const url = await new Promise((resolve, reject) => {
    child.stderr.on('data', (text) => {
      const found = /listening on (\S+)\n/.exec((said += text))
      if (found) resolve(found[1])
    })
    child.on('exit', (code) => reject(new Error(`clean-lm serve ended with ${code}: ${said}`)))
  })
  const stop = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGTERM')
    await once(child, 'exit')
  }
  stops.push(stop)
  return { url, stop }
}

/** @param {Page} page @param {string} name */
async function shot(page, name) {
  const { SCREENSHOTS } = process.env
  if (!SCREENSHOTS) return
  mkdirSync(SCREENSHOTS, { recursive: true })
  for (const colorScheme of /** @type {const} */ (['dark', 'light'])) {
    await page.emulateMedia({ colorScheme })
    await page.screenshot({ path: join(SCREENSHOTS, `${name}-${colorScheme}.png`), fullPage: true })
  }
}

/** Fill in the form. @param {Page} page @param {Record<string, string | number>} values by the fields' names */
async function fill(page, values) {
  await page.locator('#more').evaluate((element) => element.setAttribute('open', ''))
  for (const [name, value] of Object.entries(values)) {
    const control = page.locator(`#settings [name=${name}]`)
    if (await control.evaluate((element) => element instanceof HTMLSelectElement))
      await control.selectOption(String(value))
    else await control.fill(String(value))
  }
}

/** Start a job and give its row, which is the first. @param {Page} page @param {Record<string, string | number>} values */
async function start(page, values) {
  await fill(page, values)
  const before = await page.locator('.job').count()
  const answer = page.waitForResponse((response) => /\/v1\/jobs$/.test(response.url()))
  await page.getByRole('button', { name: 'Continue the loop' }).click()
  const job = await (await answer).json()
  await page.locator('.job').nth(before).waitFor()
  return { job, row: page.locator('.job').first() }
}

const SHORT = { model: 'text', text: 'warm pads', prompt_seconds: 1, duration: 4, takes: 2, seed: 7, temperature: 1 }
const LONG = { ...SHORT, duration: 250, takes: 1 }

describe('the page of the service', { skip, timeout: 900_000 }, () => {
  /** @type {import('playwright-core').Browser} */
  let browser
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let service
  /** @type {Page} */
  let page
  /** @type {string[]} */
  const failures = []

  before(async () => {
    service = await serve('open')
    browser = await chromium.launch({ executablePath, args: FLAGS })
    page = await browser.newPage({ viewport: { width: 1000, height: 900 } })
    page.on('pageerror', (error) => failures.push(String(error)))
    page.on('console', (message) => message.type() === 'error' && failures.push(message.text()))
    await page.goto(service.url)
  })
  after(async () => {
    await browser?.close()
    for (const stop of stops) await stop()
    rmSync(folder, { recursive: true })
  })

  test('lists the models, and asks for a text where a model takes one', async () => {
    await page.locator('#model option').first().waitFor({ state: 'attached' })
    assert.deepEqual(await page.locator('#model option').allInnerTexts(), ['melody', 'standard', 'stereo', 'text'])
    await page.locator('#model').selectOption('stereo')
    assert.equal(await page.locator('#text').isVisible(), false)
    await page.locator('#model').selectOption('text')
    assert.equal(await page.locator('#text').isVisible(), true)
    assert.equal(await page.locator('#duration').inputValue(), '30')
    assert.equal(await page.locator('#start').isDisabled(), true)
    await shot(page, 'empty')
  })

  test('a loop that is dropped is shown and can be heard', async () => {
    const bytes = [...readFileSync(LOOP)]
    await page.evaluate((bytes) => {
      const dataTransfer = new DataTransfer()
      dataTransfer.items.add(new File([Uint8Array.from(bytes)], 'drop.wav'))
      for (const type of ['dragover', 'drop'])
        document.body.dispatchEvent(new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer }))
    }, bytes)
    assert.equal(await page.locator('#loop-name').innerText(), 'drop.wav')
    assert.equal(await page.locator('#start').isDisabled(), false)
    await page.waitForFunction(() => /** @type {any} */ (document.getElementById('loop')).duration === 4, null, SLOW)
  })

  test('a job shows how far it is, is heard while it is made, and can be cancelled', async () => {
    await page.locator('#file').setInputFiles(LOOP)
    const streamed = page.waitForResponse((response) => /\/stream\?/.test(response.url()))
    const { job, row } = await start(page, LONG)
    assert.deepEqual(
      [job.request.text, job.request.prompt_seconds, job.request.duration, job.request.seed, job.request.join],
      ['warm pads', 1, 250, 7, 'splice'],
    )
    const stream = await streamed
    assert.deepEqual([stream.status(), stream.headers()['content-type']], [200, 'audio/wav'])
    await row.getByText(/^[1-9]\d? %, about \d+ s left$/).waitFor(SLOW)
    await page.waitForFunction(
      () => {
        const audio = document.querySelector('.live audio')
        return audio instanceof HTMLAudioElement && !audio.paused && audio.currentTime > 0.5
      },
      null,
      SLOW,
    )
    const waiting = await start(page, { ...LONG, model: 'standard' })
    await waiting.row.getByText(/^Next in the queue/).waitFor(SLOW)
    assert.equal(
      await page.locator('.live audio').evaluateAll((all) => all.filter((one) => !Reflect.get(one, 'paused')).length),
      1,
    )
    await shot(page, 'running')
    await waiting.row.getByRole('button', { name: /^Cancel/ }).click()
    await waiting.row.getByText('Cancelled.').waitFor(SLOW)
    const first = page.locator('.job').last()
    await first.getByRole('button', { name: /^Cancel/ }).focus()
    await page.keyboard.press('Enter')
    await first.getByText('Cancelled.').waitFor(SLOW)
    assert.equal(await page.evaluate(() => document.activeElement?.textContent), 'Again')
    assert.equal((await (await fetch(`${service.url}v1/jobs/${job.id}`)).json()).status, 'cancelled')
    for (const _ of [1, 2])
      await page
        .getByRole('button', { name: /^Delete/ })
        .first()
        .click()
    await page.locator('.job').waitFor({ state: 'detached' })
  })

  /** Wait for a job's takes. @param {import('playwright-core').Locator} row @param {number} number */
  async function takesOf(row, number) {
    await row
      .locator('.takes li')
      .nth(number - 1)
      .waitFor(SLOW)
    return row.locator('.takes li')
  }

  test('each take has its seed, plays, and is downloaded in three formats', async () => {
    const { job, row } = await start(page, SHORT)
    const takes = await takesOf(row, 2)
    assert.deepEqual(await takes.locator('p').allInnerTexts(), ['Take 1, seed 7', 'Take 2, seed 8'])
    await row.getByText(/^7\.0 s, made in [\d.]+ s: [\d.]+× real time\. The new part begins at 4\.0 s\.$/).waitFor()
    await takes.last().getByRole('button', { name: 'From the seam' }).click()
    await page.waitForFunction(
      () => {
        const audio = [...document.querySelectorAll('.job:first-child .takes audio')].at(-1)
        return (
          audio instanceof HTMLAudioElement &&
          audio.currentTime > 2.2 &&
          !audio.paused &&
          Math.abs(audio.duration - 7) < 0.05
        )
      },
      null,
      SLOW,
    )
    await shot(page, 'done')
    for (const [format, magic] of [
      ['WAV', 'RIFF'],
      ['FLAC', 'fLaC'],
      ['OGG', 'OggS'],
    ]) {
      const download = page.waitForEvent('download')
      await takes
        .first()
        .getByRole('link', { name: `Download take 1 as ${format}` })
        .click()
      const file = await download
      const bytes = readFileSync(await file.path())
      const kind = format.toLowerCase()
      const wanted = await fetch(`${service.url}v1/jobs/${job.id}/takes/1.${kind}`)
      assert.equal(bytes.toString('latin1', 0, 4), magic)
      assert.deepEqual(bytes, Buffer.from(await wanted.arrayBuffer()))
      assert.match(file.suggestedFilename(), RegExp(`^[\\w-]+\\.${kind}$`))
    }
    assert.equal(await row.locator('.live audio').count(), 0) // what was heard while it was made is a take now
  })

  test('Again makes another take of the same audio with a new seed', async () => {
    const earlier = page.locator('.job').last()
    const answer = page.waitForResponse((response) => /\/retry$/.test(response.url()))
    await earlier.getByRole('button', { name: /^Again/ }).click()
    const job = await (await answer).json()
    const takes = await takesOf(page.locator('.job').first(), 2)
    assert.notEqual(job.request.seed, 7)
    assert.match(await takes.first().innerText(), RegExp(`Take 1, seed ${job.request.seed}\\b`))
    assert.equal(await page.locator('.job').count(), 2)
  })

  test('settings and jobs are there again after a reload', async () => {
    await page.reload()
    await takesOf(page.locator('.job').nth(1), 2)
    assert.equal(await page.locator('#text').inputValue(), 'warm pads')
    assert.deepEqual(await page.locator('.job').last().locator('.takes p').allInnerTexts(), [
      'Take 1, seed 7',
      'Take 2, seed 8',
    ])
    assert.equal(await page.locator('#seed').inputValue(), '7')
  })

  test('a job is deleted', async () => {
    const answer = page.waitForResponse((response) => response.request().method() === 'DELETE')
    await page
      .locator('.job')
      .first()
      .getByRole('button', { name: /^Delete/ })
      .click()
    const { status, url } = { status: (await answer).status(), url: (await answer).url() }
    assert.equal(status, 204)
    await page.waitForFunction(() => document.querySelectorAll('.job').length === 1)
    assert.equal((await fetch(url)).status, 404)
    assert.equal(await page.evaluate(() => document.activeElement?.id), 'takes-title')
  })

  test('what the service refuses is shown in its own words', async () => {
    const refused = failures.length
    await page
      .locator('#file')
      .setInputFiles({ name: 'no.wav', mimeType: 'audio/wav', buffer: Buffer.from('no sound') })
    await fill(page, SHORT)
    const answer = page.waitForResponse((response) => /\/v1\/jobs$/.test(response.url()))
    await page.locator('#start').click()
    const problem = await (await answer).json()
    assert.equal(problem.status, 422)
    await page.locator('#alert').waitFor()
    assert.equal(await page.locator('#alert-text').innerText(), problem.detail)
    await shot(page, 'refused')
    await page.getByRole('button', { name: 'Close the message' }).click()
    assert.equal(await page.locator('#alert').isVisible(), false)
    failures.splice(refused) // the browser writes a line of its own for a status of 422
  })

  test('a value that cannot be right is not sent, though its field was folded away', async () => {
    await fill(page, { temperature: -1 })
    await page.locator('#more').evaluate((element) => element.removeAttribute('open'))
    await page.locator('#start').click()
    assert.equal(await page.evaluate(() => document.activeElement?.id), 'temperature')
    await fill(page, { temperature: 1 })
  })

  test('with a tempo a take is whole bars, which go round', async () => {
    await page.locator('#file').setInputFiles(LOOP)
    await page.locator('#bars-more summary').click()
    await page.getByLabel('The end meets the beginning').check()
    const { job, row } = await start(page, { ...SHORT, takes: 1, bpm: 500, prompt_bars: 2, bars: 6 })
    assert.deepEqual([job.request.bars, job.request.loop, job.request.prompt_bars], [6, true, 2])
    await row.getByText(/^Take 1, seed/).waitFor(SLOW)
    const { result } = await (await fetch(`${service.url}v1/jobs/${job.id}`)).json()
    assert.equal(result.duration, 3.84 + 4 * 0.48) // 8 bars of 0.48 s of the loop, then 4 new ones
    assert.equal(await row.locator('.takes audio').evaluate((audio) => Reflect.get(audio, 'loop')), true)
    await shot(page, 'bars')
    await page.reload()
    assert.equal(await page.locator('#bpm').inputValue(), '500')
    assert.equal(await page.locator('#bpm').isVisible(), true)
    await page.getByLabel('The end meets the beginning').uncheck()
    for (const name of ['bpm', 'prompt_bars', 'bars']) await page.locator(`#settings [name=${name}]`).fill('')
  })

  test('a melody model is given a melody', async () => {
    await page.locator('#model').selectOption('melody')
    await page.locator('#file').setInputFiles(LOOP)
    await page.getByLabel('Melody').setInputFiles(LOOP)
    const { text: _, ...values } = SHORT
    const { row } = await start(page, { ...values, model: 'melody', takes: 1 })
    const form = page.locator('#settings')
    assert.equal(
      await form.evaluate((form) => Reflect.get(new FormData(/** @type {any} */ (form)).get('melody') ?? {}, 'name')),
      'loop.wav',
    )
    await row.getByText(/^Take 1, seed/).waitFor(SLOW)
    await page.locator('#model').selectOption('text')
    assert.equal(await page.locator('#reference').isVisible(), false)
  })

  test('every control has a name, is reached by the keyboard, and shows the focus', async () => {
    const unnamed = await page.evaluate(() => {
      const named = (/** @type {Element} */ element) =>
        element.getAttribute('aria-label') || element.textContent?.trim() || Reflect.get(element, 'labels')?.length
      const controls = [...document.querySelectorAll('button, a, select, input, audio, progress')]
      return controls
        .filter((element) => element.checkVisibility() && !named(element))
        .map(({ outerHTML }) => outerHTML)
    })
    assert.deepEqual(unnamed, [])
    const { count, seen } = await page.evaluate(() => {
      const controls = [...document.querySelectorAll('button, a, select, input, summary')]
      const open = controls.filter((element) => element.checkVisibility() && !element.matches(':disabled'))
      document.body.focus()
      return { count: open.length, seen: open.map((element, i) => (Reflect.set(element, 'number', i), i)) }
    })
    const reached = new Set()
    for (let i = 0; i < 6 * count && reached.size < count; i++) {
      await page.keyboard.press('Tab')
      const { number, outline } = await page.evaluate(() => {
        const element = /** @type {Element} */ (document.activeElement)
        const shown = element.id === 'file' ? /** @type {Element} */ (document.getElementById('choose')) : element
        return { number: Reflect.get(element, 'number'), outline: getComputedStyle(shown).outlineStyle }
      })
      if (number === undefined) continue // a part of a player
      assert.equal(outline, 'solid')
      reached.add(number)
    }
    assert.deepEqual(
      [...reached].sort((a, b) => a - b),
      seen,
    )
  })

  test('on a phone nothing is cut off, and all controls are large enough', async () => {
    const jobs = await page.evaluate(() => localStorage.getItem('clean-lm-jobs') ?? '')
    const viewport = { width: 360, height: 740 }
    const context = await browser.newContext({ viewport, isMobile: true, hasTouch: true })
    const phone = await context.newPage()
    await phone.addInitScript((jobs) => localStorage.setItem('clean-lm-jobs', jobs), jobs)
    await phone.goto(service.url)
    await takesOf(phone.locator('.job').first(), 1)
    await phone.locator('#file').setInputFiles(LOOP)
    for (const part of ['#more', '#bars-more']) await phone.locator(`${part} summary`).tap()
    const { wide, small } = await phone.evaluate(() => {
      const controls = [
        ...document.querySelectorAll('button, a, select, input:not(.sr, [type=checkbox]), .check, .button, summary'),
      ]
      const small = controls.filter((element) => {
        const { width, height } = element.getBoundingClientRect()
        return element.checkVisibility() && (width < 44 || height < 44)
      })
      return { wide: document.documentElement.scrollWidth, small: small.map(({ outerHTML }) => outerHTML) }
    })
    assert.equal(wide, 360)
    assert.deepEqual(small, [])
    await shot(phone, 'phone')
    await context.close()
  })

  test('a token is asked for, kept in the tab, and sent with sound, too', async () => {
    const own = await serve('token', '--token', TOKEN)
    const visitor = await browser.newPage()
    await visitor.goto(own.url)
    const token = visitor.getByRole('textbox', { name: 'Token' })
    await token.fill('another token')
    await token.press('Enter')
    await visitor.getByText('The service does not know that token.').waitFor(SLOW)
    await shot(visitor, 'token')
    await token.fill(TOKEN)
    await visitor.getByRole('button', { name: 'Use it' }).click()
    await visitor.locator('#model option').first().waitFor({ state: 'attached' })
    const kept = await visitor.evaluate(() => [sessionStorage.getItem('token'), JSON.stringify(localStorage)])
    assert.equal(kept[0], TOKEN)
    assert.doesNotMatch(kept[1] ?? '', /secret/)
    await visitor.locator('#file').setInputFiles(LOOP)
    const { row } = await start(visitor, SHORT)
    const takes = await takesOf(row, 2)
    const download = visitor.waitForEvent('download')
    await takes.first().getByRole('link', { name: 'Download take 1 as FLAC' }).click()
    assert.equal(readFileSync(await (await download).path()).toString('latin1', 0, 4), 'fLaC')
    await visitor.evaluate(() => /** @type {HTMLAudioElement} */ (document.querySelector('.takes audio')).play())
    const streamed = visitor.waitForResponse((response) => /\/stream\?/.test(response.url()))
    const running = await start(visitor, LONG)
    assert.equal((await streamed).status(), 200)
    await own.stop()
    await running.row.getByText('The service does not answer: is clean-lm serve still running?').waitFor(SLOW)
    await shot(visitor, 'gone')
    await visitor.close()
  })

  test('without the token nothing is sent again and again', async () => {
    const own = await serve('refused', '--token', TOKEN)
    const visitor = await browser.newPage()
    let requests = 0
    visitor.on('request', (request) => (requests += Number(request.url().includes('/v1/'))))
    await visitor.goto(own.url)
    await visitor.getByRole('button', { name: 'Not now' }).click()
    await visitor.getByText('load the page again to enter it').waitFor()
    await visitor.waitForTimeout(3000)
    assert.equal(requests, 1)
    await visitor.close()
    await own.stop()
  })

  test('the page has broken no rule of its policy and thrown no error', () => assert.deepEqual(failures, []))
})
