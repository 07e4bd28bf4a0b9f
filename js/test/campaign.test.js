/** A short round of the campaign, and what it would find: every kind of "other" is seen once. */

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { Site } from '../demo/site.js'
import { campaign, PARTS, table } from './campaign.js'
import { makeCall, tryCall } from './campaign_options.js'
import { attempt, Random } from './campaign_outcomes.js'
import { makeRequest, Visitor } from './campaign_requests.js'
import { BUNDLE } from './kit.js'

const [ROUNDS, SEED] = [25, 2026]
const PROGRAM = fileURLToPath(new URL('campaign.js', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'clean-lm-campaign-'))
after(() => rmSync(folder, { recursive: true }))

/** @param {string} part @param {string} [worker] */
async function results(part, worker) {
  const found = []
  for await (const result of campaign(part, SEED, 0, worker ? 3 : ROUNDS, worker)) found.push(result)
  return found
}

for (const part of PARTS) {
  test(`a short round of ${part}`, async () => {
    const found = await results(part)
    assert.deepEqual(
      found.filter(({ outcome }) => outcome.kind === 'other'),
      [],
    )
    assert.deepEqual(new Set(found.map(({ outcome }) => outcome.kind)), new Set(['refused', 'accepted']))
    assert.equal(found.length, ROUNDS)
  })
}

test('inputs follow from the seed and their number', () => {
  const text = (/** @type {string} */ name) => makeRequest(new Random(name)).text
  assert.equal(text('requests 7 1'), text('requests 7 1'))
  assert.notEqual(text('requests 7 1'), text('requests 7 2'))
})

/**
 * What a server's answer to a request for a listed file is, and then that of its next answer.
 *
 * @param {import('node:http').RequestListener} listener
 */
async function judged(listener) {
  const server = createServer({ requireHostHeader: false }, listener)
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)))
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
  const visitor = new Visitor(port, new Site([BUNDLE]).files(), 2_000)
  const [target, text] = ['/bundles/index.json', 'GET /bundles/index.json HTTP/1.1\r\n\r\n']
  const request = { method: 'GET', target, text, more: '', later: false, ends: false, leaves: Infinity }
  const outcome = await attempt(() => visitor.try(request))
  server.close()
  server.closeAllConnections()
  return outcome
}

test('a server that answers wrongly is seen', async () => {
  const isolated = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' }
  const good = JSON.stringify({ bundles: ['text'], loop: false })
  const answer = (/** @type {string} */ body, status = 200, headers = {}) =>
    judged((_, response) => {
      response.writeHead(status, { ...isolated, 'Content-Length': body.length, ...headers }).end(body)
    })
  assert.equal((await answer(good)).kind, 'accepted')
  /** @type {[Promise<import('./campaign_outcomes.js').Outcome>, RegExp][]} */
  const wrong = [
    [answer(good, 200, { 'Cross-Origin-Opener-Policy': 'none' }), /no COOP header/],
    [answer('', 404, { 'Cross-Origin-Embedder-Policy': 'none' }), /no COEP header/],
    [answer(good.replace('text', 'root')), /other bytes/],
    [answer(good.slice(1)), /length/],
    [answer('b', 206, { 'Content-Range': `bytes 0-0/${good.length}` }), /other bytes/],
    [answer('secret', 404), /has a body/],
    [judged(() => {}), /no whole answer in time/],
    [
      judged(
        ({ method }, response) =>
          void (method === 'GET' && response.writeHead(404, { ...isolated, 'Content-Length': 0 }).end()),
      ),
      /does not answer afterwards/,
    ],
  ]
  for (const [outcome, message] of wrong) {
    const { kind, message: found } = await outcome
    assert.equal(kind, 'other')
    assert.match(found, message)
  }
})

test('a model that fails in another way than it should is seen', async () => {
  /** @param {() => any} generate */
  const outcome = (generate) => {
    const call = { ...makeCall(new Random('')), name: /** @type {const} */ ('generate'), args: [{}] }
    const model = { generate: async () => generate(), channels: 1, lm: { codebooks: 1, card: 9 } }
    return attempt(() => tryCall(model, call), 1)
  }
  const raise = (/** @type {unknown} */ error) => () => {
    throw error
  }
  const take =
    (/** @type {number} */ sample, code = 1) =>
    () => ({
      takes: [{ audio: [Float32Array.of(sample)], codes: [Int32Array.of(code)] }],
    })
  assert.equal((await outcome(take(1))).kind, 'accepted')
  assert.equal((await outcome(raise(new RangeError('topK: got -1, expected more')))).kind, 'refused')
  /** @type {[() => any, RegExp][]} */
  const wrong = [
    [raise('a string'), /string thrown: a string/],
    [raise(new Error('x')), /Error: x/],
    [() => /** @type {any} */ (undefined).x, /does not say what was got/],
    [raise(new RangeError('two\nlines')), /not one printable line/],
    [take(NaN), /not finite/],
    [take(1, 9), /codes out of bounds/],
    [() => new Promise(() => {}), /more than 1 s/],
  ]
  for (const [generate, message] of wrong) {
    const { kind, message: found } = await outcome(generate)
    assert.equal(kind, 'other')
    assert.match(found, message)
  }
})

test('an error that nothing catches is seen', async () => {
  const outcomes = new URL('campaign_outcomes.js', import.meta.url)
  const program = [
    `import { attempt, noteUncaught, refused } from '${outcomes}'`,
    "noteUncaught(); console.log((await attempt(async () => (Promise.reject(new Error('lost')), refused()))).message)",
  ]
  const flags = ['--input-type=module', '--eval', program.join('\n')]
  assert.match((await promisify(execFile)(process.execPath, flags)).stdout, /^not caught: Error: lost/)
})

test('a process that ends is found out, and the next one goes on', async () => {
  const worker = join(folder, 'worker.mjs')
  const lines = [
    'const [, seed, first, end] = process.argv.slice(2)',
    'const tell = (message) => new Promise((resolve) => process.send(message, undefined, undefined, resolve))',
    'for (let number = Number(first); number < Number(end); number++) {',
    "  await tell({ number, what: 'x' })",
    '  if (number === 1) process.exit(3)',
    "  await tell({ number, outcome: { kind: 'refused', message: '' } })",
    '}',
    'process.disconnect()',
  ]
  writeFileSync(worker, lines.join('\n'))
  const found = await results('requests', worker)
  assert.deepEqual(
    found.map(({ number, outcome }) => [number, outcome.kind]),
    [
      [0, 'refused'],
      [1, 'other'],
      [2, 'refused'],
    ],
  )
  writeFileSync(worker, 'process.exit(3)')
  await assert.rejects(results('requests', worker), /worker\.mjs: ended with 3/)
})

test('the table, and flags that are wrong', async () => {
  const counts = { requests: { refused: 2, accepted: 1, other: 0 }, options: { refused: 0, accepted: 3, other: 1 } }
  assert.deepEqual(table(counts), [
    'part                   tried   refused  accepted   other',
    'requests                   3         2         1       0',
    'options                    4         0         3       1',
    'all                        7         2         4       1',
  ])
  const run = promisify(execFile)
  for (const flags of [['--part', 'x'], ['--rounds', '-1'], ['--seed', '0x7'], ['--x']]) {
    await assert.rejects(run(process.execPath, [PROGRAM, ...flags]), (/** @type {any} */ error) => error.code === 2)
  }
})
