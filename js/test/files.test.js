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
import { BundleError, Manifest, MusicGen } from '../src/index.js'
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

test('a Blob is read and hashed in parts: one of 2 GB or more cannot be one buffer in every engine', async () => {
  class Large extends Blob {
    /** @returns {Promise<ArrayBuffer>} */
    async arrayBuffer() {
      throw new Error('The requested file could not be read')
    }
  }
  const blobs = Object.fromEntries([...(await bundleFiles())].map(([name, bytes]) => [name, new Large([bytes])]))
  /** @type {any[][]} */
  const reports = []
  const onProgress = (/** @type {any[]} */ ...report) => reports.push(report)
  assert.equal(await codes(await MusicGen.load(blobs, { ort, onProgress })), expected)
  const [done, total, counted] = reports[reports.length - 1]
  assert.equal(done, total)
  assert.equal(counted.unit, 'bytes')
  assert.ok(reports.every(([, , { file }]) => file in blobs))
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
    /manifest\.json: not readable JSON: /,
  ],
  ['another format', (files) => change(files, { format: 'gguf' }), /format is 'gguf', expected 'clean_lm'/],
  ['a later version', (files) => change(files, { version: 2 }), /version is 2, this clean_lm reads 1/],
  [
    'no lm_inference',
    (files) => change(files, { graphs: {}, variants: {}, variant: undefined, backends: {} }),
    /expected the graph lm_inference, the bundle contains/,
  ],
  [
    'an unknown cache_update',
    (files) => change(files, { cache_update: 'sideways', variants: {}, variant: undefined, backends: {} }),
    /cache_update is 'sideways', expected 'in_place' or 'new_columns'/,
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
  ['a missing file', (files) => files.delete('compression_encode.onnx'), /compression_encode\.onnx: not (found|among)/],
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
  await assert.rejects(MusicGen.load(BUNDLE, { ort, variant: 'int3' }), /got variant 'int3', the bundle contains fp32/)
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
  for (const size of [1, 999])
    await assert.rejects(files.read('x', { bytes: size, sha256: '' }), /x: got more than \d+ bytes, expected \d+/)
  for (const size of [1001, 5000])
    await assert.rejects(files.read('x', { bytes: size, sha256: '' }), /x: got 1000 bytes, expected \d+/)
  await assert.rejects(files.read('x', { bytes: 2 ** 50, sha256: '' }), /x: no memory for its \d+ bytes/)
})

test('a response that does not end is cut off', async () => {
  let sent = 0
  let cancelled = 0
  const endless = () =>
    new Response(
      new ReadableStream({
        pull: (controller) => controller.enqueue(new Uint8Array((sent += 2 ** 20) && 2 ** 20)),
        cancel: () => void cancelled++,
      }),
    )
  const files = new Files(endless)
  await assert.rejects(files.read('x', { bytes: 1000, sha256: '' }), /x: got more than 1000 bytes, expected 1000/)
  assert.ok(sent < 2 ** 23)
  await assert.rejects(files.read('manifest.json'), /manifest\.json: got more than 67108864 bytes, expected at most/)
  assert.ok(sent < 2 ** 27)
  assert.equal(cancelled, 2)
})

test('a download that breaks off is named', async () => {
  const server = createServer((_, response) => {
    response.writeHead(200, { 'content-length': 1000 })
    response.write('half')
    setTimeout(() => response.destroy(), 20)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(null)))
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
  const files = new Files(`http://127.0.0.1:${port}/`)
  await assert.rejects(files.read('manifest.json'), {
    name: 'BundleError',
    message: /manifest\.json: the download broke off: /,
  })
  server.close()
  await assert.rejects(files.read('manifest.json'), {
    name: 'BundleError',
    message: /manifest\.json: cannot be fetched: /,
  })
})

test('what is no source, and what is no file', async () => {
  for (const source of [undefined, null, 5, true])
    assert.throws(() => new Files(/** @type {any} */ (source)), /source: got .*, expected a folder, a URL, or files/)
  for (const found of [null, 5, {}, []])
    await assert.rejects(
      new Files(/** @type {any} */ (() => found)).read('x'),
      /x: got .*, expected a URL, a Uint8Array/,
    )
  const files = new Files({})
  for (const name of ['constructor', 'toString', '__proto__'])
    await assert.rejects(files.read(name), /not among the given files/)
})

/** @param {string} source @param {string} [confine] the URLs that are fetched for some names, or why not */
async function fetched(source, confine) {
  const names = ['x', '../first/x', '../../x', 'https:other/x', 'x?y#z', '%2e%2e/x', '..%2fx']
  const { fetch } = globalThis
  /** @type {string[]} */
  const urls = []
  globalThis.fetch = async (input) => (urls.push(String(input)), new Response('x'))
  try {
    const files = new Files(source, { confine })
    for (const name of names) await files.read(name).catch((error) => urls.push(error.message.replace(/;.*/, '')))
  } finally {
    globalThis.fetch = fetch
  }
  return urls
}

test('a name in a manifest never leads to another origin, and confined to no other folder', async () => {
  const source = 'http://here/bundles/text'
  const literal = ['https%3Aother/x', 'x%3Fy%23z', '%252e%252e/x', '..%252fx'].map((name) => `${source}/${name}`)
  const own = [`${source}/x`, 'http://here/bundles/first/x', 'http://here/x']
  assert.deepEqual(await fetched(source), [...own, ...literal])
  const outside = (/** @type {string} */ name, /** @type {string} */ confine) =>
    `${source}/${name}: lies outside of ${confine}`
  const parent = 'http://here/bundles'
  assert.deepEqual(await fetched(source, parent), [...own.slice(0, 2), outside('../../x', parent), ...literal])
  assert.deepEqual(await fetched(source, `${source}/`), [
    own[0],
    outside('../first/x', `${source}/`),
    outside('../../x', `${source}/`),
    ...literal,
  ])
  assert.match((await fetched(source, 'http://here/bundles/te'))[0], /lies outside of/)
  assert.throws(() => new Files(source, { confine: '/bundles' }), /confine: got \/bundles, expected a URL/)
  assert.throws(() => new Files(new Map(), { confine: source }), /confine: got .*, expected none/)
  await served((url) => MusicGen.load(`${url}/bundles/standard`, { ort, confine: `${url}/bundles` }).then(() => {}))
  await served((url) =>
    assert.rejects(MusicGen.load(`${url}/bundles/standard`, { ort, confine: `${url}/bundles/standard` }), {
      name: 'BundleError',
      message: /standard\/\.\.\/.*: lies outside of/,
    }),
  )
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
  /** @type {any} */
  const other = structuredClone({ ...tree.variants.fp32, cache: 'int8' })
  const { inputs, outputs } = other.graphs.lm_inference
  for (const tensor of [...inputs, ...outputs]) if (/^(past|present)/.test(tensor.name)) tensor.dtype = 'int8'
  change(files, { variants: { ...tree.variants, other }, backends: { wasm: ['other'], webgpu: [] }, variant: 'fp32' })
  assert.equal((await MusicGen.load(files, { ort })).manifest.variant, 'fp32')
  const wasm = await Manifest.open(files, { ort: /** @type {any} */ (web), executionProviders: ['wasm'] })
  assert.equal(wasm.variant, 'other')
  const gpu = { ort: /** @type {any} */ (web), executionProviders: ['webgpu'], variant: 'other' }
  await assert.rejects(MusicGen.load(files, gpu), /"other" has an int8 KV cache, which WebGPU does not support/)
})
