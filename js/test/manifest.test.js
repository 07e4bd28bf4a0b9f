/** manifest.json: what is refused and how, from the table that Python has, too; and files, links and tensors. */

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'

import * as node from 'onnxruntime-node'
import * as web from 'onnxruntime-web'

import { BundleError, Manifest, MusicGen } from '../src/index.js'
import { modelSha256 } from '../src/manifest_checks.js'
import { readTree } from '../src/manifest.js'
import { SCHEMA } from '../src/manifest_schema.js'
import { FieldError, validate } from '../src/typed_json.js'
import { BUNDLE, bundleFiles, KIT } from './kit.js'

const ort = /** @type {any} */ (node)
const CONTROLS = /[\p{C}\p{Zl}\p{Zp}]/u

/** @param {string} path @returns {Promise<any>} */
const json = async (path) => JSON.parse(await readFile(path, 'utf8'))
const MANIFEST = await json(`${BUNDLE}/manifest.json`)
/** @type {{ at: (string | number)[], value?: any, merge?: any, field: string }[]} */
const CASES = await json(`${KIT}/manifests.json`)

/** @param {any} tree */
const read = (tree) => readTree(Buffer.from(JSON.stringify(tree)), 'bundle/manifest.json')

/** The text bundle's manifest with one entry replaced, or removed where the case has no value. @param {typeof CASES[0]} one */
function changed(one) {
  const tree = structuredClone(MANIFEST)
  if (one.merge) return { ...tree, ...one.merge }
  if (!one.at.length) return one.value
  const last = one.at[one.at.length - 1]
  const parent = one.at.slice(0, -1).reduce((found, step) => found[step], tree)
  if ('value' in one) parent[last] = one.value
  else delete parent[last]
  return tree
}

/** Reading is refused in one line that contains all of `words`. @param {Promise<any>} reading @param {string[]} words */
async function refused(reading, ...words) {
  await assert.rejects(reading, (error) => {
    assert.ok(error instanceof BundleError, String(error))
    for (const word of ['manifest.json', ...words]) assert.ok(error.message.includes(word), error.message)
    assert.ok(!CONTROLS.test(error.message) && error.message.length < 600, error.message)
    return true
  })
}

for (const one of CASES) {
  const value = JSON.stringify(one.merge?.model ?? one.value)?.slice(0, 20) ?? 'removed'
  test(`${one.at.join('.')} = ${value} is refused`, () => refused(read(changed(one)), one.field))
}

test('the kit reads', async () => {
  for (const name of await readdir(`${KIT}/bundles`)) {
    const tree = await json(`${KIT}/bundles/${name}/manifest.json`)
    assert.deepEqual(await read(tree), tree)
    assert.equal(await modelSha256(tree.model), tree.model_sha256)
  }
})

test('what is no manifest', async () => {
  for (const [text, message] of [
    ['', 'not readable JSON'],
    [Buffer.from([0xff, 0xfe]), 'not readable JSON'],
    [Buffer.from([0x22, 0xff, 0x22]), 'not readable JSON'],
    ['\ufeff{}', 'not readable JSON'],
    ['{"a": \u001b[31m\n}', 'not readable JSON'],
    ['[['.repeat(50_000), 'not readable JSON'],
    [`${'['.repeat(1000)}${']'.repeat(1000)}`, 'format is a list of 1'],
    [`${'{"format":'.repeat(900)}1${'}'.repeat(900)}`, 'format is an object of 1'],
    [`{"format": "clean_lm", "version": ${'9'.repeat(5000)}}`, 'version is Infinity'],
    ['{"format": "clean_lm", "version": NaN}', 'not readable JSON'],
    ['{"format": "\\ud800", "version": 1}', "format is '\\ud800'"],
    ['null', 'format is null'],
    ['{"__proto__": {"format": "clean_lm", "version": 1}}', 'format is null'],
  ])
    await refused(readTree(Buffer.from(text), 'manifest.json'), String(message))
})

test('names that objects inherit are names like others', async () => {
  const text = JSON.stringify(MANIFEST)
  for (const name of ['__proto__', 'constructor', 'toString', 'hasOwnProperty']) {
    for (const [place, field] of [
      [text.replace('{', `{"${name}": {},`), `it has the unknown field '${name}'`],
      [text.replace('"model":{', `"model":{"${name}": 1,`), `model has the unknown field '${name}'`],
      [text.replace('"graphs":{', `"graphs":{"${name}": {},`), `a name in graphs is '${name}'`],
      [text.replace('"files":{', `"files":{"${name}": {},`), `files.${name} lacks bytes`],
      [text.replace('"variant":"fp32"', `"variant":"${name}"`), `variant is '${name}'`],
      [text.replace('"file":"lm_inference.onnx"', `"file":"${name}"`), `file is '${name}'`],
    ])
      await refused(readTree(Buffer.from(place), 'manifest.json'), field)
    const files = await bundleFiles()
    const fp32 = JSON.stringify(MANIFEST.variants.fp32)
    files.set('manifest.json', Buffer.from(text.replace('"variants":{', `"variants":{"${name}": ${fp32},`)))
    assert.equal((await Manifest.open(files, { ort, variant: name })).variant, name)
    await refused(Manifest.open(BUNDLE, { ort, variant: name }), `got variant '${name}'`)
  }
  assert.equal(/** @type {any} */ ({}).format, undefined)
})

test('whole numbers may be written with a point', async () => {
  const text = JSON.stringify(MANIFEST).replace('"heads":4', '"heads":4.0').replace('[0,1,2,3]', '[0.0,1e0,2,3]')
  assert.deepEqual(await readTree(Buffer.from(text), 'manifest.json'), MANIFEST)
})

test('a bundle with a codec has a frame rate', async () => {
  const model = { ...MANIFEST.model, frame_rate: null }
  await refused(read({ ...MANIFEST, model, model_sha256: await modelSha256(model) }), 'model.frame_rate is null')
})

test('a variant has no graph that the bundle lacks', async () => {
  const { text_encoder, ...graphs } = MANIFEST.graphs
  const { text_encoder: _, ...own } = MANIFEST.variants.fp32.graphs
  const variants = {
    fp32: { ...MANIFEST.variants.fp32, graphs: own },
    other: { ...MANIFEST.variants.fp32, graphs: { text_encoder } },
  }
  const files = await bundleFiles()
  files.set('manifest.json', Buffer.from(JSON.stringify({ ...MANIFEST, graphs, variants })))
  await refused(Manifest.open(files, { ort }), "variants.other.graphs has text_encoder, which the bundle's graphs lack")
})

test('a version of onnxruntime-node that would end the process is refused', async () => {
  for (const version of ['1.27.0', '1.28.0-dev.1', '0.30.0']) {
    const old = { ...ort, env: { versions: { common: '1.30.0', node: version } } }
    await assert.rejects(Manifest.open(BUNDLE, { ort: old }), {
      message: /^onnxruntime-node .* found, expected 1.29 or/,
    })
  }
  for (const versions of [{ common: '1.20.0', node: '1.29.0' }, { common: '1.20.0', 'react-native': '1.24.3' }, {}]) {
    await Manifest.open(BUNDLE, { ort: { ...ort, env: { versions } } })
  }
})

test('a keyword that the validator does not know is no promise', () => {
  assert.throws(() => validate({ type: 'string', format: 'date' }, 'x'), /the schema has the keyword format/)
  assert.throws(() => validate(SCHEMA, []), FieldError)
})

// Files

/** @type {string} */
let folder
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'clean-lm-'))
})
afterEach(() => rm(folder, { recursive: true }))

/** The text bundle, its files as links; `own` are written instead. @param {Record<string, string | Buffer>} [own] */
async function linked(own = {}) {
  const bundle = join(folder, 'bundle')
  await mkdir(bundle)
  for (const name of await readdir(BUNDLE)) if (!(name in own)) await symlink(`${BUNDLE}/${name}`, join(bundle, name))
  for (const [name, content] of Object.entries(own)) await writeFile(join(bundle, name), content)
  return bundle
}

const KINDS = /** @type {Record<string, (path: string) => unknown>} */ ({
  pipe: (path) => execFileSync('mkfifo', [path]),
  folder: (path) => mkdir(path),
  device: (path) => symlink('/dev/zero', path),
  loop: (path) => symlink(path, path),
  missing: () => {},
})
for (const name of ['manifest.json', 'lm_inference.onnx', 'lm_inference.onnx.data', 'tokenizer.json']) {
  for (const [kind, make] of Object.entries(KINDS)) {
    test(`${name} is a ${kind}: it is not opened`, async () => {
      const bundle = await linked()
      await rm(join(bundle, name))
      await make(join(bundle, name))
      const lines = { name: 'BundleError', message: new RegExp(`^[^\\n]*/${name}: [^\\n]*$`) }
      for (const hashes of [true, false]) {
        const opening = Manifest.open(bundle, { ort, hashes })
        await assert.rejects(async () => (await opening).verify(name), lines)
        await assert.rejects(async () => (await opening).read(name), lines)
      }
    })
  }
}

test('a manifest larger than any is not read', async () => {
  const bundle = await linked({ 'manifest.json': '{' })
  await truncate(join(bundle, 'manifest.json'), 2 ** 26 + 1)
  await refused(Manifest.open(bundle, { ort }), '67108865 bytes, expected at most 67108864')
})

test('sizes are compared without hashes', async () => {
  const content = await readFile(`${BUNDLE}/lm_inference.onnx.data`)
  const bundle = await linked({ 'lm_inference.onnx.data': content.subarray(1) })
  await assert.rejects(MusicGen.load(bundle, { ort, hashes: false }), /got \d+ bytes, expected \d+ \(manifest\.json\)/)
})

test('a confined bundle reaches nothing outside', async () => {
  const bundle = await linked()
  await MusicGen.load(bundle, { ort })
  const outside = { name: 'BundleError', message: /manifest\.json: lies outside of / }
  await assert.rejects(MusicGen.load(bundle, { ort, confine: bundle }), outside)
  await MusicGen.load(BUNDLE, { ort, confine: BUNDLE })
  await MusicGen.load(BUNDLE, { ort, confine: KIT })
  await MusicGen.load(`${KIT}/bundles/standard`, { ort, confine: `${KIT}/bundles` })
  const shared = { name: 'BundleError', message: /compression_\w+\.onnx(\.data)?: lies outside of / }
  await assert.rejects(MusicGen.load(`${KIT}/bundles/standard`, { ort, confine: `${KIT}/bundles/standard` }), shared)
  await assert.rejects(MusicGen.load(BUNDLE, { ort, confine: `${BUNDLE.slice(0, -1)}` }), outside)
  await assert.rejects(MusicGen.load(BUNDLE, { ort, confine: /** @type {any} */ (5) }), /confine: got 5/)
})

test('files of a graph are those of its names, not those that begin so', async () => {
  const entry = { bytes: 1, sha256: '0'.repeat(64) }
  const files = { ...MANIFEST.files, 'lm_inference.onnx.data2': entry, 'lm_inference.onnx2': entry }
  const bundle = await linked({ 'manifest.json': JSON.stringify({ ...MANIFEST, files }) })
  const manifest = await Manifest.open(bundle, { ort })
  const names = (/** @type {string} */ graph) => manifest.filesOf(manifest.tree.graphs[graph])
  assert.deepEqual(names('lm_inference'), ['lm_inference.onnx', 'lm_inference.onnx.data'])
  assert.deepEqual(names('compression_stream'), ['compression_stream.onnx', 'compression_decode.onnx.data'])
  await MusicGen.load(bundle, { ort })
})

for (const [at, value] of /** @type {[string, any][]} */ ([
  ['dtype', 'float16'],
  ['shape', ['batch', 4, 'columns']],
])) {
  test(`a graph whose ${at} is not ${JSON.stringify(value)} is refused`, async () => {
    const tree = structuredClone(MANIFEST)
    for (const graphs of [tree.graphs, tree.variants.fp32.graphs]) graphs.lm_inference.inputs[0][at] = value
    const bundle = await linked({ 'manifest.json': JSON.stringify(tree) })
    const wasm = { ort: /** @type {any} */ (web), executionProviders: ['wasm'] }
    for (const options of [{ ort }, wasm])
      await assert.rejects(MusicGen.load(bundle, options), {
        name: 'BundleError',
        message: /lm_inference\.onnx: input 'codes' .*, manifest\.json says /,
      })
  })
}

test('where ONNX Runtime gives no types, names are compared', async () => {
  const create = async (/** @type {any[]} */ ...given) => {
    const { inputNames, outputNames } = await ort.InferenceSession.create(...given)
    return { inputNames, outputNames, release: async () => {} }
  }
  const plain = { ...ort, InferenceSession: { create } }
  await MusicGen.load(BUNDLE, { ort: plain })
  const tree = structuredClone(MANIFEST)
  for (const graphs of [tree.graphs, tree.variants.fp32.graphs])
    graphs.lm_inference.outputs.push({ name: 'codes', dtype: 'int64', shape: [] })
  const bundle = await linked({ 'manifest.json': JSON.stringify(tree) })
  await assert.rejects(MusicGen.load(bundle, { ort: plain }), /lm_inference\.onnx: output 'codes' is none/)
})
