/** The examples run as they stand: node.mjs in Node, page.html in headless Chromium, the README's lines on bars. */

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createReadStream } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { extname, join, normalize } from 'node:path'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import * as node from 'onnxruntime-node'
import { chromium } from 'playwright-core'

import * as library from '../src/index.js'
import { executablePath, FLAGS, skip } from './chromium.js'
import { BUNDLE, clip } from './kit.js'

const { decodeWav, MusicalTime, MusicGen } = library
const ort = /** @type {any} */ (node)
const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const LOOP = join(ROOT, 'demo/loop.wav')
const TYPES = /** @type {Record<string, string>} */ ({
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
})

/** @type {string} */
let folder
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'clean-lm-'))
})
after(() => rm(folder, { recursive: true }))

/** What the examples should generate. @param {import('../src/index.js').GenerateOptions} options */
async function expected(options) {
  const model = await MusicGen.load(BUNDLE, { ort })
  const { audio, sampleRate } = decodeWav(await readFile(LOOP))
  return model.generateContinuation(audio, sampleRate, {
    description: 'drum and bass',
    duration: 10,
    seed: 1,
    ...options,
  })
}

/** @param {ArrayLike<number>} found @param {Float32Array} wanted @param {number} within */
function assertClose(found, wanted, within) {
  assert.equal(found.length, wanted.length)
  wanted.forEach((sample, i) => assert.ok(Math.abs(found[i] - sample) <= within, `sample ${i}: ${found[i]}, ${sample}`))
}

test('node.mjs writes the continued loop', async () => {
  const output = join(folder, 'node.wav')
  const script = join(ROOT, 'examples/node.mjs')
  const { stdout } = await promisify(execFile)(process.execPath, [script, BUNDLE, LOOP, output], { cwd: folder })
  assert.match(stdout, /loop\.wav: 4\.0 s at 32000 Hz/)
  assert.match(stdout, /node\.wav: 10\.0 s, seed 1, generated in [\d.]+ s/)
  const { audio, sampleRate } = decodeWav(await readFile(output))
  const { audio: wanted } = await expected({ temperature: 0.4 })
  assert.equal(sampleRate, 32000)
  assertClose(
    audio[0],
    wanted[0].map((sample) => Math.max(-1, Math.min(1, sample))),
    1 / 32768,
  )
})

test('page.html plays the continued loop', { skip, timeout: 120_000 }, async () => {
  const server = createServer((request, response) => {
    const path = normalize(new URL(request.url ?? '', 'http://host').pathname)
    response.setHeader('Content-Type', TYPES[extname(path)] ?? 'application/octet-stream')
    createReadStream(join(ROOT, path))
      .on('error', () => response.writeHead(404).end())
      .pipe(response)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(null)))
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
  const browser = await chromium.launch({ executablePath, args: FLAGS })
  try {
    const page = await browser.newPage()
    await page.addInitScript(() => {
      const played = /** @type {Float32Array[]} */ (Reflect.get(window, 'played') ?? [])
      Reflect.set(window, 'played', played)
      const { start } = AudioBufferSourceNode.prototype
      AudioBufferSourceNode.prototype.start = function (when) {
        if (this.buffer) played.push(this.buffer.getChannelData(0))
        start.call(this, when)
      }
    })
    const bundle = BUNDLE.slice(ROOT.length)
    await page.goto(`http://127.0.0.1:${port}/examples/page.html?bundle=/${bundle}/`)
    await page.getByText('Choose a loop').waitFor({ timeout: 60_000 })
    await page.locator('#loop').setInputFiles(LOOP)
    await page.getByText('Generated 10.0 s').waitFor({ timeout: 60_000 })
    const played = await page.evaluate(() =>
      /** @type {Float32Array[]} */ (Reflect.get(window, 'played')).flatMap((chunk) => [...chunk]),
    )
    const { audio } = await expected({})
    assertClose(played, audio[0], 1e-4)

    await page.goto(`http://127.0.0.1:${port}/examples/page.html?bundle=/nowhere/`)
    await page.getByText('manifest.json: not found (HTTP 404)').waitFor()
  } finally {
    await browser.close()
    server.close()
    server.closeAllConnections()
  }
})

test('the README’s lines on whole bars', async () => {
  const text = await readFile(join(ROOT, 'js/README.md'), 'utf8')
  const [section] = /^### Whole bars\n[^]*?^### /m.exec(text) ?? []
  const [call, app] = [...String(section).matchAll(/^```js\n([^]*?)^```/gm)].map(([, code]) => code)
  const rate = 44100
  const given = { ...library, model: await MusicGen.load(BUNDLE, { ort }), track: clip(5, rate), rate }
  const AsyncFunction = /** @type {any} */ (async () => {}).constructor
  const run = (/** @type {string} */ code, /** @type {string} */ names) =>
    new AsyncFunction(...Object.keys(given), `${code}\nreturn { ${names} }`)(...Object.values(given))
  const time = new MusicalTime({ bpm: 174 })

  const whole = await run(call, 'audio, loop')
  assert.equal(decodeWav(whole.loop).audio[0].length, 176_552)
  assert.equal(whole.audio[0].length, time.length(4, 32_000))

  const { joined, loop, longer, fade, start, end } = await run(app, 'joined, loop, longer, fade, start, end')
  assert.deepEqual([start, end], [time.line(1, rate), time.line(3, rate)])
  assert.equal(longer[1].length, end + time.length(2, rate))
  assert.deepEqual(longer[1].slice(0, end - fade), given.track[1].slice(0, end - fade))
  assert.equal(loop[1].length, time.length(4, rate))
  assert.deepEqual(loop[1].slice(fade), joined[1].slice(start + fade, start + loop[1].length))
  assert.ok(Math.abs(loop[1][0] - joined[1][start + loop[1].length]) < 2e-3, 'it goes on as it ended')
})
