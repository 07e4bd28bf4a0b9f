/**
 * The demo page in headless Chromium, with WASM, and with WebGPU on a software adapter.
 *
 *     CHROMIUM=/path/to/chromium node --test js/test/browser.test.js
 *
 * SCREENSHOTS=folder keeps screenshots there.
 */

import assert from 'node:assert/strict'
import { mkdirSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import * as node from 'onnxruntime-node'
import { chromium } from 'playwright-core'
import { backendFor, explain, memoryNote, paceNote, variantFor } from '../demo/machine.js'
import { serve } from '../demo/serve.js'
import { decodeWav, MusicalTime, MusicGen } from '../src/index.js'
import { executablePath, FLAGS, skip } from './chromium.js'
import { clip as tones, KIT } from './kit.js'

/**
 * @typedef {import('playwright-core').Page} Page
 * @typedef {{ codes: number[][], samples: number[][], seam: number, state: string }} TakeResult a take's result in the page
 */

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..')
const bundles = ['text', 'stereo'].map((name) => join(KIT, 'bundles', name))
const loop = join(root, 'demo/loop.wav')
const shots = process.env.SCREENSHOTS ?? join(tmpdir(), 'clean-lm-page')

const SOFTWARE_GPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-unsafe-swiftshader']
const SLOW = { timeout: 300_000 } // beside the tests of Python, on two cores

/** A case of the conformance kit: its arguments, and the expected codes and audio. @param {string} name */
function kitCase(name) {
  const { cases } = JSON.parse(readFileSync(join(KIT, 'cases.json'), 'utf8'))
  const { given, expected } = cases.find((/** @type {any} */ one) => one.name === name)
  const arrays = new Uint8Array(readFileSync(join(KIT, 'arrays.bin'))).buffer
  return {
    ...given,
    audio: rows(given.audio, arrays),
    codes: rows(expected.codes, arrays),
    sound: rows(expected.audio, arrays),
  }
}

/**
 * Nest an array of the kit, with typed arrays for the last axis.
 *
 * @param {{ dtype: string, shape: number[], at: number }} array
 * @param {ArrayBuffer} arrays
 * @returns {any}
 */
function rows({ dtype, shape: [first, ...rest], at }, arrays) {
  if (!rest.length) return new (dtype === 'float32' ? Float32Array : Int32Array)(arrays, at, first)
  const bytes = 4 * rest.reduce((product, n) => product * n, 1)
  return Array.from({ length: first }, (_, i) => rows({ dtype, shape: rest, at: at + i * bytes }, arrays))
}

/** A WAV file of floats, so that samples are not rounded. @param {Float32Array[]} audio @param {number} rate */
function floatWav(audio, rate) {
  const [channels, samples] = [audio.length, audio[0].length]
  const file = Buffer.alloc(44 + 4 * channels * samples)
  file.write('RIFF')
  file.writeUInt32LE(file.length - 8, 4)
  file.write('WAVEfmt ', 8)
  file.writeUInt32LE(16, 16)
  file.writeUInt16LE(3, 20) // floats
  file.writeUInt16LE(channels, 22)
  file.writeUInt32LE(rate, 24)
  file.writeUInt32LE(4 * channels * rate, 28)
  file.writeUInt16LE(4 * channels, 32)
  file.writeUInt16LE(32, 34)
  file.write('data', 36)
  file.writeUInt32LE(4 * channels * samples, 40)
  for (let i = 0, at = 44; i < samples; i++) for (const channel of audio) at = file.writeFloatLE(channel[i], at)
  return file
}

const DRAWN = kitCase('whole: a description, two takes')
const GREEDY = kitCase('whole: greedy')
const clip = { name: 'clip.wav', mimeType: 'audio/wav', buffer: floatWav(DRAWN.audio, DRAWN.sample_rate) }

/** @param {Page} page @param {string} url @param {string} query */
async function open(page, url, query) {
  await page.goto(`${url}?${query}`)
  await page.getByText('The model is ready').waitFor(SLOW)
}

/** Fill the form with a case's arguments. @param {Page} page @param {any} given */
async function fill(page, { description, seed, duration, sampling }) {
  await page.locator('#file').setInputFiles(clip)
  await page.getByText('the coloured part is continued').waitFor()
  await page.locator('details').evaluate((element) => element.setAttribute('open', ''))
  const fields = {
    text: description ?? '',
    seed,
    duration,
    temperature: sampling.temperature,
    topk: sampling.top_k,
    cfg: sampling.cfg_coef,
  }
  for (const [id, value] of Object.entries(fields)) await page.locator(`#${id}`).fill(String(value))
}

/** Wait until a take is complete. @param {Page} page @param {number} number @returns {Promise<TakeResult>} */
async function takeResult(page, number) {
  await page.waitForFunction((n) => Reflect.get(window, 'cleanLm').lastTake?.number === n, number, SLOW)
  return page.evaluate(() => {
    const { codes, samples, seam, state } = Reflect.get(window, 'cleanLm').lastTake
    const plain = (/** @type {ArrayLike<number>[]} */ rows) => rows.map((row) => Array.from(row))
    return { codes: plain(codes), samples: plain(samples), seam, state }
  })
}

/** @param {TakeResult} take @param {any} expected @param {number} row */
function assertTake({ codes, samples }, expected, row) {
  assert.deepEqual(
    codes,
    expected.codes[row].map((/** @type {Int32Array} */ codebook) => Array.from(codebook)),
  )
  const wanted = expected.sound[row][0]
  assert.equal(samples[0].length, wanted.length)
  const off = Math.max(...samples[0].map((sample, i) => Math.abs(sample - wanted[i])))
  const loudest = Math.max(...wanted.map(Math.abs))
  assert.ok(off <= 1e-4 * loudest, `sound differs by ${off}, its largest sample is ${loudest}`)
}

/**
 * The codes of two takes of two prompts, one of them with a text: the page runs it too.
 *
 * @param {typeof MusicGen} Model
 * @param {string} bundle
 * @param {import('../src/index.js').LoadOptions} options
 */
async function takesOfPrompts(Model, bundle, options) {
  const model = await Model.load(bundle, { ...options, tokenizer: () => ({ encode: () => ({ ids: [5, 7, 1] }) }) })
  const tone = (/** @type {number} */ pitch) => [Float32Array.from({ length: 9000 }, (_, i) => Math.sin(i * pitch) / 3)]
  const greedy = { duration: 0.6, takes: 2, temperature: 0, description: ['a', null] }
  const { takes } = await model.generateContinuation([tone(0.03), tone(0.06)], 32000, greedy)
  return takes.map(({ codes }) => codes.map((row) => Array.from(row)))
}

/** In the page: how wide it is, and which controls are smaller than a finger. */
function sizes() {
  const controls = [
    ...document.querySelectorAll('button, select, input:not(.sr), label.button, summary, [role=slider]'),
  ]
  const small = controls.filter((element) => {
    const { width, height } = element.getBoundingClientRect()
    return element.checkVisibility() && (width < 44 || height < 44)
  })
  return { wide: document.documentElement.scrollWidth, small: small.map(({ outerHTML }) => outerHTML) }
}

describe('the demo page', { skip, timeout: 900_000 }, () => {
  /** @type {import('playwright-core').Browser} */
  let browser
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let server
  /** @type {Page} shared by most tests, each of which goes on where the one before ended */
  let page
  /** @type {string[]} */
  const failures = []
  /** @type {(of: Page, name: string) => Promise<unknown>} */
  const shot = (of, name) => of.screenshot({ path: join(shots, `${name}.png`), fullPage: true })

  before(async () => {
    mkdirSync(shots, { recursive: true })
    server = await serve({ bundles, loop, port: 0 })
    browser = await chromium.launch({ executablePath, args: FLAGS })
    page = await browser.newPage({ viewport: { width: 1200, height: 900 } })
    page.on('pageerror', (error) => failures.push(error.message))
  })
  after(async () => {
    await browser?.close()
    server?.close()
  })

  test('the page says beforehand how fast it will be', async () => {
    await open(page, server.url, 'bundle=text')
    const wanted = /^About ([\d.]+)× real time on this machine, ([\d.]+)× with a description\./
    const [, plain, text] = wanted.exec(await page.locator('#pace').innerText()) ?? []
    assert.ok(Number(plain) > 0 && Number(text) > 0, `got ${plain} and ${text}`)
    assert.equal(await page.evaluate(() => Reflect.get(window, 'cleanLm').takes.length), 0)
  })

  test('without WebGPU the page says so, and runs on WASM with threads', async () => {
    await open(page, server.url, 'bundle=text')
    assert.match(await page.locator('#note').innerText(), /No WebGPU in this browser: the model runs on the processor/)
    assert.match(await page.locator('#chip-backend').innerText(), /^WebAssembly, [2-4] threads$/)
    await page.locator('#backend').selectOption('webgpu')
    assert.match(await page.locator('#alert').innerText(), /no WebGPU/)
    await page.locator('#backend').selectOption('wasm')
    await page.locator('#alert-close').click()
    await shot(page, 'empty')
  })

  test('a file that is not audio is refused by name', async () => {
    const notes = { name: 'notes.txt', mimeType: 'text/plain', buffer: Buffer.from('not audio') }
    await page.locator('#file').setInputFiles(notes)
    await page.locator('#alert').waitFor()
    assert.match(await page.locator('#alert').innerText(), /This browser cannot read “notes.txt” as audio/)
    assert.equal(await page.locator('#generate').isDisabled(), true)
  })

  test('two takes equal those of Python, and are played', async () => {
    await fill(page, DRAWN)
    assert.equal(await page.locator('#alert').isHidden(), true)
    await page.locator('#takes').selectOption('2')
    await page.locator('#generate').click()
    assertTake(await takeResult(page, 2), DRAWN, 1)
    const first = await page.evaluate(() =>
      Reflect.get(window, 'cleanLm').takes[0].codes.map((/** @type {Int32Array} */ row) => [...row]),
    )
    assert.deepEqual(
      first,
      DRAWN.codes[0].map((/** @type {Int32Array} */ codebook) => Array.from(codebook)),
    )
    assert.equal(await page.locator('#seed').inputValue(), '3')
    assert.match(await page.locator('.numbers').innerText(), /WebAssembly, \d threads[^]*MB[^]*\d ms[^]*\d×/)
    await page.waitForFunction(() => Reflect.get(window, 'cleanLm').player.state === 'paused') // it has played to its end
  })

  test('the seam is drawn where the loop ends', async () => {
    await fill(page, GREEDY)
    await page.locator('#takes').selectOption('1')
    await page.locator('#generate').click()
    const take = await takeResult(page, 3)
    assertTake(take, GREEDY, 0)
    await page.waitForTimeout(200) // until a frame is drawn
    const { left, colours } = await page.evaluate(() => {
      const canvas = /** @type {HTMLCanvasElement} */ (document.querySelector('#canvas'))
      const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'))
      const { data } = context.getImageData(0, canvas.height >> 1, canvas.width, 1)
      const pixels = Array.from({ length: canvas.width }, (_, x) => data.slice(4 * x, 4 * x + 4))
      const { left } = /** @type {HTMLElement} */ (document.querySelector('#seam')).style
      return {
        left: parseFloat(left) / 100,
        colours: pixels.map(([r, g, b, a]) => (a === 255 ? `${r},${g},${b}` : '')),
      }
    })
    assert.ok(Math.abs(left - take.seam / take.samples[0].length) < 1e-3)
    const at = Math.round(left * colours.length)
    const sides = [colours.slice(0, at - 8), colours.slice(at + 8)].map((side) => new Set(side.filter(Boolean)))
    assert.equal(sides[0].size, 1)
    assert.equal(sides[1].size, 1)
    assert.notDeepEqual(sides[0], sides[1])
    await shot(page, 'takes')
  })

  test('A and B switch at the same position', async () => {
    await page.getByRole('button', { name: 'Compare as A: take 1' }).click()
    await page.getByRole('button', { name: 'Compare as B: take 3' }).click()
    await page.evaluate(() => {
      const { player, takes } = Reflect.get(window, 'cleanLm')
      player.pause()
      player.seek(takes[2], 0.2)
    })
    const name = page.locator('#sound-name')
    assert.match(await name.innerText(), /Take 3/)
    await page.keyboard.press('x')
    assert.match(await name.innerText(), /Take 1/)
    assert.equal(await page.evaluate(() => Reflect.get(window, 'cleanLm').player.position), 0.2)
    await page.locator('#ab').click()
    assert.match(await name.innerText(), /Take 3/)
  })

  test('the download is a WAV file of the take', async () => {
    const [file] = await Promise.all([page.waitForEvent('download'), page.locator('#download').click()])
    assert.equal(file.suggestedFilename(), 'clip seed 1.wav')
    const { audio, sampleRate } = decodeWav(readFileSync(await file.path()))
    assert.equal(sampleRate, 32_000)
    assert.equal(audio.length, 1)
    assert.equal(audio[0].length, GREEDY.duration * 32_000)
  })

  test('a generation is stopped at once, and its samples are kept', async () => {
    await page.locator('#duration').fill('30')
    await page.locator('#generate').click()
    const more = () => Reflect.get(window, 'cleanLm').takes[3]?.filled > 64_000
    await page.waitForFunction(more, null, SLOW)
    await shot(page, 'generating')
    const started = Date.now()
    await page.locator('#stop').click()
    await page.locator('#generate').waitFor()
    assert.ok(Date.now() - started < 2500, `${Date.now() - started} ms until it was stopped`)
    const { state, filled } = await page.evaluate(() => {
      const { state, filled } = Reflect.get(window, 'cleanLm').takes[3]
      return { state, filled }
    })
    assert.equal(state, 'stopped')
    assert.ok(filled < 29 * 32_000)
    assert.match(await page.locator('#status').innerText(), /was stopped/)
    assert.equal(await page.locator('#alert').isHidden(), true)
    assert.equal(await page.evaluate(() => document.activeElement?.id), 'generate', 'where the focus is')
  })

  test('a wrong field is named and marked', async () => {
    await page.locator('#duration').fill('0.1')
    await page.locator('#generate').click()
    assert.match(await page.locator('#status').innerText(), /more than the 0.2 s of the loop/)
    assert.equal(await page.locator('#duration').getAttribute('aria-invalid'), 'true')
  })

  test('a recording becomes the loop', async () => {
    const button = page.locator('#loop-fields [data-record]')
    await button.click()
    await page.getByText('Stop recording').last().waitFor()
    await page.waitForTimeout(600)
    await button.click()
    await page.getByRole('heading', { name: 'Recording' }).waitFor()
    assert.equal(await page.locator('#alert').isHidden(), true)
  })

  test('a file is dropped on the page', async () => {
    await page.evaluate((bytes) => {
      const dataTransfer = new DataTransfer()
      dataTransfer.items.add(new File([new Uint8Array(bytes)], 'dropped.wav'))
      document.body.dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true }))
    }, Array.from(clip.buffer))
    await page.getByRole('heading', { name: 'dropped.wav' }).waitFor()
  })

  test('a bundle is opened from a folder; another folder is refused', async () => {
    await page.locator('#folder').setInputFiles(join(root, 'demo'))
    await page.locator('#alert').waitFor()
    assert.match(await page.locator('#alert').innerText(), /no manifest.json/)
    await page.locator('#folder').setInputFiles(bundles[0])
    await page.getByText('this model stays in its folder').waitFor(SLOW)
    await fill(page, GREEDY)
    await page.locator('#generate').click()
    assertTake(await takeResult(page, 5), GREEDY, 0)
  })

  test('the page works with the keyboard alone', async () => {
    /** @param {string} selector */
    const tabTo = async (selector) => {
      for (let presses = 0; presses < 60; presses++) {
        await page.keyboard.press('Tab')
        if (await page.evaluate((wanted) => document.activeElement?.matches(wanted), selector)) return
      }
      assert.fail(`${selector} is not reached with Tab`)
    }
    await open(page, server.url, 'bundle=stereo&backend=wasm&seed=1')
    assert.match(await page.locator('#text-hint').innerText(), /exported without a text encoder/)
    await tabTo('#file')
    const [chooser] = await Promise.all([page.waitForEvent('filechooser'), page.keyboard.press('Space')])
    await chooser.setFiles(clip)
    await page.getByText('the coloured part is continued').waitFor()
    await tabTo('#duration')
    await page.keyboard.press('Control+A')
    await page.keyboard.type('0.6')
    await tabTo('#generate')
    const outline = () => getComputedStyle(/** @type {Element} */ (document.activeElement)).outlineStyle
    assert.equal(await page.evaluate(outline), 'solid')
    await page.keyboard.press('Enter')
    const { samples } = await takeResult(page, 1)
    assert.equal(samples.length, 2)
    await tabTo('#wave')
    await page.waitForFunction(() => Reflect.get(window, 'cleanLm').player.state === 'paused') // it has played to its end
    await page.keyboard.press('End')
    assert.equal(await page.locator('#wave').getAttribute('aria-valuenow'), '0.6')
    await page.keyboard.press('Home')
    await page.keyboard.press('Space')
    assert.equal(await page.evaluate(() => Reflect.get(window, 'cleanLm').player.state !== 'paused'), true)
  })

  test('every control has a name', async () => {
    const unnamed = await page.evaluate(() => {
      const named = (/** @type {Element} */ element) =>
        element.getAttribute('aria-label') || element.textContent?.trim() || Reflect.get(element, 'labels')?.length
      const controls = [...document.querySelectorAll('button, select, input, [role=slider], progress')]
      return controls
        .filter((element) => element.checkVisibility() && !named(element))
        .map((element) => element.outerHTML)
    })
    assert.deepEqual(unnamed, [])
  })

  test('the page has thrown no errors', () => assert.deepEqual(failures, []))

  test('without its server the page still works', async () => {
    const own = await serve({ bundles, loop, port: 0 })
    const visitor = await browser.newPage()
    await visitor.goto(`${own.url}?backend=wasm`)
    await visitor.getByText('Works offline').waitFor(SLOW)
    own.close()
    await assert.rejects(fetch(own.url))
    await visitor.reload()
    await visitor.getByText('The model is ready').waitFor(SLOW)
    await fill(visitor, GREEDY)
    await visitor.locator('#generate').click()
    assertTake(await takeResult(visitor, 1), GREEDY, 0)
    await visitor.close()
  })

  test('on a phone nothing is cut off, and all controls are large enough', async () => {
    const context = await browser.newContext({
      viewport: { width: 375, height: 740 },
      deviceScaleFactor: 2,
      isMobile: true,
      hasTouch: true,
      colorScheme: 'dark',
      reducedMotion: 'reduce',
    })
    const phone = await context.newPage()
    await open(phone, server.url, 'bundle=text&backend=wasm')
    await shot(phone, 'phone-empty')
    await phone.getByRole('button', { name: 'Use the demo loop' }).tap()
    await phone.getByText('the coloured part is continued').waitFor()
    await phone.locator('#duration').fill('5')
    await phone.locator('#generate').tap()
    await takeResult(phone, 1)
    const { wide, small } = await phone.evaluate(sizes)
    assert.equal(wide, 375)
    assert.deepEqual(small, [])
    await shot(phone, 'phone')
    await context.close()
  })

  describe('with a tempo', () => {
    const [rate, time] = [44_100, new MusicalTime({ bpm: 348, promptBars: 1, bars: 2 })]
    const track = tones(1.5, rate) // two bars and a bit
    const file = { name: 'track.wav', mimeType: 'audio/wav', buffer: floatWav(track, rate) }
    /** @type {Page} */
    let bars
    const shownTake = () => bars.locator('#sound-name').innerText()

    before(async () => {
      bars = await browser.newPage({ viewport: { width: 1000, height: 900 } })
      bars.on('pageerror', (error) => failures.push(error.message))
      await open(bars, server.url, 'bundle=text&backend=wasm&seed=1&duration=4')
      await bars.locator('#file').setInputFiles(file)
      await bars.getByText('the coloured part is continued').waitFor()
    })
    after(() => bars?.close())

    test('lengths are in bars, as many as fit, and more than there are is refused', async () => {
      assert.equal(await bars.getByLabel('Loop to continue, bars').isVisible(), false)
      await bars.getByLabel('Tempo, BPM').fill('348')
      assert.equal(await bars.getByLabel('Total length, s').isVisible(), false)
      const lengths = [bars.getByLabel('Loop to continue, bars'), bars.getByLabel('Total length, bars')]
      assert.deepEqual(await Promise.all(lengths.map((field) => field.inputValue())), ['2', '5'])
      await lengths[0].fill('3')
      await bars.locator('#generate').click()
      assert.match(await bars.locator('#status').innerText(), /Loop to continue: 1 to 2 bars, as many whole bars as it/)
      await lengths[0].fill('1')
      await lengths[1].fill('1')
      await bars.locator('#generate').click()
      assert.match(await bars.locator('#status').innerText(), /Total length: more than the bars to continue/)
      assert.equal(await lengths[1].getAttribute('aria-invalid'), 'true')
      await lengths[1].fill('2')
    })

    test('a take is the bars that Node gives, and its download is as long at the loop’s rate', async () => {
      await bars.locator('#takes').selectOption('2')
      await bars.locator('#generate').click()
      const { codes, samples, seam } = await takeResult(bars, 2)
      assert.equal(samples[0].length, time.length(2, 32_000))
      assert.equal(seam, time.length(1, 32_000))
      const { defaults } = JSON.parse(readFileSync(join(bundles[0], 'manifest.json'), 'utf8'))
      const model = await MusicGen.load(bundles[0], { ort: /** @type {any} */ (node) })
      const sampling = { temperature: defaults.temperature, topK: defaults.top_k, cfgCoef: defaults.cfg_coef }
      const options = { ...sampling, musicalTime: time, seed: 2 }
      const wanted = await model.generateContinuation(track, rate, options)
      // the page has a beat more: the last frames, whose columns are not full in Node, may differ, and what is heard of them
      wanted.codes.forEach((row, k) => assert.deepEqual(codes[k].slice(0, row.length - 3), [...row.slice(0, -3)]))
      assert.ok(codes[0].length > wanted.codes[0].length)
      const same = samples[0].slice(0, -6400)
      same.forEach((sample, i) => assert.ok(Math.abs(sample - wanted.audio[0][i]) < 1e-4, `sample ${i}`))
      const button = bars.getByRole('button', { name: 'Download: take 2' })
      const [download] = await Promise.all([bars.waitForEvent('download'), button.click()])
      const wav = decodeWav(readFileSync(await download.path()))
      assert.deepEqual([wav.sampleRate, wav.audio[0].length], [rate, time.length(2, rate)])
    })

    test('takes are above each other, under one playhead', async () => {
      const lanes = bars.locator('#lanes button')
      assert.equal(await lanes.count(), 2)
      await bars.evaluate(() => Reflect.get(window, 'cleanLm').player.pause())
      await lanes.first().scrollIntoViewIfNeeded()
      const box = await lanes.first().boundingBox() // of take 2, the newest
      if (!box) throw new Error('there are no lanes')
      await bars.mouse.click(box.x + box.width / 2, box.y + box.height / 2)
      assert.match(await shownTake(), /Take 2/)
      const position = await bars.evaluate(() => Reflect.get(window, 'cleanLm').player.position)
      assert.ok(Math.abs(position - time.bar) < 0.01, `${position} s, expected the middle, ${time.bar} s`)
      await lanes.last().press('Enter')
      assert.match(await shownTake(), /Take 1/)
      assert.equal(await bars.evaluate(() => Reflect.get(window, 'cleanLm').player.position), position)
      const head = await bars.locator('#head').boundingBox()
      assert.ok(head && Math.abs(head.x + head.width / 2 - box.x - box.width / 2) < 2)
      assert.ok(head.y + head.height > box.y + 2 * box.height - 2, 'the playhead runs over all lanes')
      await shot(bars, 'bars')
    })

    test('Loop repeats a take, and can be turned off', async () => {
      const button = bars.getByRole('button', { name: 'Loop', exact: true })
      await bars.locator('#wave').focus()
      await bars.keyboard.press('l')
      assert.equal(await button.getAttribute('aria-pressed'), 'true')
      await bars.evaluate(() => {
        const { player, takes } = Reflect.get(window, 'cleanLm')
        player.play(takes[0], takes[0].filled / takes[0].sampleRate - 0.3)
      })
      const again = () => {
        const { player, takes } = Reflect.get(window, 'cleanLm')
        return player.round && player.position < takes[0].filled / takes[0].sampleRate / 2
      }
      await bars.waitForFunction(again, null, { timeout: 10_000 })
      const repeated = await bars.evaluate(() => {
        const { player, takes } = Reflect.get(window, 'cleanLm')
        const [wanted, found] = [takes[0].closed[0], player.round.buffer.getChannelData(0)]
        const same = found.every((/** @type {number} */ sample, /** @type {number} */ i) => sample === wanted[i])
        return { state: player.state, loops: player.round.loop, same }
      })
      assert.deepEqual(repeated, { state: 'playing', loops: true, same: true })
      await button.click()
      const { round, state } = await bars.evaluate(() => Reflect.get(window, 'cleanLm').player)
      assert.deepEqual([round, state], [null, 'playing'])
    })

    test('at 360 pixels nothing is cut off, and all controls are large enough', async () => {
      await bars.setViewportSize({ width: 360, height: 740 })
      const { wide, small } = await bars.evaluate(sizes)
      assert.equal(wide, 360)
      assert.deepEqual(small, [])
      await shot(bars, 'bars-phone')
      assert.deepEqual(failures, [])
    })
  })

  test('over plain http the page works with less, and says so', async () => {
    const own = await chromium.launch({
      executablePath,
      args: [...FLAGS, '--host-resolver-rules=MAP lan.test 127.0.0.1'],
    })
    const plain = await serve({ bundles, loop, port: 0, host: '127.0.0.1' })
    try {
      const visitor = await own.newPage()
      await open(visitor, plain.url.replace('127.0.0.1', 'lan.test'), 'bundle=text')
      assert.match(await visitor.locator('#note').innerText(), /plain http: no WebGPU, one thread, no microphone/)
      await fill(visitor, GREEDY)
      await visitor.locator('#generate').click()
      assertTake(await takeResult(visitor, 1), GREEDY, 0)
      await visitor.locator('#loop-fields [data-record]').click()
      assert.match(await visitor.locator('#alert').innerText(), /cannot record/)
    } finally {
      plain.close()
      await own.close()
    }
  })

  test('the player waits for late samples, and leaves no gap between pieces', async () => {
    const { states, pieces } = await page.evaluate(async () => {
      const { Player } = await import(/** @type {any} */ ('/demo/player.js'))
      const [rate, states, pieces] = [8000, /** @type {string[]} */ ([]), /** @type {number[][]} */ ([])]
      const { start } = AudioBufferSourceNode.prototype
      AudioBufferSourceNode.prototype.start = function (when = 0) {
        pieces.push([when * rate, this.buffer?.length ?? 0])
        start.call(this, when)
      }
      const sound = {
        samples: [new Float32Array(2 * rate)],
        filled: 0.6 * rate,
        complete: false,
        sampleRate: rate,
        speed: 0.9,
      }
      const player = new Player()
      const reached = (/** @type {string} */ state) =>
        new Promise((resolve) => player.addEventListener('state', () => player.state === state && resolve(state)))
      player.addEventListener('state', () => states.push(player.state))
      player.play(sound)
      await reached('waiting')
      sound.filled = 0.7 * rate // too little to go on with
      player.fill()
      states.push('more')
      sound.filled = 2 * rate
      sound.complete = true
      player.fill()
      await reached('paused')
      AudioBufferSourceNode.prototype.start = start
      return { states, pieces }
    })
    assert.deepEqual(states, ['waiting', 'playing', 'waiting', 'more', 'playing', 'paused'])
    for (const [when] of pieces)
      assert.ok(Math.abs(when - Math.round(when)) < 1e-6, `a piece starts between samples: ${when}`)
    const gaps = pieces.slice(1).map(([when], i) => Math.round(when - pieces[i][0] - pieces[i][1]))
    assert.equal(gaps.filter((gap) => gap !== 0).length, 1, `gaps of ${gaps} samples: one, where sound was waited for`)
  })

  test('what is repeated goes on at the sample after its last', async () => {
    const { pieces, positions } = await page.evaluate(async () => {
      const { Player } = await import(/** @type {any} */ ('/demo/player.js'))
      const [rate, pieces, positions] = [8000, /** @type {number[][]} */ ([]), /** @type {number[]} */ ([])]
      const { start } = AudioBufferSourceNode.prototype
      AudioBufferSourceNode.prototype.start = function (when = 0) {
        pieces.push([when * rate, this.buffer?.length ?? 0, Number(this.loop)])
        start.call(this, when)
      }
      const samples = [new Float32Array(0.7 * rate)]
      const length = { samples, filled: samples[0].length, complete: true, sampleRate: rate, speed: 1 }
      const player = new Player()
      player.repeat(true)
      player.play({ ...length, closed: samples })
      await new Promise((resolve) => setTimeout(resolve, 1000)) // once round
      positions.push(player.position)
      player.pause()
      positions.push(player.position)
      AudioBufferSourceNode.prototype.start = start
      return { pieces, positions }
    })
    assert.deepEqual(
      pieces.map(([, length, loop]) => [length, loop]),
      [
        [4000, 0],
        [1600, 0],
        [5600, 1],
      ],
    )
    pieces.slice(1).forEach(([when], i) => assert.ok(Math.abs(when - pieces[i][0] - pieces[i][1]) < 1e-6))
    assert.ok(positions[0] > 0.05 && positions[0] < 0.6, `at ${positions[0]} s of 0.7 s, after 1 s`)
    assert.ok(Math.abs(positions[1] - positions[0]) < 0.05)
  })

  test('too little memory is explained', async () => {
    const context = await browser.newContext({ serviceWorkers: 'block' })
    const poor = await context.newPage()
    const body = `
      export const env = { wasm: {}, versions: { web: '1' } }
      export class Tensor {}
      export const InferenceSession = { create() { throw new RangeError('Array buffer allocation failed') } }`
    const headers = { 'Cross-Origin-Resource-Policy': 'same-origin' }
    await poor.route('**/ort.wasm.min.mjs', (route) => route.fulfill({ contentType: 'text/javascript', body, headers }))
    await poor.goto(`${server.url}?backend=wasm`)
    await poor.locator('#alert').waitFor(SLOW)
    assert.match(await poor.locator('#alert').innerText(), /Not enough memory for this model. Choose smaller weights/)
    await context.close()
  })

  test('WebGPU generates the same codes', async (t) => {
    const own = await chromium.launch({ executablePath, args: [...FLAGS, ...SOFTWARE_GPU] })
    try {
      const gpu = await own.newPage()
      await open(gpu, server.url, 'bundle=text')
      if (!/WebGPU/.test(await gpu.locator('#chip-backend').innerText()))
        return t.skip('this Chromium has no WebGPU in software')
      await fill(gpu, GREEDY)
      await gpu.locator('#generate').click()
      assertTake(await takeResult(gpu, 1), GREEDY, 0)
      await shot(gpu, 'webgpu')
      const { origin } = new URL(server.url)
      const codes = await gpu.evaluate(`(async () => {
        const ort = await import('${origin}/vendor/ort/ort.webgpu.min.mjs')
        const { MusicGen } = await import('${origin}/src/index.js')
        ort.env.wasm.wasmPaths = '${origin}/vendor/ort/'
        const takes = ${takesOfPrompts}
        return takes(MusicGen, '${origin}/bundles/text/', { ort, executionProviders: ['webgpu'] })
      })()`)
      assert.deepEqual(codes, await takesOfPrompts(MusicGen, bundles[0], { ort: /** @type {any} */ (node) }))
    } finally {
      await own.close()
    }
  })
})

describe('the demo server', () => {
  test('serves the listed files, and nothing else', async () => {
    const server = await serve({ bundles, loop, port: 0 })
    try {
      const { origin } = new URL(server.url)
      const status = async (/** @type {string} */ path) => (await fetch(origin + path)).status
      assert.equal(await status('/demo/'), 200)
      assert.equal(await status('/bundles/text/tokenizer.json'), 200)
      assert.equal(await status('/demo/serve.js'), 404)
      assert.equal(await status('/bundles/text/%2e%2e/%2e%2e/cases.json'), 404)
      assert.equal(await status('/src/..%2fpackage.json'), 404)
      const { headers } = await fetch(`${origin}/vendor/ort/ort-wasm-simd-threaded.wasm`, { method: 'HEAD' })
      assert.equal(headers.get('content-type'), 'application/wasm')
      assert.equal(headers.get('cross-origin-opener-policy'), 'same-origin')
      assert.equal(headers.get('cross-origin-embedder-policy'), 'require-corp')
    } finally {
      server.close()
    }
  })
})

describe('the choice of backend and variant', () => {
  const plain = { secure: true, threads: 2, gpu: null, memory: 2e9 }
  const strong = { secure: true, threads: 4, gpu: { name: 'a gpu', half: false }, memory: undefined }

  test('WebGPU where it is available, otherwise WASM with the reason', () => {
    assert.deepEqual(backendFor('auto', strong), { backend: 'webgpu', note: '' })
    assert.equal(backendFor('wasm', strong).backend, 'wasm')
    assert.match(backendFor('webgpu', plain).note, /No WebGPU/)
    assert.match(backendFor('auto', { ...plain, secure: false }).note, /plain http/)
    assert.match(backendFor('auto', { ...plain, threads: 1 }).note, /headers/)
  })

  test('a GPU without float16 gets other weights', () => {
    const graphs = (/** @type {string} */ dtype) => ({ lm_inference: { file: '', inputs: [{ name: 'key', dtype }] } })
    const variants = { fp16: { graphs: graphs('float16') }, fp32: { graphs: graphs('float32') } }
    const int8 = { graphs: graphs('float32'), cache: 'int8' }
    const tree = /** @type {any} */ ({
      variant: 'int8',
      variants: { int8, ...variants },
      backends: { webgpu: ['fp16'] },
    })
    assert.equal(variantFor(tree, 'webgpu', strong), 'fp32')
    assert.equal(variantFor(tree, 'webgpu', { ...strong, gpu: { name: '', half: true } }), 'fp16')
    assert.equal(variantFor(tree, 'webgpu', strong, 'fp16'), 'fp16')
    assert.equal(variantFor(tree, 'wasm', strong), 'int8')
  })

  test('what to expect is said, also where it pauses', () => {
    assert.equal(paceNote(null), '')
    assert.equal(paceNote({ plain: 2, text: null }), 'About 2.0× real time on this machine.')
    const slow = 'About 1.4× real time on this machine, 0.75× with a description. Below 1× it pauses while it plays.'
    assert.equal(paceNote({ plain: 1.4, text: 0.75 }), slow)
  })

  test('too little memory is predicted, and explained', () => {
    assert.equal(memoryNote(1e8, 'wasm', plain), '')
    assert.match(memoryNote(1e9, 'wasm', plain), /needs about 2.8 GB of memory/)
    assert.match(memoryNote(2e9, 'wasm', strong), /may not fit/)
    assert.match(explain(new Error('std::bad_alloc')), /Not enough memory/)
    assert.match(explain(new TypeError('Failed to fetch')), /does not answer/)
    assert.equal(explain(new Error('as it is')), 'as it is')
  })
})
