import assert from 'node:assert/strict'
import { createReadStream } from 'node:fs'
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { pathToFileURL } from 'node:url'

import * as node from 'onnxruntime-node'
import * as web from 'onnxruntime-web'

import { Files } from '../src/files.js'
import { BundleError, MusicGen } from '../src/index.js'
import { BUNDLE, bundleFiles, clip, KIT } from './kit.js'

const ort = /** @type {any} */ (node)
const OPTIONS = { duration: 0.4, temperature: 0 }

/** @type {string} */
let expected

before(async () => {
  expected = await codes(await MusicGen.load(BUNDLE, { ort }))
})

/** @param {MusicGen} model */
async function codes(model) {
  const found = await model.generateContinuation(clip(0.2, 44100), 44100, { ...OPTIONS, description: 'drums' })
  await model.release()
  return JSON.stringify(found.codes)
}

/** Serve the conformance kit while `use` runs. @param {(url: string) => Promise<void>} use @param {number} [status] */
async function served(use, status = 200) {
  const server = createServer((request, response) => {
    response.statusCode = status
    const { pathname } = new URL(request.url ?? '', 'http://here')
    if (status === 200)
      createReadStream(join(KIT, pathname))
        .on('error', () => response.writeHead(404).end())
        .pipe(response)
    else response.end()
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(null)))
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
  try {
    await use(`http://127.0.0.1:${port}`)
  } finally {
    server.close()
  }
}

test('a folder by its file URL', async () => {
  assert.equal(await codes(await MusicGen.load(pathToFileURL(`${BUNDLE}/`), { ort })), expected)
})

test('files in memory, as a map, as an object, by a function', async () => {
  const files = await bundleFiles()
  const blobs = Object.fromEntries([...files].map(([name, bytes]) => [name, new Blob([bytes])]))
  const read = async (/** @type {string} */ name) => new Response(files.get(name))
  for (const source of [files, blobs, read]) assert.equal(await codes(await MusicGen.load(source, { ort })), expected)
})

test('a web server, with progress reports', async () => {
  await served(async (url) => {
    /** @type {number[][]} */
    const reports = []
    const model = await MusicGen.load(`${url}/bundles/text`, {
      ort,
      onProgress: (read, all) => reports.push([read, all]),
    })
    assert.equal(await codes(model), expected)
    const done = reports.map(([read]) => read)
    assert.deepEqual(
      done,
      [...done].sort((a, b) => a - b),
    )
    assert.equal(reports[reports.length - 1][0], reports[0][1])
    assert.ok(reports.every(([, total]) => total === reports[0][1]))
  })
})

test('a bundle that shares files with another', async () => {
  await served(async (url) => {
    const shared = JSON.stringify((await MusicGen.load(`${KIT}/bundles/standard`, { ort })).manifest.tree.files)
    assert.match(shared, /"\.\.\//)
    assert.equal(await codes(await MusicGen.load(new URL(`${url}/bundles/standard/`), { ort })), expected)
  })
})

test('WASM loads a folder too', async () => {
  const model = await MusicGen.load(BUNDLE, { ort: /** @type {any} */ (web), executionProviders: ['wasm'] })
  assert.equal(model.manifest.backend, 'wasm')
  assert.equal(await codes(model), expected)
})

test('the browser cache keeps downloads', async () => {
  /** @type {Map<string, Response>} */
  const kept = new Map()
  const cache = /** @type {any} */ ({
    match: async (/** @type {string} */ url) => kept.get(url)?.clone(),
    put: async (/** @type {string} */ url, /** @type {Response} */ response) => void kept.set(url, response),
  })
  await served(async (url) => {
    await MusicGen.load(`${url}/bundles/text`, { ort, cache })
    assert.ok([...kept.keys()].every((key) => /[?]sha256=[0-9a-f]{64}$/.test(key)))
    const { fetch } = globalThis
    /** @type {string[]} */
    const fetched = []
    globalThis.fetch = (input, init) => (fetched.push(String(input)), fetch(input, init))
    try {
      assert.equal(await codes(await MusicGen.load(`${url}/bundles/text`, { ort, cache })), expected)
    } finally {
      globalThis.fetch = fetch
    }
    assert.deepEqual(fetched, [`${url}/bundles/text/manifest.json`])
  })
})

/** @type {string} */
let folder
before(async () => {
  folder = join(await mkdtemp(join(tmpdir(), 'clean-lm-')), 'bundle')
})
after(() => rm(join(folder, '..'), { recursive: true }))

/** @type {[string, (files: Map<string, any>) => void, RegExp][]} */
const BROKEN = [
  ['no manifest.json', (files) => files.delete('manifest.json'), /manifest\.json: not (found|among the given files)/],
  [
    'a manifest that is not JSON',
    (files) => files.set('manifest.json', Buffer.from('{')),
    /manifest\.json: not valid JSON/,
  ],
  ['another format', (files) => change(files, { format: 'gguf' }), /format is gguf, expected clean_lm/],
  ['a later version', (files) => change(files, { version: 2 }), /version is 2, expected 1/],
  [
    'no lm_inference',
    (files) => change(files, { graphs: {}, variants: {}, variant: undefined, backends: {} }),
    /expected the graph lm_inference, the bundle contains/,
  ],
  [
    'an unknown cache_update',
    (files) => change(files, { cache_update: 'sideways', variants: {}, variant: undefined, backends: {} }),
    /cache_update is sideways/,
  ],
  [
    'a short file',
    (files) => files.set('lm_inference.onnx.data', Buffer.alloc(9)),
    /lm_inference\.onnx\.data: got 9 bytes, expected \d+/,
  ],
  [
    'a changed file',
    (files) => (files.get('lm_inference.onnx.data')[5] ^= 1),
    /SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}/,
  ],
  [
    'a missing file',
    (files) => files.delete('compression_encode.onnx'),
    /compression_encode\.onnx: (listed in manifest|not among)/,
  ],
]

/** @param {Map<string, any>} files @param {object} entries */
function change(files, entries) {
  files.set(
    'manifest.json',
    Buffer.from(JSON.stringify({ ...JSON.parse(String(files.get('manifest.json'))), ...entries })),
  )
}

for (const [name, breaks, message] of BROKEN) {
  test(`a bundle with ${name} is refused, on a disk and in memory`, async () => {
    const files = await bundleFiles()
    breaks(files)
    await rm(folder, { recursive: true, force: true })
    await cp(BUNDLE, folder, { recursive: true })
    for (const lost of await bundleFiles().then((all) => [...all.keys()])) {
      if (files.has(lost)) await writeFile(join(folder, lost), files.get(lost))
      else await rm(join(folder, lost))
    }
    const refused = (/** @type {any} */ error) => error instanceof BundleError && message.test(error.message)
    await assert.rejects(MusicGen.load(files, { ort }), refused)
    await assert.rejects(MusicGen.load(folder, { ort }), refused)
  })
}

test('hashes: false skips the comparison', async () => {
  const files = await bundleFiles()
  const data = Buffer.from(files.get('lm_inference.onnx.data'))
  data[data.length - 1] ^= 1
  files.set('lm_inference.onnx.data', data)
  await MusicGen.load(files, { ort, hashes: false })
})

test('a missing ort, variant or server file is refused', async () => {
  await assert.rejects(MusicGen.load(BUNDLE, /** @type {any} */ ({})), /ort: expected ONNX Runtime/)
  await assert.rejects(MusicGen.load(BUNDLE, { ort, variant: 'int3' }), /got variant "int3", the bundle contains fp32/)
  await served((url) => assert.rejects(MusicGen.load(url, { ort }), /manifest\.json: not found \(HTTP 404\)/), 404)
})

test('an execution provider that ONNX Runtime cannot start is named', async () => {
  const load = (/** @type {any} */ executionProviders) => MusicGen.load(BUNDLE, { ort, executionProviders })
  await assert.rejects(load(['nonsense']), /cannot load it with executionProviders nonsense: /)
  await assert.rejects(load([{ name: 'nonsense' }]), /with executionProviders nonsense: /)
})

test('a response is read whole, whatever length its manifest says', async () => {
  const bytes = new Uint8Array(1000).map((_, i) => i)
  const files = new Files(() => new Response(new Blob([bytes.subarray(0, 300), bytes.subarray(300)])), {
    hashes: false,
  })
  assert.deepEqual(await files.read('x'), bytes)
  assert.deepEqual(await files.read('x', { bytes: 1000, sha256: '' }), bytes)
  for (const size of [1, 999, 1001, 5000])
    await assert.rejects(files.read('x', { bytes: size, sha256: '' }), /x: got 1000 bytes, expected \d+/)
})

test('the text encoder is opened with its first use, or at once', async () => {
  for (const [lazy, opened] of /** @type {const} */ ([
    [undefined, false],
    [false, true],
  ])) {
    const model = await MusicGen.load(BUNDLE, { ort, lazy })
    assert.equal(model.text?.graph.opening !== undefined, opened)
    assert.equal(await codes(model), expected)
  }
})

test('a signal cancels loading', async () => {
  const controller = new AbortController()
  const onProgress = () => controller.abort(new Error('enough'))
  await assert.rejects(MusicGen.load(BUNDLE, { ort, onProgress, signal: controller.signal }), /enough/)
})

test('the variant is the one that the bundle prefers for the backend', async () => {
  const files = await bundleFiles()
  const tree = JSON.parse(String(files.get('manifest.json')))
  const other = { ...tree.variants.fp32, cache: 'int8' }
  change(files, { variants: { ...tree.variants, other }, backends: { wasm: ['other'], webgpu: [] }, variant: 'fp32' })
  assert.equal((await MusicGen.load(files, { ort })).manifest.variant, 'fp32')
  const wasm = await MusicGen.load(files, { ort: /** @type {any} */ (web), executionProviders: ['wasm'] })
  assert.equal(wasm.manifest.variant, 'other')
  const gpu = { ort: /** @type {any} */ (web), executionProviders: ['webgpu'], variant: 'other' }
  await assert.rejects(MusicGen.load(files, gpu), /"other" has an int8 KV cache, which WebGPU does not support/)
})
