/**
 * What of js/src needs no ONNX Runtime, run in Hermes: check.js bundles this file with the conformance kit,
 * and has Hermes's command line run it. It prints a line for each check, and "all passed" last.
 *
 * What React Native's Hermes 1 and React Native itself bring, and Hermes 0.12 lacks, is given here, as small as will do:
 * TextDecoder, TextEncoder, Array.prototype.at, timers.
 */

import { conformance } from '../conformance.js'
import { resample } from '../src/audio.js'
import { DeviceFiles } from '../src/device.js'
import { BundleError } from '../src/files.js'
import { randomSeed } from '../src/language_model.js'
import { readTree } from '../src/manifest.js'
import { CONTINUE, validateOptions } from '../src/options.js'
import { Sha256 } from '../src/sha256.js'
import { TextConditioner } from '../src/text_encoder.js'
import { requireGrowth } from '../src/tokenizer_bounds.js'
import { decodeWav, encodeWav } from '../src/wav.js'
import { figuresOf } from './figures.js'

const host = /** @type {any} */ (globalThis)
/** @type {(text: string) => void} */
const print = host.print

host.TextDecoder ??= class {
  /** @param {Uint8Array} bytes */
  decode(bytes) {
    const escaped = []
    for (const byte of bytes) escaped.push(`%${byte.toString(16).padStart(2, '0')}`)
    return decodeURIComponent(escaped.join(''))
  }
}
host.TextEncoder ??= class {
  /** @param {string} text */
  encode(text) {
    const escaped = encodeURIComponent(text).replace(/%(..)/g, (_, hex) => String.fromCharCode(parseInt(hex, 16)))
    return Uint8Array.from(escaped, (character) => character.charCodeAt(0))
  }
}
host.Array.prototype.at ??= function (/** @type {number} */ i) {
  return this[i < 0 ? this.length + i : i]
}
host.setTimeout ??= (/** @type {() => void} */ run) => void Promise.resolve().then(run)

/** @typedef {{ cases: any, arrays: string, manifest: any, manifests: any[], tokenizer: any, texts: any[], figures: any }} Kit */

/** @type {Record<string, (kit: Kit) => any>} each returns what to print; throws where it is wrong */
const CHECKS = {
  'the conformance kit without graphs': async ({ cases, arrays }) => {
    const kit = /** @type {Record<string, Uint8Array>} */ ({
      'cases.json': new TextEncoder().encode(JSON.stringify(cases)),
      'arrays.bin': bytesOf(arrays),
    })
    const rows = await conformance(async (path) => kit[path], { ort: null })
    const wrong = rows.filter(({ passed }) => !passed)
    if (wrong.length || !rows.length) throw new Error(JSON.stringify(wrong))
    return `${rows.length} rows, largest error of floats ${Math.max(...rows.map(({ error }) => error)).toExponential(1)}`
  },

  'manifest.json: what is accepted and refused': async ({ manifest, manifests }) => {
    const read = (/** @type {any} */ tree) => readTree(new TextEncoder().encode(JSON.stringify(tree)), 'manifest.json')
    await read(manifest)
    for (const one of manifests) {
      const error = await read(changed(manifest, one)).then(
        () => null,
        (/** @type {any} */ thrown) => thrown,
      )
      if (!(error instanceof BundleError) || !error.message.includes(one.field)) {
        throw new Error(`${JSON.stringify(one).slice(0, 200)}: got ${error}`)
      }
    }
    return `${manifests.length} refused`
  },

  'the tokenizer, and its bounds': async ({ tokenizer, manifest, texts }) => {
    requireGrowth(tokenizer)
    const replace = { type: 'Replace', pattern: { Regex: 'x' }, content: 'y'.repeat(1000) }
    equal(thrown(() => requireGrowth({ ...tokenizer, normalizer: replace })).includes('1001 times'), true)
    const bytes = new TextEncoder().encode(JSON.stringify(tokenizer))
    const files = { label: (/** @type {string} */ name) => name }
    const parts = { tree: manifest, files, graph: () => null, read: async () => bytes }
    const conditioner = new TextConditioner(/** @type {any} */ (parts))
    for (const { text, ids } of texts) equal(await conditioner.tokens(text), ids)
    return `${texts.length} texts`
  },

  'WAV in 16 and 24 bit and float': () => {
    const audio = [0, 1].map((c) =>
      Float32Array.from({ length: 1001 }, (_, i) => (((i * 7919 + c) % 2001) - 1000) / 1024),
    )
    for (const [format, error] of /** @type {const} */ ([
      ['pcm16', 2 ** -15],
      ['pcm24', 2 ** -23],
      ['float32', 0],
    ])) {
      const read = decodeWav(encodeWav(audio, 32000, format))
      equal(read.sampleRate, 32000)
      audio.forEach((channel, c) =>
        channel.forEach((sample, i) => {
          if (!(Math.abs(sample - read.audio[c][i]) <= error)) throw new Error(`${format} [${c}][${i}]: ${sample}`)
        }),
      )
    }
    return '3 formats'
  },

  'SHA-256': () => {
    const expected = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad' // of FIPS 180-4's example
    equal(new Sha256().update(new TextEncoder().encode('abc')).digest(), expected)
    const start = Date.now()
    new Sha256().update(new Uint8Array(2 ** 21)).digest()
    return `${(2.097 / ((Date.now() - start) / 1000)).toFixed(1)} MB/s`
  },

  'files of a phone by their paths': async ({ manifest }) => {
    const [name, entry] = /** @type {[string, any]} */ (Object.entries(manifest.files)[0])
    const file = {
      exists: true,
      size: entry.bytes,
      bytes: async () => new Uint8Array(0),
      digest: async () => entry.sha256,
    }
    const files = new DeviceFiles({ folder: 'file:///data/a%20b/', file: () => file }, /** @type {any} */ ({}))
    equal(await files.path(name), `/data/a b/${name}`)
    await files.verify(name, entry)
    for (const wrong of [
      { ...entry, bytes: 1 },
      { ...entry, sha256: 'x' },
    ]) {
      equal((await files.verify(name, wrong).catch((error) => error)) instanceof BundleError, true)
    }
    equal((await files.path('../x').catch((error) => error)) instanceof BundleError, true)
    return '5 cases'
  },

  'figures, options, seeds, resampling': ({ manifest, figures }) => {
    equal(figuresOf(manifest), figures)
    const options = { seed: randomSeed(), duration: 30, description: 'warm pads' }
    validateOptions('generateContinuation', options, CONTINUE)
    equal(thrown(() => validateOptions('generateContinuation', { top_k: 5 }, CONTINUE)).includes('topK'), true)
    const start = Date.now()
    resample(new Float32Array(6 * 44100), 44100, 32000)
    return `6 s of 44.1 kHz in ${((Date.now() - start) / 1000).toFixed(1)} s`
  },
}

/** @param {any} found @param {any} expected */
function equal(found, expected) {
  const [ours, theirs] = [JSON.stringify(found), JSON.stringify(expected)]
  if (ours !== theirs) throw new Error(`got ${ours.slice(0, 200)}, expected ${theirs.slice(0, 200)}`)
}

/** The message that is thrown; '' where nothing is. @param {() => void} body */
function thrown(body) {
  try {
    body()
  } catch (error) {
    return /** @type {Error} */ (error).message
  }
  return ''
}

/** A manifest with one entry replaced, or removed where the case has no value. @param {any} manifest @param {any} one */
function changed(manifest, one) {
  const tree = JSON.parse(JSON.stringify(manifest))
  if (one.merge) return { ...tree, ...one.merge }
  if (!one.at.length) return one.value
  const last = one.at[one.at.length - 1]
  const parent = one.at.slice(0, -1).reduce((/** @type {any} */ found, /** @type {any} */ step) => found[step], tree)
  if ('value' in one) parent[last] = one.value
  else delete parent[last]
  return tree
}

/** Hexadecimal to bytes. @param {string} hex */
const bytesOf = (hex) =>
  Uint8Array.from({ length: hex.length / 2 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16))

/** @param {Kit} kit */
export async function main(kit) {
  try {
    for (const [name, check] of Object.entries(CHECKS)) print(`  ${name}: ${await check(kit)}`)
    print('all passed')
  } catch (error) {
    const { message, stack } = /** @type {Error} */ (error)
    print(`FAILED ${message}\n${stack}`)
  }
}
