/** Bundles of the Hugging Face hub, from a local server that speaks its routes. */

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { lstat, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, afterEach, before, beforeEach, test } from 'node:test'

import * as node from 'onnxruntime-node'
import * as web from 'onnxruntime-web'

import { BundleError, MusicGen } from '../src/index.js'
import { bundleFiles, BUNDLE } from './kit.js'

const ort = /** @type {any} */ (node)
const COMMIT = 'c0ffee'.padEnd(40, '0')
const TOKEN = 'hf_secret'

/** @type {Map<string, any>} the files of user/repo */
let files
/** Requests to the hub, and to the storage behind it. @type {{ url?: string, authorization?: string }[][]} */
const [requests, stored] = [[], []]
/** @type {import('node:http').Server[]} */
const servers = []
let [endpoint, storage] = ['', '']

/** @param {import('node:http').RequestListener} listener */
async function listen(listener) {
  const server = createServer(listener)
  servers.push(server)
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(null)))
  return `http://127.0.0.1:${/** @type {any} */ (server.address()).port}`
}

/** The hub: /{repo}/resolve/{revision}/{file}. Files that are not JSON are stored elsewhere. */
before(async () => {
  storage = await listen((request, response) => {
    stored.push({ url: request.url, authorization: request.headers.authorization })
    response.end(files.get(decodeURIComponent(request.url ?? '').slice(1)))
  })
  endpoint = await listen((request, response) => {
    const { authorization } = request.headers
    requests.push({ url: request.url, authorization })
    const [, user, repo, , revision, ...path] = (request.url ?? '').split('/').map(decodeURIComponent)
    const name = path.join('/')
    const fail = (/** @type {number} */ status, /** @type {string} */ code) =>
      response.writeHead(status, { 'x-error-code': code }).end()
    if (repo === 'moved') return response.writeHead(307, { location: request.url?.replace('moved', 'repo') }).end()
    if (repo === 'gated') return fail(403, 'GatedRepo')
    if (repo === 'busy') return fail(503, '')
    if (repo === 'private' ? authorization !== `Bearer ${TOKEN}` : repo !== 'repo') return fail(401, 'RepoNotFound')
    if (user !== 'user' || !['main', 'refs/pr/1', COMMIT].includes(revision)) return fail(404, 'RevisionNotFound')
    if (!files.has(name)) return fail(404, 'EntryNotFound')
    response.setHeader('x-repo-commit', COMMIT)
    if (name.endsWith('.json')) return response.end(files.get(name))
    response.writeHead(302, { location: `${storage}/${encodeURIComponent(name)}` }).end()
  })
})
after(() => servers.forEach((server) => server.close()))

/** @type {string} */
let cacheFolder
beforeEach(async () => {
  files = await bundleFiles()
  requests.length = stored.length = 0
  cacheFolder = await mkdtemp(join(tmpdir(), 'clean-lm-hub-'))
})
afterEach(() => rm(cacheFolder, { recursive: true }))

/** @param {string} [source] @param {object} [options] */
const load = (source = 'hf:user/repo', options = {}) =>
  MusicGen.load(source, { ort, endpoint, cacheFolder, ...options })

/** @param {MusicGen} model */
async function codes(model) {
  const found = await model.generate({ duration: 0.3, seed: 2, description: 'drums' })
  await model.release()
  return JSON.stringify(found.codes)
}

/** @param {any} entries of manifest.json */
function change(entries) {
  files.set(
    'manifest.json',
    Buffer.from(JSON.stringify({ ...JSON.parse(String(files.get('manifest.json'))), ...entries })),
  )
}

/** All files below a folder. @param {string} folder */
const listed = async (folder) =>
  (await readdir(folder, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile())

test('hf:user/repo loads, with progress, and the next time only manifest.json is fetched', async () => {
  /** @type {number[][]} */
  const reports = []
  const model = await load('hf:user/repo', { onProgress: (/** @type {number[]} */ ...report) => reports.push(report) })
  const expected = await codes(await MusicGen.load(BUNDLE, { ort }))
  const fetched = requests.length
  assert.equal(await codes(model), expected)
  assert.equal(requests.length, fetched, 'nothing is downloaded during a generation')
  const { files: entries } = model.manifest.tree
  const total = reports[0][1]
  assert.ok(reports.every(([done, all], i) => all === total && done > (reports[i - 1]?.[0] ?? 0)))
  assert.equal(reports[reports.length - 1][0], total)
  assert.equal(total, Object.entries(entries).reduce((sum, [name, { bytes }]) => sum + (/decode/.test(name) && !/data/.test(name) ? 0 : bytes), 0)) // prettier-ignore

  requests.length = stored.length = 0
  assert.equal(await codes(await load()), expected)
  assert.deepEqual(requests, [{ url: '/user/repo/resolve/main/manifest.json', authorization: undefined }])
  assert.deepEqual(stored, [])
})

test('all files are of the commit that manifest.json came from', async () => {
  await load()
  const [first, ...others] = requests.map(({ url }) => url)
  assert.equal(first, '/user/repo/resolve/main/manifest.json')
  assert.ok(others.length && others.every((url) => url?.startsWith(`/user/repo/resolve/${COMMIT}/`)))
})

test('a revision, and a repository that moved', async () => {
  await load('hf:user/repo@refs/pr/1', { lazy: true })
  assert.equal(requests[0].url, '/user/repo/resolve/refs%2Fpr%2F1/manifest.json')
  await load('hf:user/moved', { lazy: true })
})

test('files are kept by their SHA-256, whole, and shared between bundles', async () => {
  const { manifest } = await load()
  const kept = await readdir(join(cacheFolder, 'files'))
  for (const name of kept) {
    const bytes = await readFile(join(cacheFolder, 'files', name))
    assert.equal(createHash('sha256').update(bytes).digest('hex'), name)
  }
  assert.equal(kept.length, new Set(kept).size)
  assert.ok((await listed(cacheFolder)).every(({ name }) => !name.includes('partial')))
  const { sha256 } = manifest.tree.files['lm_inference.onnx.data']
  const path = /** @type {string} */ (await manifest.files.path('lm_inference.onnx.data'))
  assert.equal((await stat(path)).ino, (await stat(join(cacheFolder, 'files', sha256))).ino)
  requests.length = 0
  change({ source: { repository: 'another/bundle', revision: 'with the same files' } })
  await load()
  assert.equal(requests.length, 1)
})

test('what is damaged in the cache is downloaded again', async () => {
  const { manifest } = await load()
  const path = /** @type {string} */ (await manifest.files.path('lm_inference.onnx.data'))
  const { sha256 } = manifest.tree.files['lm_inference.onnx.data']
  await rm(path)
  await writeFile(join(cacheFolder, 'files', sha256), 'half')
  requests.length = 0
  await codes(await load())
  assert.deepEqual(
    requests.map(({ url }) => url?.replace(/.*\//, '')),
    ['manifest.json', 'lm_inference.onnx.data'],
  )
})

for (const [name, damage] of /** @type {[string, (bytes: Buffer) => Buffer][]} */ ([
  ['short', (bytes) => bytes.subarray(0, 9)],
  ['long', (bytes) => Buffer.concat([bytes, bytes])],
  ['changed', (bytes) => Buffer.from(bytes.map((byte, i) => (i === 5 ? byte ^ 1 : byte)))],
])) {
  test(`a download that is ${name} is refused and not kept`, async () => {
    files.set('lm_inference.onnx.data', damage(files.get('lm_inference.onnx.data')))
    const refused = (/** @type {any} */ error) =>
      error instanceof BundleError &&
      /repo\/lm_inference\.onnx\.data: (got (more than )?\d+ bytes|SHA-256 is)/.test(error.message)
    await assert.rejects(load(), refused)
    const names = (await listed(cacheFolder)).map((entry) => entry.name)
    assert.ok(!names.includes('lm_inference.onnx.data') && names.every((kept) => !kept.includes('partial')))
  })
}

test('an abort leaves nothing half written', async () => {
  const controller = new AbortController()
  const onProgress = () => controller.abort(new Error('enough'))
  await assert.rejects(load('hf:user/repo', { onProgress, signal: controller.signal }), /enough/)
  assert.ok((await listed(cacheFolder)).every(({ name }) => !name.includes('partial')))
})

test('a token reaches the hub, and no other host', async () => {
  await assert.rejects(load('hf:user/private'), /private; check its name, or pass a token \(HTTP 401\)/)
  await assert.rejects(load('hf:user/private', { token: 'hf_other' }), /the token gives no access to it \(HTTP 401\)/)
  requests.length = 0
  await load('hf:user/private', { token: TOKEN })
  assert.ok(requests.every(({ authorization }) => authorization === `Bearer ${TOKEN}`))
  assert.ok(stored.length && stored.every(({ authorization }) => authorization === undefined))
})

test('HF_ENDPOINT and HF_TOKEN are used in Node', async () => {
  const { HF_ENDPOINT, HF_TOKEN } = process.env
  try {
    Object.assign(process.env, { HF_ENDPOINT: `${endpoint}/`, HF_TOKEN: TOKEN })
    await MusicGen.load('hf:user/private', { ort, cacheFolder, lazy: true })
  } finally {
    for (const [name, value] of Object.entries({ HF_ENDPOINT, HF_TOKEN }))
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
  }
})

test('what the hub refuses is said in one line', async () => {
  await assert.rejects(
    load('hf:user/nothing'),
    /hf:user\/nothing\/manifest\.json: the repository does not exist or is private/,
  )
  await assert.rejects(load('hf:user/repo@v9'), /the repository has no revision v9 \(HTTP 404\)/)
  await assert.rejects(load('hf:user/gated'), /access is gated; accept the terms on .*\/user\/gated, and pass a token/)
  await assert.rejects(load('hf:user/busy'), /the hub failed; try again later \(HTTP 503\)/)
  files.delete('manifest.json')
  await assert.rejects(load(), /manifest\.json: not in the repository; expected a bundle that export\/hub\.py --push/)
  files = await bundleFiles()
  files.delete('lm_inference.onnx.data')
  await assert.rejects(load(), /hf:user\/repo\/lm_inference\.onnx\.data: not in the repository/)
})

test('without a connection the bundle is the one that was last loaded', async () => {
  const nowhere = 'http://127.0.0.1:9'
  await assert.rejects(load('hf:user/repo', { endpoint: nowhere }), /127\.0\.0\.1:9\/user\/repo.*: cannot be reached/)
  const expected = await codes(await load())
  assert.equal(await codes(await load('hf:user/repo', { endpoint: nowhere })), expected)
  await assert.rejects(load('hf:user/repo@v9', { endpoint: nowhere }), BundleError)
})

test('other sources are no repositories', async () => {
  for (const source of [
    'hf:',
    'hf:repo',
    'hf:user/repo/x',
    'hf:../repo',
    'hf:user/..',
    'hf:user/repo@../x',
    'hf:user/repo@',
    'hf:user/repo@a/../b',
  ])
    // prettier-ignore
    await assert.rejects(load(source), /expected hf:user\/repo or hf:user\/repo@revision/, source)
})

test('a bundle reaches no file outside of its repository', async () => {
  const tree = JSON.parse(String(files.get('manifest.json')))
  const outside = [
    '../x',
    'a/../../x',
    '/etc/passwd',
    'C:\\x',
    '..\\x',
    'a//b',
    './x',
    '.git/config',
    'x?y',
    'https://x/y',
    '',
  ]
  const entry = { bytes: 1, sha256: '0'.repeat(64) }
  for (const name of outside) {
    const graphs = { lm_condition: { ...tree.graphs.lm_condition, data: name } }
    const other = { ...tree.variants.fp32, graphs }
    const listed = { ...tree.files, [name]: entry }
    for (const entries of [{ files: listed }, { files: listed, variants: { ...tree.variants, other } }]) {
      files.set('manifest.json', Buffer.from(JSON.stringify({ ...tree, ...entries })))
      const refused =
        /manifest\.json: (names .*, expected files of user\/repo|a name in files is .*, expected a file's)/
      await assert.rejects(load(), refused, name)
    }
  }
  assert.deepEqual(await listed(cacheFolder), [], 'nothing is kept')
})

test('a manifest that is refused does not take the place of the last one', async () => {
  const expected = await codes(await load())
  for (const broken of [
    '{',
    '{"format": "clean_lm"}',
    String(files.get('manifest.json')).replace('"heads": 4', '"heads": 0'),
  ]) {
    files.set('manifest.json', Buffer.from(broken))
    await assert.rejects(load(), BundleError)
  }
  assert.equal(await codes(await load('hf:user/repo', { endpoint: 'http://127.0.0.1:9' })), expected)
})

test('a link out of the cache is not followed', async () => {
  const { manifest } = await load()
  const path = /** @type {string} */ (await manifest.files.path('lm_inference.onnx.data'))
  await rm(path)
  await symlink(`${BUNDLE}/lm_inference.onnx.data`, path)
  requests.length = 0
  await load()
  assert.equal(requests.length, 2, 'it is downloaded again')
  assert.ok((await lstat(path)).isFile())
})

test('WASM in Node loads from the hub too', async () => {
  const model = await load('hf:user/repo', { ort: /** @type {any} */ (web), executionProviders: ['wasm'] })
  assert.equal(await codes(model), await codes(await MusicGen.load(BUNDLE, { ort })))
})

test('in a browser, its cache keeps files by their SHA-256', async () => {
  /** @type {Map<string, Response>} */
  const kept = new Map()
  const cache = /** @type {any} */ ({
    match: async (/** @type {string} */ url) => kept.get(url)?.clone(),
    put: async (/** @type {string} */ url, /** @type {Response} */ response) => void kept.set(url, response),
  })
  const platform = Object.getOwnPropertyDescriptor(process, 'versions')
  const { HubFiles } = await import('../src/hub.js')
  try {
    Object.defineProperty(process, 'versions', { value: {}, configurable: true })
    const open = async (/** @type {string} */ from) => {
      const found = new HubFiles('hf:user/repo', { ort, endpoint: from, cache })
      const bytes = await found.read('manifest.json')
      const tree = JSON.parse(new TextDecoder().decode(bytes))
      await found.adopt(tree, bytes)
      return found.read('lm_inference.onnx.data', tree.files['lm_inference.onnx.data'])
    }
    const first = await open(endpoint)
    const { sha256 } = JSON.parse(String(files.get('manifest.json'))).files['lm_inference.onnx.data']
    assert.deepEqual(
      [...kept.keys()],
      [`${endpoint}/user/repo/resolve/main/manifest.json`, `${endpoint}/sha256/${sha256}`],
    )
    requests.length = 0
    assert.deepEqual(await open(endpoint), first)
    assert.equal(requests.length, 1)
    servers[1].closeAllConnections()
  } finally {
    if (platform) Object.defineProperty(process, 'versions', platform)
  }
})
