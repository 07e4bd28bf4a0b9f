/**
 * What a page takes for a model of full size: headless Chromium, onnxruntime-web's WASM backend.
 *
 *     node js/bench/browser.js bundle [--variant dynamic fp32 ...] [--threads 1,2] [--rounds 3] [--transformers folder]
 *
 * --transformers measures transformers.js in the same run: a folder that holds its package in node_modules, and a model
 * of the same sizes in models/musicgen, as optimum exports it (onnx/decoder_model_merged_quantized.onnx and others).
 *
 * Every contender has a page of its own, and all are measured in turn, without a text: one row. Printed are medians:
 * milliseconds of a step behind 100, 750 and 1490 cached columns, seconds of a prefill of 300 columns, and what follows
 * from them for 6 s that are continued to 30 s: seconds of new audio in a second of computing. Encoding and decoding are
 * in it, measured with 6 s. The heap is WASM's largest, after all of that; the download what the server has sent.
 */

import { createReadStream, statSync } from 'node:fs'
import { createServer } from 'node:http'
import { extname, join, resolve, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { chromium } from 'playwright-core'

import { executablePath, FLAGS, skip } from '../test/chromium.js'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    variant: { type: 'string', multiple: true, default: ['dynamic'] },
    threads: { type: 'string', default: '1,2' },
    rounds: { type: 'string', default: '3' },
    transformers: { type: 'string' },
  },
})
const [bundle, ...more] = positionals // node:util gives an option one value; the others stand behind it
const [COLUMNS, PREFILL, STEPS] = [[100, 750, 1490], 300, 5]
const [PROMPT, DURATION, FRAME_RATE] = [6, 30, 50] // s, and MusicGen's frames of a second

const js = fileURLToPath(new URL('..', import.meta.url))
const packages = join(values.transformers ?? '', 'node_modules')
const FOLDERS = /** @type {Record<string, string>} */ ({
  src: join(js, 'src'),
  bench: join(js, 'bench'),
  ort: join(js, 'node_modules/onnxruntime-web/dist'),
  bundle,
  transformers: join(packages, '@huggingface/transformers/dist'),
  'transformers-ort': join(packages, 'onnxruntime-web/dist'),
  models: join(values.transformers ?? '', 'models'),
})
const TYPES = /** @type {Record<string, string>} */ ({
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
})
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cache-Control': 'no-store',
}

/** A server of these folders; `sent` counts bytes. */
async function listen() {
  const state = { url: '', sent: 0 }
  const server = createServer((request, response) => {
    const [, folder, ...path] = decodeURIComponent((request.url ?? '').split('?')[0]).split('/')
    if (!folder) return response.writeHead(200, { ...HEADERS, 'Content-Type': 'text/html' }).end('<!doctype html>')
    const file = resolve(FOLDERS[folder] ?? js, ...path)
    const found = folder in FOLDERS && file.startsWith(resolve(FOLDERS[folder]) + sep)
    const size = found ? statSync(file, { throwIfNoEntry: false })?.size : undefined
    if (size === undefined) return response.writeHead(404, HEADERS).end()
    const type = TYPES[extname(file)] ?? 'application/octet-stream'
    response.writeHead(200, { ...HEADERS, 'Content-Type': type, 'Content-Length': size })
    if (request.method === 'HEAD') return response.end()
    state.sent += size
    createReadStream(file).pipe(response)
  })
  await new Promise((done) => server.listen(0, '127.0.0.1', () => done(null)))
  state.url = `http://127.0.0.1:${/** @type {import('node:net').AddressInfo} */ (server.address()).port}/`
  return Object.assign(state, { close: () => server.close() })
}

/** @param {number[]} times */
const median = (times) => times.sort((a, b) => a - b)[times.length >> 1]

/**
 * Seconds of new audio in a second: a line between the measured steps, and beyond them.
 *
 * @param {Record<string, number>} ms medians by request
 */
function realTime(ms) {
  const step = (/** @type {number} */ at) => {
    const i = at < COLUMNS[1] ? 0 : 1
    const [from, to] = [COLUMNS[i], COLUMNS[i + 1]]
    return ms[from] + ((ms[to] - ms[from]) * (at - from)) / (to - from)
  }
  let total = ms.prefill + ms.encode + (ms.decode * DURATION) / PROMPT
  for (let at = PREFILL; at < DURATION * FRAME_RATE; at++) total += step(at)
  return (1000 * (DURATION - PROMPT)) / total
}

/**
 * Measure contenders with as many threads, in turn.
 *
 * @param {import('playwright-core').Browser} browser
 * @param {Awaited<ReturnType<typeof listen>>} server
 * @param {number} threads
 */
async function measure(browser, server, threads) {
  const contenders = [...values.variant, ...more].map((variant) => ({ kind: 'clean_lm', variant }))
  if (values.transformers) contenders.push({ kind: 'transformers', variant: 'q8' })
  const opened = []
  for (const contender of contenders) {
    const page = await browser.newPage()
    page.on('pageerror', (error) => console.error(error))
    await page.goto(server.url)
    server.sent = 0
    const open = `import('/bench/browser_page.js').then((page) => page.open(${JSON.stringify({ ...contender, threads })}))`
    await page.evaluate(open)
    const times = /** @type {Record<string, number[]>} */ ({})
    opened.push({ ...contender, page, download: server.sent, times })
  }
  const requests = [...COLUMNS, 'prefill', 'encode', 'decode']
  for (let round = 0; round <= Number(values.rounds); round++) {
    for (const what of requests) {
      for (let i = 0; i < opened.length; i++) {
        const { page, times } = opened[(i + round) % opened.length]
        const count = typeof what === 'number' ? STEPS : 1
        const found = await page.evaluate(([what, count]) => Reflect.get(window, 'time')(what, count), [what, count])
        if (round) (times[what] ??= []).push(...found) // the first round is a warm-up
      }
    }
  }
  for (const { kind, variant, page, download, times } of opened) {
    const ms = Object.fromEntries(Object.entries(times).map(([what, list]) => [what, median(list)]))
    const heap = Number(await page.evaluate('heap.buffer.byteLength'))
    const steps = COLUMNS.map((columns) => ms[columns].toFixed(0))
    const seconds = ['prefill', 'encode', 'decode'].map((what) => (ms[what] / 1000).toFixed(1))
    print([`${kind} ${variant}`, threads, ...steps, ...seconds, realTime(ms).toFixed(3), mega(heap), mega(download)])
    await page.close()
  }
}

/** @param {number} bytes */
const mega = (bytes) => (bytes / 1e6).toFixed(0)
/** @param {unknown[]} cells */
const print = ([name, ...cells]) =>
  console.log(String(name).padEnd(18), ...cells.map((cell) => String(cell).padStart(9)))

if (skip) throw new Error(skip)
const server = await listen()
const browser = await chromium.launch({ executablePath, args: FLAGS })
try {
  print(['', 'threads', ...COLUMNS, 'prefill s', 'encode s', 'decode s', 'real time', 'heap MB', 'down. MB'])
  for (const threads of values.threads.split(',').map(Number)) await measure(browser, server, threads)
} finally {
  await browser.close()
  server.close()
}
