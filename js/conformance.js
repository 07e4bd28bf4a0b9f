/**
 * Run the conformance kit through the JavaScript runtime: a table of every case, and exit code 1 where one fails.
 *
 *     node js/conformance.js                     tests/golden/conformance, by onnxruntime-node
 *     node js/conformance.js folder --ep wasm    another copy of the kit, by onnxruntime-web
 *
 * A page calls conformance(name => fetch(...), { ort }). tests/conformance.py does the same in Python, and
 * tests/golden/conformance/README.md says how to write one more.
 */

import { convertAudio, delay, MusicGen, undelay, uniforms, windows } from './src/index.js'

/**
 * @typedef {{ data: Float32Array | Int32Array, shape: number[] }} Stored an array of the kit
 * @typedef {{ case: string, what: string, error: number, within: number, passed: boolean }} Row what one output of one
 *   case came to; error: of the largest number expected, of codes and ids how many differ
 *
 * @typedef {object} Options beside MusicGen.load's
 * @property {any} ort
 * @property {any[]} [executionProviders]
 * @property {(bundle: string) => any} [source] of a bundle by its folder in the kit, where not read by fetchFile
 * @property {(row: Row) => void} [onRow] called as each comes
 */

/**
 * Every case with each of its bundles.
 *
 * @param {(path: string) => Promise<Uint8Array | ArrayBuffer | Response>} fetchFile a file of the kit by its path in it
 * @param {Options} options
 * @returns {Promise<Row[]>}
 */
export async function conformance(fetchFile, { source, onRow, ...loading }) {
  const file = async (/** @type {string} */ path) => {
    const found = await fetchFile(path)
    return new Uint8Array(
      found instanceof Uint8Array || found instanceof ArrayBuffer ? found : await found.arrayBuffer(),
    )
  }
  const { cases } = JSON.parse(new TextDecoder().decode(await file('cases.json')))
  const { buffer } = await file('arrays.bin')
  /** @type {Row[]} */
  const rows = []
  for (const bundle of [null, ...new Set(cases.flatMap((/** @type {any} */ one) => one.bundles))]) {
    const folder = `bundles/${bundle}`
    const from = source ? source(folder) : (/** @type {string} */ name) => file(`${folder}/${name}`)
    const model = bundle && (await MusicGen.load(from, loading))
    for (const one of cases) {
      if (bundle ? !one.bundles.includes(bundle) : one.bundles.length) continue
      const name = bundle ? `${one.name} [${bundle}]` : one.name
      const { given, expected } = stored(one, buffer)
      const found = await DO[one.do](given, model)
      for (const what of Object.keys(expected)) {
        const [error, within] = [difference(found[what], expected[what]), one.within[what]]
        rows.push({ case: name, what, error, within, passed: error <= within })
        onRow?.(rows[rows.length - 1])
      }
    }
    await model?.release()
  }
  return rows
}

/**
 * A value with its arrays { dtype, shape, at } read: little-endian, row by row.
 *
 * @param {any} value
 * @param {ArrayBuffer} buffer
 * @returns {any}
 */
export function stored(value, buffer) {
  if (value === null || typeof value !== 'object') return value
  if (Array.isArray(value)) return value.map((item) => stored(item, buffer))
  if ('dtype' in value) {
    const size = value.shape.reduce((/** @type {number} */ product, /** @type {number} */ n) => product * n, 1)
    const data = new (value.dtype === 'float32' ? Float32Array : Int32Array)(buffer, value.at, size)
    return { data, shape: value.shape }
  }
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, stored(item, buffer)]))
}

/**
 * Between floats the largest, as a share of the largest expected; else how many numbers are not the same.
 *
 * @param {any} found
 * @param {any} expected
 */
function difference(found, expected) {
  const [ours, theirs] = [numbers(found), numbers(expected.data ?? expected)]
  if (ours.length !== theirs.length) return Infinity
  if (!(expected.data instanceof Float32Array)) return theirs.filter((n, i) => n !== ours[i]).length
  const largest = (/** @type {number[]} */ all) =>
    all.reduce((most, n) => (Math.abs(n) <= most ? most : Math.abs(n)), 0)
  return largest(theirs.map((n, i) => ours[i] - n)) / (largest(theirs) || 1)
}

/** Nested arrays as one. @param {any} value @returns {number[]} */
const numbers = (value) =>
  Array.isArray(value)
    ? value.flatMap(numbers)
    : ArrayBuffer.isView(value)
      ? Array.from(/** @type {any} */ (value))
      : [value]

/**
 * An array as nested ones, the last axis typed: [B, K, T] -> [B][K] of T.
 *
 * @param {Stored} array
 * @returns {any}
 */
export function nested({ data, shape: [first, ...rest] }) {
  if (!rest.length) return data
  const size = data.length / first
  return Array.from({ length: first }, (_, i) => nested({ data: data.subarray(i * size, (i + 1) * size), shape: rest }))
}

/**
 * Columns or frames of all rows.
 *
 * @param {Int32Array[][]} rows
 * @param {number} start
 * @param {number} end
 */
const slice = (rows, start, end) => rows.map((row) => row.map((codes) => codes.slice(start, end)))

/** Rows of a batch: what each is told, or null. @param {(Stored | null)[] | null} rows */
const told = (rows) => rows && rows.map((row) => row && row.data)

/** @param {any} s */
const sampled = (s) => ({
  temperature: s.temperature,
  topK: s.top_k,
  topP: s.top_p,
  cfgCoef: s.cfg_coef,
  cfgCoefBeta: s.cfg_coef_beta,
})

/** @param {any} length */
const lasting = (length) => ({
  duration: length.duration,
  maxDuration: length.max_duration,
  extendStride: length.extend_stride,
})

/** @type {Record<string, (given: any, model: any) => any>} */
const DO = {
  // Arithmetic, without a graph

  uniforms: ({ seed, steps, codebooks }) => ({ uniforms: uniforms(BigInt(seed), steps, codebooks) }),

  delay: ({ codes, delays, frames, special }) => ({ columns: delay(nested(codes), delays, frames, special) }),

  undelay: ({ columns, delays }) => ({ codes: undelay(nested(columns), delays) }),

  windows: ({ duration, max_duration, extend_stride, frame_rate, prompt }) => {
    try {
      const cut = windows(duration, max_duration, extend_stride, frame_rate, prompt)
      return { windows: cut.map(({ start, known, frames }) => [start, known, frames]) }
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      return { refused: true }
    }
  },

  convert: ({ audio, from_rate, to_rate, channels }) => ({
    audio: convertAudio(nested(audio), from_rate, to_rate, channels),
  }),

  // Text and sound

  tokens: async ({ text }, model) => ({ ids: await model.text.tokens(text) }),

  text_states: async ({ text }, model) => ({ states: await model.text.encode(text) }),

  token_states: async ({ ids }, { text }) => ({ states: await text.states(ids) }),

  encode: async ({ audio }, { codec }) => ({ codes: await codec.encode(nested(audio)) }),

  decode: async ({ codes }, { codec }) => ({ audio: await codec.decode(nested(codes)) }),

  decode_stream: async ({ codes, parts, size }, { codec }) => {
    const all = [nested(codes)]
    let start = 0
    const given = parts.map((/** @type {number} */ frames) => slice(all, start, (start += frames)))
    /** @type {Float32Array[][]} */
    const pieces = []
    for await (const [sound] of codec.decodeStream(given, size)) pieces.push(sound)
    const audio = pieces[0].map((/** @type {any} */ _, /** @type {number} */ channel) =>
      pieces.map((piece) => piece[channel]),
    )
    return { audio, samples: pieces.map((piece) => piece[0].length) }
  },

  // The language model

  logits: async ({ columns, calls, texts, self_wav, sampling }, { lm }) => {
    const all = nested(columns)
    /** @type {Float32Array[]} */
    const logits = []
    const [batch, , capacity] = columns.shape
    const decoder = await lm.decoder({
      batch,
      capacity,
      texts: told(texts),
      selfWav: told(self_wav),
      sampling: sampled(sampling),
    })
    let start = 0
    for (const size of calls) {
      logits.push(await decoder.logits(slice(all, start, (start += size))))
    }
    decoder.release()
    return { logits }
  },

  generate: async ({ prompt, texts, self_wav, batch, frames, sampling, seed, uniform, ...length }, { lm }) => ({
    codes: await lm.generateCodes({
      prompt: prompt && nested(prompt),
      texts: told(texts),
      selfWav: self_wav && (() => told(self_wav)),
      batch,
      frames,
      ...lasting(length),
      sampling: sampled(sampling),
      seed: seed === null ? undefined : BigInt(seed),
      uniform: uniform?.data,
    }),
  }),

  continue: async (
    { audio, sample_rate, description, melody, melody_sample_rate, takes, seed, sampling, ...length },
    model,
  ) => {
    const options = {
      description,
      takes,
      seed: BigInt(seed),
      ...(melody && { melody: nested(melody), melodySampleRate: melody_sample_rate }),
      ...lasting(length),
      ...sampled(sampling),
    }
    const made = audio
      ? await model.generateContinuation(nested(audio), sample_rate, options)
      : await model.generate(options)
    return {
      codes: made.takes.map((/** @type {any} */ take) => take.codes),
      audio: made.takes.map((/** @type {any} */ take) => take.audio),
    }
  },
}

/** The command: onnxruntime-node reads bundles where they lie, onnxruntime-web from memory. */
async function main() {
  const { readFile } = await import('node:fs/promises')
  const { join } = await import('node:path')
  const { fileURLToPath } = await import('node:url')
  const { parseArgs } = await import('node:util')
  const { values, positionals } = parseArgs({
    options: { ep: { type: 'string', default: 'cpu' } },
    allowPositionals: true,
  })
  const folder = positionals[0] ?? fileURLToPath(new URL('../tests/golden/conformance', import.meta.url))
  const node = values.ep === 'cpu'
  const ort = await import(node ? 'onnxruntime-node' : 'onnxruntime-web')
  const rows = await conformance((path) => readFile(join(folder, path)), {
    ort,
    executionProviders: [values.ep],
    ...(node && { source: (bundle) => join(folder, bundle) }),
    onRow: (row) => {
      const error = `${row.error && row.error.toExponential(1)} of ${row.within}`
      console.log(`${row.case.padEnd(64)} ${row.what.padEnd(9)} ${row.passed ? 'ok  ' : 'FAIL'} ${error.padStart(18)}`)
    },
  })
  const failed = rows.filter((row) => !row.passed).length
  console.log(failed ? `${failed} failed` : 'all passed')
  process.exitCode = Math.min(failed, 1)
}

if (globalThis.process?.argv?.[1]) {
  const { realpathSync } = await import('node:fs')
  const { pathToFileURL } = await import('node:url')
  if (import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) await main()
}
