/** What React Native needs of js/src, as far as Node can tell; react-native/check.js does the rest. */

import assert from 'node:assert/strict'
import { existsSync, statSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath, pathToFileURL } from 'node:url'

import * as ort from 'onnxruntime-node'

import { figuresOf } from '../react-native/figures.js'
import { BundleError } from '../src/files.js'
import { yieldToEventLoop } from '../src/generation.js'
import * as api from '../src/index.js'
import { randomSeed } from '../src/language_model.js'
import { createSha256 } from '../src/sha256.js'
import { BUNDLE, clip } from './kit.js'

const JS = fileURLToPath(new URL('..', import.meta.url))
const APP = join(JS, 'react-native')

/**
 * A bundle's folder as a phone has it: files as expo-file-system's, and the names of those that JavaScript has read.
 *
 * @param {Record<string, { size?: number, hash?: string, content?: Uint8Array }>} [changes] by name
 */
function phone(changes = {}) {
  /** @type {string[]} */
  const read = []
  const file = (/** @type {string} */ name) => {
    const path = join(BUNDLE, name)
    const { size, hash, content } = changes[name] ?? {}
    return {
      exists: existsSync(path),
      size: size ?? (existsSync(path) ? statSync(path).size : 0),
      bytes: async () => {
        read.push(name)
        return content ?? new Uint8Array(await readFile(path))
      },
      digest: async () => {
        const hasher = createSha256()
        hasher.update(await readFile(path))
        return hash ?? hasher.digest().toUpperCase()
      },
    }
  }
  return { read, device: { folder: pathToFileURL(BUNDLE).href, file } }
}

test('a phone opens weights by their paths, and generates the same codes', async () => {
  const { read, device } = phone()
  const options = { description: 'warm pads', duration: 1.2, seed: 7 }
  const found = []
  for (const source of [device, BUNDLE]) {
    const model = await api.MusicGen.load(source, { ort, native: false })
    found.push((await model.generateContinuation(clip(0.5, 32000), 32000, options)).codes)
    await model.release()
  }
  assert.deepEqual(found[0], found[1])
  assert.deepEqual(read, ['manifest.json', 'tokenizer.json'])
})

test('files of a phone are compared with the manifest', async () => {
  const weights = 'lm_inference.onnx.data'
  for (const [change, message] of /** @type {const} */ ([
    [{ size: 3 }, /got 3 bytes/],
    [{ hash: 'ab' }, /SHA-256 is ab/],
  ])) {
    const { device } = phone({ [weights]: change })
    await assert.rejects(api.MusicGen.load(device, { ort }), (error) => {
      assert.ok(error instanceof BundleError && message.test(error.message), String(error))
      return true
    })
  }
  const { device } = phone()
  const manifest = await api.Manifest.open(device, { ort })
  await assert.rejects(manifest.files.path('../other/x.onnx'), BundleError)
  await assert.rejects(manifest.files.verify('absent.onnx', { bytes: 1, sha256: '' }), /not found/)
})

test('weights that the manifest does not list are not opened', async () => {
  const tree = JSON.parse(await readFile(join(BUNDLE, 'manifest.json'), 'utf8'))
  delete tree.files['lm_inference.onnx.data']
  const { device } = phone({ 'manifest.json': { content: Buffer.from(JSON.stringify(tree)) } })
  const manifest = await api.Manifest.open(device, { ort })
  await assert.rejects(manifest.graph('lm_inference').session(), /lm_inference.onnx.data: not listed in manifest.json/)
})

test('a tensor begins where its buffer does', async () => {
  const manifest = await api.Manifest.open(BUNDLE, { ort })
  const graph = manifest.graph('compression_encode')
  const name = Object.keys(graph.inputs)[0]
  const samples = Float32Array.from({ length: 3000 }, (_, i) => i)
  const sizes = Object.fromEntries(graph.inputs[name].shape.map((size) => [size, size === 'batch' ? 1 : 1000]))
  const { data } = graph.tensor(name, samples.subarray(1000, 2000), sizes)
  assert.equal(/** @type {Float32Array} */ (data).byteOffset, 0)
  assert.equal(data[0], 1000)
})

test('without a message channel and without crypto', async (context) => {
  for (const name of ['MessageChannel', 'crypto']) {
    const before = /** @type {PropertyDescriptor} */ (Object.getOwnPropertyDescriptor(globalThis, name))
    Object.defineProperty(globalThis, name, { value: undefined, configurable: true, writable: true })
    context.after(() => Object.defineProperty(globalThis, name, before))
  }
  await yieldToEventLoop()
  const seeds = new Set(Array.from({ length: 20 }, randomSeed))
  assert.ok(seeds.size > 15 && [...seeds].every((seed) => Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32))
})

test("figures are those of the manifest's files and shapes", async () => {
  const tree = JSON.parse(await readFile(join(BUNDLE, 'manifest.json'), 'utf8'))
  const [{ variant, refusal, files, weights, text, cache, guided, download }] = figuresOf(tree)
  assert.deepEqual([variant, refusal], ['fp32', null])
  assert.equal(cache, 3 * 2 * 4 * 16 * (1500 + 3 + 1) * 4) // layers, keys and values, heads, channels, columns, bytes
  assert.equal(guided, 2 * cache)
  const sizes = Object.fromEntries(files.map((name) => [name, statSync(join(BUNDLE, name)).size]))
  assert.equal(
    download,
    Object.values(sizes).reduce((sum, n) => sum + n),
  )
  assert.equal(weights + text, download - sizes['tokenizer.json'])
  assert.ok(text > sizes['text_encoder.onnx.data'])
  const half = structuredClone(tree)
  half.variants.fp32.graphs.lm_inference.inputs[2].dtype = 'float16'
  assert.match(String(figuresOf(half)[0].refusal), /Float16Array/)
})

test('js/src can be bundled for React Native, and the app imports what there is', async () => {
  for (const name of await readdir(join(JS, 'src'))) {
    const text = await readFile(join(JS, 'src', name), 'utf8')
    const code = text.replace(/\/\*[\s\S]*?\*\//g, '')
    assert.doesNotMatch(code, /import\.meta|from 'node:|import\('node:|import 'node:/, name)
  }
  const { dependencies } = JSON.parse(await readFile(join(APP, 'package.json'), 'utf8'))
  for (const name of ['index.js', 'App.js', 'bundle.js', 'sound.js']) {
    const text = await readFile(join(APP, name), 'utf8')
    for (const [, names, from] of text.matchAll(/^import (.+?) from '(.+?)'/gm)) {
      if (from.startsWith('.')) assert.ok(existsSync(join(dirname(join(APP, name)), from)), from)
      else assert.ok(from in dependencies, `${name}: ${from}`)
      if (from !== 'clean-lm') continue
      for (const one of names.replace(/[{}\s]/g, '').split(',')) assert.ok(one in api, one)
    }
  }
})
