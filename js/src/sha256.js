/**
 * SHA-256 (FIPS 180-4) in pieces: crypto.subtle takes whole buffers of less than 2 GB, and only in secure contexts.
 */

const PIECE = 2 ** 24 // bytes that are hashed between two looks at the event loop
const LARGEST_DIGEST = 2 ** 30 // bytes that are given to crypto.subtle at once: it copies them

// The first 32 bits of the fractions of the cube roots, and of the square roots, of the first primes.
const primes = [2]
for (let n = 3; primes.length < 64; n += 2) if (primes.every((prime) => n % prime)) primes.push(n)
const CONSTANTS = Int32Array.from(primes, (prime) => fraction(Math.cbrt(prime)) | 0)
const INITIAL = primes.slice(0, 8).map((prime) => fraction(Math.sqrt(prime)))

/** @param {number} root */
function fraction(root) {
  return (root % 1) * 2 ** 32
}

/** A hash of bytes that come in pieces. */
export class Sha256 {
  constructor() {
    this.state = Int32Array.from(INITIAL, (word) => word | 0)
    this.block = new Uint8Array(64)
    this.words = new Int32Array(64)
    this.length = 0 // bytes so far
  }

  /** @param {Uint8Array} bytes the next piece, of any length */
  update(bytes) {
    let at = 0
    const filled = this.length % 64
    this.length += bytes.length
    if (filled) {
      at = Math.min(64 - filled, bytes.length)
      this.block.set(bytes.subarray(0, at), filled)
      if (filled + at < 64) return this
      this._compress(this.block, 0)
    }
    for (; at + 64 <= bytes.length; at += 64) this._compress(bytes, at)
    this.block.set(bytes.subarray(at))
    return this
  }

  /** The hash in hexadecimal; nothing can be added after it. */
  digest() {
    const filled = this.length % 64
    const padding = new Uint8Array((filled < 56 ? 64 : 128) - filled) // 1, zeros, and the length in bits
    padding[0] = 0x80
    new DataView(padding.buffer).setBigUint64(padding.length - 8, BigInt(this.length) * 8n)
    this.update(padding)
    return Array.from(this.state, (word) => (word >>> 0).toString(16).padStart(8, '0')).join('')
  }

  /** Mix in the 64 bytes from `at` on. @param {Uint8Array} bytes @param {number} at */
  _compress(bytes, at) {
    const { state, words } = this
    for (let i = 0; i < 16; i++, at += 4) {
      words[i] = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3]
    }
    for (let i = 16; i < 64; i++) {
      const x = words[i - 15]
      const y = words[i - 2]
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3)
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10)
      words[i] = (((words[i - 16] + s0) | 0) + ((words[i - 7] + s1) | 0)) | 0
    }
    let a = state[0]
    let b = state[1]
    let c = state[2]
    let d = state[3]
    let e = state[4]
    let f = state[5]
    let g = state[6]
    let h = state[7]
    for (let i = 0; i < 64; i++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7))
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10))
      const t1 = (((((h + s1) | 0) + ((e & f) ^ (~e & g))) | 0) + ((CONSTANTS[i] + words[i]) | 0)) | 0
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0
      h = g
      g = f
      f = e
      e = (d + t1) | 0
      d = c
      c = b
      b = a
      a = (t1 + t2) | 0
    }
    state[0] += a
    state[1] += b
    state[2] += c
    state[3] += d
    state[4] += e
    state[5] += f
    state[6] += g
    state[7] += h
  }
}

/**
 * A hasher with update and digest, the platform's where it hashes in pieces (Node).
 *
 * @returns {{ update: (bytes: Uint8Array) => unknown, digest: () => string }}
 */
export function createSha256() {
  const node = globalThis.process?.getBuiltinModule?.('node:crypto')
  if (!node) return new Sha256()
  const hash = node.createHash('sha256')
  return { update: (bytes) => hash.update(bytes), digest: () => hash.digest('hex') }
}

/**
 * The SHA-256 of bytes in memory, in hexadecimal.
 *
 * @param {Uint8Array} bytes any number of them
 * @param {number} [piece] bytes that are hashed at a time
 * @param {number} [largest] bytes up to which crypto.subtle is used
 */
export async function sha256(bytes, piece = PIECE, largest = LARGEST_DIGEST) {
  if (bytes.length <= largest && globalThis.crypto?.subtle) {
    const digest = await crypto.subtle.digest('SHA-256', /** @type {BufferSource} */ (bytes))
    return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('')
  }
  const hash = createSha256()
  for (let at = 0; at < bytes.length; at += piece) {
    hash.update(bytes.subarray(at, at + piece))
    await new Promise((resolve) => setTimeout(resolve)) // a page stays responsive
  }
  return hash.digest()
}
