/** SHA-256 in pieces gives what node:crypto gives. */

import assert from 'node:assert/strict'
import { createHash, randomBytes, randomInt } from 'node:crypto'
import { test } from 'node:test'

import { Sha256, sha256 } from '../src/sha256.js'

/** @param {Uint8Array} bytes */
const expected = (bytes) => createHash('sha256').update(bytes).digest('hex')

test('every length up to three blocks, and random ones, in pieces of random lengths', () => {
  const lengths = [...Array(193).keys(), ...Array.from({ length: 50 }, () => randomInt(300_000))]
  for (const length of lengths) {
    const bytes = randomBytes(length)
    const hash = new Sha256()
    for (let at = 0; at < length;) {
      const piece = bytes.subarray(at, at + 1 + randomInt(Math.max(1, length >> 1)))
      hash.update(piece)
      at += piece.length
    }
    assert.equal(hash.digest(), expected(bytes), `${length} bytes`)
  }
})

test('a length of more than 2^32 bits is counted', () => {
  const piece = new Uint8Array(2 ** 25)
  const [own, node] = [new Sha256(), createHash('sha256')]
  own.length = 2 ** 32 // as if that many zeros had been hashed
  own.update(piece.subarray(0, 64))
  assert.notEqual(own.digest(), new Sha256().update(piece.subarray(0, 64)).digest())
  assert.equal(node.update(piece).digest('hex'), new Sha256().update(piece).digest())
})

test('what is too large for crypto.subtle, or has none, is hashed in pieces', async () => {
  const bytes = randomBytes(10_007)
  assert.equal(await sha256(bytes), expected(bytes))
  assert.equal(await sha256(bytes, 100, 50), expected(bytes))
  assert.equal(await sha256(bytes, 4096, 10_006), expected(bytes))
  const platform = /** @type {any} */ (process).getBuiltinModule
  try {
    process.getBuiltinModule = /** @type {any} */ (() => undefined) // as in a browser
    assert.equal(await sha256(bytes, 100, 50), expected(bytes))
    Object.defineProperty(globalThis, 'crypto', { value: {}, configurable: true }) // no secure context
    assert.equal(await sha256(bytes), expected(bytes))
  } finally {
    process.getBuiltinModule = platform
    Object.defineProperty(globalThis, 'crypto', { value: (await import('node:crypto')).webcrypto, configurable: true })
  }
})
