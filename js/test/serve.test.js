/** The demo's server: hostile requests, manifests and flags end neither the server nor what it keeps to itself. */

import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync } from 'node:fs'
import { mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import { validate } from '../demo/bundles.js'
import { serve } from '../demo/serve.js'
import { Site } from '../demo/site.js'
import { BUNDLE } from './kit.js'

const PROGRAM = fileURLToPath(new URL('../demo/serve.js', import.meta.url))
const LARGE = 2 ** 25 // bytes: more than a socket's buffers hold
const folder = realpathSync(mkdtempSync(join(tmpdir(), 'clean-lm-serve-')))
after(() => rmSync(folder, { recursive: true }))

/**
 * A bundle's folder with files of three bytes.
 *
 * @param {string} name
 * @param {string[]} files
 * @param {any} [manifest]
 */
function makeBundle(name, files, manifest = { files: Object.fromEntries(files.map((file) => [file, {}])) }) {
  const path = join(folder, name)
  mkdirSync(path, { recursive: true })
  for (const file of files) if (!/[./]{2}/.test(file)) writeFileSync(join(path, file), 'abc')
  writeFileSync(join(path, 'manifest.json'), typeof manifest === 'string' ? manifest : JSON.stringify(manifest))
  return path
}

const first = makeBundle('first', ['a.onnx', 'large.onnx', 'hash # 50% é.bin'])
const second = makeBundle('second', ['b.onnx', '../first/a.onnx'])
truncateSync(join(first, 'large.onnx'), LARGE)

/** @type {{ url: string, close: () => void }} */
let server
/** @type {URL} */
let root
before(async () => {
  server = await serve({ bundles: [first, second], port: 0, host: '127.0.0.1' })
  root = new URL('/', server.url)
})
after(() => server.close())

/** @param {string} path @param {RequestInit} [init] */
const get = (path, init) => fetch(new URL(path, root), { redirect: 'manual', ...init })

/** Send bytes and return the answer. @param {string} bytes @param {URL} [to] */
async function raw(bytes, to = root) {
  const socket = connect(Number(to.port), '127.0.0.1')
  socket.write(bytes)
  /** @type {Buffer[]} */
  const parts = []
  socket.on('data', (part) => parts.push(part)).on('error', () => {})
  await once(socket, 'close')
  return Buffer.concat(parts).toString('latin1')
}

test('malformed requests are answered, with the headers of every answer', async () => {
  const paths = [
    '//',
    '///',
    'http://[',
    '*',
    'x',
    '/%',
    '/%ff',
    '/%00',
    '/demo/%2e%2e/src/index.js',
    '/\\..\\',
    '/a#b?c',
  ]
  for (const path of paths) {
    const text = await raw(`GET ${path} HTTP/1.1\r\nConnection: close\r\n\r\n`)
    assert.match(text, /^HTTP\/1\.1 40[04] /, path)
    assert.match(text, /Cross-Origin-Embedder-Policy: require-corp/i, path)
  }
  for (const bytes of [
    'nonsense\r\n\r\n',
    'GET / HTTP/9.9\r\n\r\n',
    `GET / HTTP/1.1\r\nx: ${'y'.repeat(99_999)}\r\n\r\n`,
  ]) {
    const text = await raw(bytes)
    assert.match(text, /^HTTP\/1\.1 400 Bad Request\r\n/)
    assert.match(text, /Cross-Origin-Opener-Policy: same-origin/)
  }
  assert.match(await raw('GET http://proxy.test/demo/ HTTP/1.1\r\nConnection: close\r\n\r\n'), /^HTTP\/1\.1 200 /)
  const expecting = await raw('GET /none HTTP/1.1\r\nExpect: a miracle\r\nConnection: close\r\n\r\n')
  assert.match(expecting, /^HTTP\/1\.1 404 [^]*require-corp/)
  assert.equal((await get('/demo/')).status, 200)
})

test('what is no HTTP is not answered in the middle of a file, and answers without a body say so', async () => {
  const socket = connect(Number(root.port), '127.0.0.1')
  /** @type {Buffer[]} */
  const parts = []
  socket.on('data', (part) => parts.push(part)).on('error', () => {})
  socket.write('GET /bundles/first/large.onnx HTTP/1.1\r\n\r\n')
  await once(socket, 'data')
  socket.write('nonsense\r\n\r\n')
  await once(socket, 'close')
  const text = Buffer.concat(parts).toString('latin1')
  assert.match(text, /^HTTP\/1\.1 200 /)
  assert.doesNotMatch(text, /400 Bad Request/)
  for (const request of ['GET /none HTTP/1.0', 'POST / HTTP/1.0', 'GET / HTTP/1.0'])
    assert.match(await raw(`${request}\r\n\r\n`), /\r\nContent-Length: 0\r\n[^]*\r\n\r\n$/, request)
})

test('ranges, HEAD, 304, types and names', async () => {
  const part = await get('/bundles/first/a.onnx', { headers: { Range: 'bytes=1-' } })
  assert.deepEqual([part.status, part.headers.get('content-range'), await part.text()], [206, 'bytes 1-2/3', 'bc'])
  const beyond = await get('/bundles/first/a.onnx', { headers: { Range: 'bytes=9-' } })
  assert.deepEqual([beyond.status, beyond.headers.get('content-range')], [416, 'bytes */3'])
  assert.equal(beyond.headers.get('cross-origin-opener-policy'), 'same-origin')
  const head = await get('/bundles/first/large.onnx', { method: 'HEAD' })
  assert.deepEqual([head.headers.get('content-length'), await head.text()], [String(LARGE), ''])
  for (const path of ['/demo/app.js', '/bundles/first/manifest.json']) {
    const etag = (await get(path)).headers.get('etag')
    const again = await raw(`GET ${path} HTTP/1.1\r\nIf-None-Match: ${etag}\r\nConnection: close\r\n\r\n`)
    assert.match(again, /^HTTP\/1\.1 304 [^]*require-corp[^]*\r\n\r\n$/, path)
  }
  const types = {
    'demo/': 'text/html',
    'demo/app.js': 'text/javascript',
    'demo/page.webmanifest': 'application/manifest+json',
    'demo/icon.svg': 'image/svg+xml',
    'vendor/tokenizers.mjs': 'text/javascript',
    'vendor/ort/ort-wasm-simd-threaded.wasm': 'application/wasm',
    'bundles/index.json': 'application/json',
    'bundles/first/a.onnx': 'application/octet-stream',
  }
  for (const [path, type] of Object.entries(types)) {
    const { status, headers } = await get(path, { method: 'HEAD' })
    assert.deepEqual([status, headers.get('content-type')?.split(';')[0]], [200, type], path)
    assert.equal(headers.get('cross-origin-embedder-policy'), 'require-corp')
  }
  assert.equal(await (await get(`/bundles/first/${encodeURIComponent('hash # 50% é.bin')}`)).text(), 'abc')
  assert.deepEqual(await (await get('/bundles/index.json')).json(), { bundles: ['first', 'second'], loop: false })
  for (const path of ['/demo/serve.js', '/demo/site.js', '/demo/export.js', '/package.json'])
    assert.equal((await get(path)).status, 404)
  const posted = await get('/demo/', { method: 'POST', body: 'x' })
  assert.deepEqual([posted.status, posted.headers.get('allow')], [405, 'GET, HEAD'])
})

test('files of another bundle are shared; every other way out of a folder is refused by name', () => {
  const files = new Site([first, second]).files()
  assert.ok(files.has('bundles/first/a.onnx') && files.has('bundles/second/b.onnx'))
  assert.throws(
    () => new Site([second]),
    /second.manifest\.json: lists "\.\.\/first\/a\.onnx", which is no regular file in/,
  )
  mkdirSync(join(folder, 'elsewhere'), { recursive: true })
  symlinkSync('/etc/passwd', join(makeBundle('linked', []), 'link.onnx'))
  symlinkSync(join(folder, 'elsewhere'), join(folder, 'linked/inner'))
  writeFileSync(join(folder, 'elsewhere/x'), 'secret')
  const names = [
    '../../../../../../../../etc/passwd',
    '/etc/passwd',
    '../../demo/app.js',
    '../../sw.js',
    '../index.json',
  ]
  names.push(
    '..',
    '../first',
    '../firstly/a.onnx',
    'x\\..\\..\\y',
    '../../bundles/second/b.onnx',
    '',
    '.',
    'link.onnx',
    'inner/x',
  )
  for (const name of names) {
    const bundle = makeBundle('linked', [], { files: { [name]: {} } })
    const refused = /^Error: [^\n]*linked.manifest\.json: lists "[^\n]*expected a file of its own folder[^\n]*$/
    assert.throws(() => new Site([bundle, first]), refused, name)
  }
  const same = makeBundle('other/first', [])
  assert.throws(() => new Site([first, same]), /other.first: the bundle .*first has the same name; rename/)
})

test('a manifest that is none is refused in one line', () => {
  const manifests = ['{"files":', 'null', '[]', '{}', '{"files":null}', '{"files":[]}', '{"files":"a"}', '"\n\n"', '']
  for (const text of manifests) {
    const bundle = makeBundle('broken', [], text)
    assert.throws(() => new Site([bundle]), /^Error: [^\n]*manifest\.json: [^\n]*expected a bundle[^\n]*$/, text)
  }
  assert.throws(() => new Site([join(folder, 'none')]), /none.manifest\.json: not a file of this folder/)
  assert.throws(() => new Site(['/']), /^Error: \/: cannot be served by this name/)
  assert.throws(() => new Site([first], join(folder, 'loop.wav')), /loop\.wav: not found/)
  if (process.platform === 'win32') return
  const pipe = makeBundle('pipe', ['fifo.onnx'])
  rmSync(join(pipe, 'fifo.onnx'))
  execFileSync('mkfifo', [join(pipe, 'fifo.onnx'), join(folder, 'fifo')])
  assert.throws(() => new Site([pipe]), /lists "fifo\.onnx", which is no regular file/)
  assert.throws(() => new Site([first], join(folder, 'fifo')), /fifo: not a regular file/)
})

test(
  'directories, pipes, devices and links that lead out are not found',
  { skip: process.platform === 'win32' },
  async () => {
    const bundle = makeBundle('odd', ['fifo', 'folder', 'device', 'late'])
    const own = await serve({ bundles: [bundle], port: 0, host: '127.0.0.1' })
    const status = async (/** @type {string} */ name) => (await fetch(new URL(`/bundles/odd/${name}`, own.url))).status
    assert.equal(await status('late'), 200)
    for (const name of ['fifo', 'folder', 'device', 'late']) rmSync(join(bundle, name)) // after the list was made
    execFileSync('mkfifo', [join(bundle, 'fifo')])
    mkdirSync(join(bundle, 'folder'))
    symlinkSync('/dev/zero', join(bundle, 'device'))
    symlinkSync('/etc/passwd', join(bundle, 'late'))
    for (const name of ['fifo', 'folder', 'device', 'late']) assert.equal(await status(name), 404, name)
    own.close()
  },
)

test('a manifest that is removed or half-written leaves the last good list', async () => {
  const bundle = makeBundle('live', ['a.onnx'])
  const manifest = join(bundle, 'manifest.json')
  const own = await serve({ bundles: [bundle], port: 0, host: '127.0.0.1' })
  const said = console.error
  /** @type {string[]} */
  const lines = []
  console.error = (line) => lines.push(line)
  try {
    const read = async (/** @type {string} */ name) => fetch(new URL(`/bundles/live/${name}`, own.url))
    const good = await (await read('manifest.json')).text()
    const breaks = [
      () => rmSync(manifest),
      () => writeFileSync(manifest, good.slice(0, 9)),
      () => makeBundle('live', ['../x']),
    ]
    for (const damage of breaks) {
      damage()
      for (let i = 0; i < 3; i++) assert.equal(await (await read('a.onnx')).text(), 'abc')
      assert.equal(await (await read('manifest.json')).text(), good)
      assert.equal((await fetch(own.url)).status, 200)
    }
    assert.equal(lines.length, 3) // one a change, not one a request
    makeBundle('live', ['a.onnx', 'new.onnx'])
    assert.equal((await read('new.onnx')).status, 200)
  } finally {
    console.error = said
    own.close()
  }
})

test('downloads that are broken off leave no descriptor', { skip: !existsSync('/proc/self/fd') }, async () => {
  const open = () => readdirSync('/proc/self/fd').length
  await (await get('/bundles/first/a.onnx')).text()
  const opened = open()
  for (let i = 0; i < 50; i++) {
    const socket = connect(Number(root.port), '127.0.0.1')
    socket.write('GET /bundles/first/large.onnx HTTP/1.1\r\nHost: x\r\n\r\n')
    await once(socket, 'data')
    socket.destroy()
  }
  for (let waited = 0; open() > opened && waited < 5000; waited += 50) await sleep(50)
  assert.ok(open() <= opened, `${open()} descriptors, ${opened} before`)
})

/** Run the program to its end. @param {string[]} args */
async function run(args) {
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: 'pipe' })
  let [out, error] = ['', '']
  child.stdout.on('data', (text) => ((out += text), /Ctrl/.test(out) && child.kill('SIGTERM')))
  child.stderr.on('data', (text) => (error += text))
  const [code, signal] = await once(child, 'close')
  return { code, signal, out, error }
}

test('flags are refused in one line, and a signal ends the server', async () => {
  const bundle = ['--bundle', first]
  const key = join(folder, 'key.pem')
  writeFileSync(key, 'no key')
  /** @type {[string[], RegExp][]} */
  const wrong = [
    [['--cert', key], /^--cert: https needs both/],
    [['--key', key], /^--key: https needs both/],
    [['--cert', key, '--key', key], /^--cert .*key\.pem: .*expected a certificate and its key/],
    [['--cert', key, '--key', `${key}.none`], /key\.pem\.none: not found/],
    [['--port', 'x'], /^--port x: expected a whole number from 0/],
    [['--port', '65536'], /^--port 65536: /],
    [['--port', '0', '--host', '203.0.113.1'], /^cannot serve on host 203\.0\.113\.1, port 0: /],
    [['--out', folder], /--out .*: the folder has files that this program did not write/],
    [['--out', key], /--out .*key\.pem: ENOTDIR, expected a folder/],
  ]
  const results = await Promise.all([
    ...wrong.map(([flags]) => run([...bundle, ...flags])),
    run([...bundle, '--port', '0']),
  ])
  wrong.forEach(([flags, message], i) => {
    assert.match(results[i].error, message)
    assert.deepEqual([results[i].code, results[i].error.trim().split('\n').length], [1, 1], flags.join(' '))
  })
  const { code, signal, error } = results[wrong.length]
  assert.deepEqual([code, signal, error], [0, null, ''])
})

test('--out writes the whole site into its own folder, or nothing', async () => {
  const out = join(folder, 'site')
  assert.equal((await run(['--bundle', first, second, '--out', out])).code, 0)
  assert.equal(readFileSync(join(out, 'bundles/first/a.onnx'), 'utf8'), 'abc')
  assert.match(readFileSync(join(out, '_headers'), 'utf8'), /Embedder-Policy: require-corp/)
  assert.equal((await run(['--bundle', first, '--out', out])).code, 0) // its own folder is replaced
  assert.ok(!existsSync(join(out, 'bundles/second')))

  const before = readdirSync(folder)
  const lost = makeBundle('lost', [], { files: { 'gone.onnx': {} } })
  const hostile = makeBundle('hostile', [], { files: { '../../escaped': {} } })
  const missing = await run(['--bundle', lost, '--out', join(folder, 'none')])
  assert.match(missing.error, /^bundles\/lost\/gone\.onnx: the file is missing, so nothing was written/)
  assert.match((await run(['--bundle', hostile, '--out', join(folder, 'none')])).error, /hostile.manifest\.json: lists/)
  assert.deepEqual(readdirSync(folder).sort(), [...before, 'lost', 'hostile'].sort())
})

test('the page refuses a manifest that is not as it expects', () => {
  const good = readFileSync(join(BUNDLE, 'manifest.json'), 'utf8')
  assert.ok(validate(good, 'text').graphs.lm_inference)
  const damages = ['graphs', 'files', 'model', 'defaults', 'variants'].flatMap((field) => {
    return [5, 'x', [], [{}], { a: null }, { a: {} }].map((value) =>
      JSON.stringify({ ...JSON.parse(good), [field]: value }),
    )
  })
  for (const text of [good.slice(0, 99), '', 'null', '[]', ...damages])
    assert.throws(() => validate(text, '<b>x</b>'), /^TypeError: “<b>x<\/b>” (is|contains) [^\n]*$/, text.slice(-99))
})
