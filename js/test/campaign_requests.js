/** Broken, absurd and broken-off requests to the page's server, which has the conformance kit's tiny text bundle. */

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

import { serve } from '../demo/serve.js'
import { Site } from '../demo/site.js'
import { accepted, other, refused } from './campaign_outcomes.js'
import { BUNDLE } from './kit.js'

/**
 * @typedef {import('./campaign_outcomes.js').Random} Random
 * @typedef {import('./campaign_outcomes.js').Outcome} Outcome
 *
 * @typedef {object} Request
 * @property {string} method
 * @property {string} target
 * @property {string} text all of it, as latin1
 * @property {string} more what follows it on the same connection; then the server may close it before the answer is whole
 * @property {boolean} later whether that is sent when the answer begins
 * @property {boolean} ends whether the visitor says that nothing more comes
 * @property {number} leaves after how many milliseconds; Infinity: when the answer is whole
 *
 * @typedef {'whole' | 'left' | 'closed' | 'silent'} End how an exchange ended
 * @typedef {{ bytes: Buffer, end: End }} Answer
 * @typedef {{ status: number, headers: Map<string, string>, body: Buffer, size: number }} Parsed size: the body's, in full
 */

const PATIENCE = 5_000 // milliseconds in which the server must answer
const PATHS = [
  ...['demo/', 'demo/app.js', 'src/index.js', 'sw.js', 'bundles/index.json', 'bundles/text/manifest.json'],
  ...['bundles/text/tokenizer.json', 'vendor/ort/ort-wasm-simd-threaded.wasm', 'vendor/tokenizers.mjs', '', 'demo'],
]
const PIECES = [
  ...[
    '/',
    '//',
    '..',
    '.',
    '%2e%2e',
    '%2f',
    '%5c',
    '%',
    '%00',
    '%ff',
    '\\',
    '?',
    '#',
    '*',
    'é',
    ' ',
    '\0',
    '..;',
    '\r\nX: y',
  ],
  ...['demo', 'src', 'bundles', 'text', 'manifest.json', 'app.js', 'index.html', 'serve.js', 'package.json', '::$DATA'],
  ...['http://[', 'http://x', 'etc/passwd', 'vendor/ort/ort-wasm-simd-threaded.wasm', '__proto__', 'x'.repeat(3_000)],
]
const METHODS = [
  ...Array(8).fill('GET'),
  'HEAD',
  'HEAD',
  'POST',
  'OPTIONS',
  'CONNECT',
  'TRACE',
  'get',
  'PRI',
  'X',
  '',
  'é',
]
const VERSIONS = [...Array(8).fill('HTTP/1.1'), 'HTTP/1.0', 'HTTP/2.0', 'HTTP/9', '']
const HEADERS = [
  ...['Host: x', 'Host', ': x', 'Cookie: \x01', `A: ${'y'.repeat(20_000)}`, 'Connection: close', 'Expect: y'],
  ...['Range: bytes=0-1', 'Range: bytes=-1', 'Range: bytes=99999999999999999999-', 'Range: bytes=5-1,2-3', 'Range: x'],
  ...['Range: bytes=3-9', 'If-None-Match: *', 'If-Modified-Since: never', 'If-Range: "x"', 'If-Match: "x"'],
  ...[
    'If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT',
    'Content-Length: 5',
    'Content-Length: -1',
    'Expect: 100-continue',
  ],
  ...[
    'Transfer-Encoding: chunked',
    'Transfer-Encoding: x',
    'Upgrade: websocket\r\nConnection: upgrade',
    'Upgrade: h2c',
  ],
]
const MORE = ['nonsense\r\n\r\n', '\0'.repeat(99), 'GET / HTTP/9\r\n\r\n', 'GET /demo/ HTTP/1.1\r\n\r\n', '5\r\nabc'] // what follows a request

/** @returns {Promise<import('./campaign_outcomes.js').Part>} */
export async function openRequests() {
  const server = await serve({ bundles: [BUNDLE], port: 0, host: '127.0.0.1' })
  const visitor = new Visitor(Number(new URL(server.url).port), new Site([BUNDLE]).files())
  await visitor.isAlive() // before descriptors are counted
  return {
    make: (random) => {
      const request = makeRequest(random)
      return { what: shown(request), run: () => visitor.try(request) }
    },
    close: () => server.close(),
  }
}

/** @param {Random} random @returns {Request} */
export function makeRequest(random) {
  const [method, target] = [random.pick(METHODS), makeTarget(random)]
  const lines = [`${method} ${target} ${random.pick(VERSIONS)}`]
  for (let left = random.below(3); left > 0; left--) lines.push(random.pick(HEADERS))
  let text = `${lines.join('\r\n')}\r\n\r\n`
  const isCut = random.once(12)
  if (isCut) text = text.slice(0, random.below(text.length))
  const more = random.once(5) ? random.pick(MORE) : ''
  const waits = isCut || method === 'PRI' // a server waits for the rest, and no answer begins: the visitor must end it
  const [later, ends] = [random.once(2) && !waits, random.once(4) || waits]
  return { method, target, text, more, later, ends, leaves: random.once(4) ? random.below(20) : Infinity }
}

/** @param {Request} request */
function shown({ text, more, later, ends, leaves }) {
  const then = more && ` then ${later ? 'later ' : ''}${JSON.stringify(more)}`
  const left = leaves < Infinity ? `, left after ${leaves} ms` : ''
  return `${JSON.stringify(text.slice(0, 300))}${then}${ends ? ', ended' : ''}${left}`
}

/** @param {Random} random */
function makeTarget(random) {
  let target = '/'
  if (random.once(2)) target += random.pick(PATHS)
  if (random.once(2)) return target
  for (let left = random.below(6); left > 0; left--) target += random.pick(PIECES) + random.pick(['/', ''])
  return random.once(8) ? target.slice(1) : target
}

/** Sends requests to a server, and judges its answers. */
export class Visitor {
  /**
   * @param {number} port
   * @param {import('../demo/site.js').Files} files that it may have
   * @param {number} [patience] milliseconds
   */
  constructor(port, files, patience = PATIENCE) {
    this.port = port
    this.files = files
    this.patience = patience
    this.open = 0 // descriptors
  }

  /** @param {Request} request @returns {Promise<Outcome>} */
  async try(request) {
    this.open ||= descriptors()
    const outcome = judge(request, await exchange(this.port, request, this.patience), this.files)
    if (outcome.kind === 'other') return outcome
    if (!(await this.isAlive())) return other('the server does not answer afterwards')
    return (await this._leak()) ?? outcome
  }

  async isAlive() {
    const text = 'HEAD /demo/ HTTP/1.1\r\nConnection: close\r\n\r\n'
    const request = { method: 'HEAD', target: '/demo/', text, more: '', later: false, ends: false, leaves: Infinity }
    const answer = await exchange(this.port, request, this.patience)
    return parse(answer.bytes, true)?.status === 200
  }

  /** Descriptors that are not closed; a leak counts once. */
  async _leak() {
    const before = this.open
    for (let waited = 0; descriptors() > before && waited < this.patience; waited += 10) await sleep(10)
    this.open = Math.max(before, descriptors())
    if (this.open > before) return other(`${this.open} open descriptors, ${before} before`)
  }
}

/** How many descriptors this process has open; 0 where the system does not say. */
const descriptors = () => (existsSync('/proc/self/fd') ? readdirSync('/proc/self/fd').length : 0)

/**
 * Send a request, and read until the answer is whole.
 *
 * @param {number} port
 * @param {Request} request
 * @param {number} patience milliseconds
 * @returns {Promise<Answer>}
 */
function exchange(port, { method, text, more, later, ends, leaves }, patience) {
  /** @type {Buffer[]} */
  const parts = []
  let [length, needed] = [0, Infinity]
  const socket = connect(port, '127.0.0.1')
  return new Promise((resolve) => {
    const finish = (/** @type {End} */ end) => {
      clearTimeout(timer)
      socket.destroy()
      resolve({ bytes: Buffer.concat(parts), end })
    }
    const timer = setTimeout(() => finish(leaves < patience ? 'left' : 'silent'), Math.min(leaves, patience))
    socket.on('error', () => {}).on('close', () => finish('closed'))
    const follow = () => void (ends ? socket.end(more, 'latin1') : socket.write(more, 'latin1'))
    if (later) socket.once('data', follow)
    socket.on('data', (part) => {
      length += parts.push(part) && part.length
      if (needed === Infinity) needed = lengthOf(Buffer.concat(parts), method === 'HEAD')
      if (length >= needed) finish('whole')
    })
    socket.write(text, 'latin1')
    if (!later) follow()
  })
}

/** The bytes of an answer in full; Infinity where it does not say. @param {Buffer} bytes @param {boolean} isHead */
function lengthOf(bytes, isHead) {
  const parsed = parse(bytes, isHead)
  return parsed ? bytes.length - parsed.body.length + parsed.size : Infinity
}

/**
 * An answer's head, and what has come of its body; undefined where it is not well-formed, or not whole.
 *
 * @param {Buffer} bytes
 * @param {boolean} isHead
 * @returns {Parsed | undefined}
 */
function parse(bytes, isHead) {
  const at = bytes.indexOf('\r\n\r\n')
  const [first, ...lines] = bytes.toString('latin1', 0, Math.max(at, 0)).split('\r\n')
  const status = Number(/^HTTP\/1\.1 (\d{3}) [ -~]*$/.exec(first)?.[1])
  const found = lines.map((line) => /^([\w-]+): ([ -~]*)$/.exec(line))
  if (!status || found.includes(null)) return undefined
  const headers = new Map(found.map((match) => [String(match?.[1]).toLowerCase(), String(match?.[2])]))
  const size = isHead || status === 304 ? 0 : Number(headers.get('content-length') ?? Infinity)
  return { status, headers, body: bytes.subarray(at + 4), size }
}

/**
 * What an answer is.
 *
 * @param {Request} request
 * @param {Answer} answer
 * @param {import('../demo/site.js').Files} files
 * @returns {Outcome}
 */
export function judge(request, { bytes, end }, files) {
  const isHead = request.method === 'HEAD'
  if (end === 'silent') return other(`no whole answer in time: ${start(bytes)}`)
  if (!bytes.length) return refused('closed')
  const parsed = parse(bytes, isHead)
  if (!parsed) return end === 'left' ? refused('left') : other(`not well-formed: ${start(bytes)}`)
  const { status, headers, body, size } = parsed
  if (headers.get('cross-origin-opener-policy') !== 'same-origin') return other(`no COOP header: ${start(bytes)}`)
  if (headers.get('cross-origin-embedder-policy') !== 'require-corp') return other(`no COEP header: ${start(bytes)}`)
  if (body.length > size && !request.more) return other(`more than its ${size} bytes: ${start(body)}`)
  if (status < 300) return judgeFile(request, parsed, end, files)
  if (size) return other(`has a body: ${start(body)}`)
  if (status >= 400) return refused(String(status))
  if (status === 302 && headers.get('location') === '/demo/') return accepted()
  return status === 304 && listed(request, files) ? accepted() : other(`not expected: ${start(bytes)}`)
}

/**
 * An answer of 2xx has the bytes of the file that was asked for, or a range of them.
 *
 * @param {Request} request
 * @param {Parsed} parsed
 * @param {End} end
 * @param {import('../demo/site.js').Files} files
 */
function judgeFile(request, { status, headers, body, size }, end, files) {
  const file = listed(request, files)
  if (!file) return other(`${status} for what is not listed: ${start(body)}`)
  const [, first, last, total] = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(headers.get('content-range') ?? '') ?? []
  if ((status === 206) !== (total !== undefined) || ![200, 206].includes(status)) return other(`${status}: wrong range`)
  if (total && Number(total) !== file.length) return other(`a range of ${total}, expected of ${file.length}`)
  const content = total ? file.subarray(Number(first), Number(last) + 1) : file
  if (Number(headers.get('content-length')) !== content.length) return other(`length ${headers.get('content-length')}`)
  const isWhole = body.length >= size
  if (!isWhole && end === 'closed' && !request.more && !request.ends)
    return other(`broke off after ${body.length} of ${size} bytes`)
  if (!content.subarray(0, body.length).equals(body.subarray(0, size))) return other(`other bytes: ${start(body)}`)
  return accepted()
}

/**
 * The content of the listed file that a request names; undefined where it names none.
 *
 * @param {Request} request
 * @param {import('../demo/site.js').Files} files
 */
function listed({ target }, files) {
  const path = decoded(target.split(/[?\s]/)[0])
  const name = [...files.keys()].find((key) => path.endsWith(`/${key}`) || (path + 'index.html').endsWith(`/${key}`))
  const file = name === undefined ? undefined : files.get(name)
  return Buffer.isBuffer(file) ? file : file && readFileSync(file.path)
}

/** @param {string} path */
function decoded(path) {
  try {
    return decodeURIComponent(path)
  } catch {
    return path
  }
}

/** The beginning of an answer, for the report. @param {Buffer} bytes */
const start = (bytes) => JSON.stringify(bytes.toString('latin1', 0, 200))
