/**
 * Run the conformance kit in the JavaScript runtime: prints a row for every output, and exits with 1 if one is wrong.
 *
 *     node js/conformance.js                     the kit in tests/golden/conformance, in onnxruntime-node; with koffi,
 *                                                the language model on its C API
 *     node js/conformance.js --ep cpu            without the C API
 *     node js/conformance.js folder --ep wasm    a copy of the kit elsewhere, in onnxruntime-web
 *
 * In a page, call conformance(path => fetch(...), { ort }). tests/conformance/run.py does the same in Python.
 * tests/golden/conformance/README.md describes the kit for ports to other languages.
 */

import { convertAudio, delay, matchLevel, MusicGen, splice, toSource, undelay, uniforms, windows } from './src/index.js'

/**
 * @typedef {{ data: Float32Array | Int32Array, shape: number[] }} Stored an array of the kit
 * @typedef {{ case: string, what: string, error: number, within: number, passed: boolean, native: boolean }} Row the result of one output
 *   of a case; error: the largest difference as a share of the largest expected number, or how many codes or ids differ;
 *   native: whether the language model ran on the C API
 *
 * @typedef {object} Options and those of MusicGen.load
 * @property {any} ort
 * @property {any[]} [executionProviders]
 * @property {boolean} [native] as MusicGen.load has it
 * @property {(bundle: string) => any} [source] a bundle's source by its folder in the kit; default: read by fetchFile
 * @property {(row: Row) => void} [onRow] called with each row
 */

/**
 * Run every case with each of its bundles.
 *
 * @param {(path: string) => Promise<Uint8Array | ArrayBuffer | Response>} fetchFile reads a file of the kit
 * @param {Options} options
 * @returns {Promise<Row[]>}
 */
export async function conformance(fetchFile, { source, onRow, ...loadOptions }) {
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
    const model = bundle && (await MusicGen.load(from, loadOptions))
    for (const one of cases) {
      if (bundle ? !one.bundles.includes(bundle) : one.bundles.length) continue
      const name = bundle ? `${one.name} [${bundle}]` : one.name
      const { given, expected } = stored(one, buffer)
      const found = await RUN[one.do](given, model)
      for (const what of Object.keys(expected)) {
        const [error, within] = [difference(found[what], expected[what]), one.within[what]]
        rows.push({ case: name, what, error, within, passed: error <= within, native: Boolean(model?.lm.native) })
        onRow?.(rows[rows.length - 1])
      }
    }
    await model?.release()
  }
  return rows
}

/**
 * A value of cases.json with its arrays, which are stored as { dtype, shape, at }, read from arrays.bin.
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
 * The error of an output. Floats: the largest difference as a share of the largest expected number. Otherwise: how many
 * numbers differ.
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

/** Flatten nested arrays. @param {any} value @returns {number[]} */
const numbers = (value) =>
  Array.isArray(value)
    ? value.flatMap(numbers)
    : ArrayBuffer.isView(value)
      ? Array.from(/** @type {any} */ (value))
      : [value]

/**
 * Nest an array, with typed arrays for the last axis: [B, K, T] -> [B][K] of T.
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
 * Slice the columns or frames of all rows.
 *
 * @param {Int32Array[][]} rows
 * @param {number} start
 * @param {number} end
 */
const slice = (rows, start, end) => rows.map((row) => row.map((codes) => codes.slice(start, end)))

/** Conditioning of each row, null where it has none. @param {(Stored | null)[] | null} rows */
const perRow = (rows) => rows && rows.map((row) => row && row.data)

/** @param {any} s */
const samplingOptions = (s) => ({
  temperature: s.temperature,
  topK: s.top_k,
  topP: s.top_p,
  cfgCoef: s.cfg_coef,
  cfgCoefBeta: s.cfg_coef_beta,
  twoStepCfg: s.two_step_cfg,
})

/** @param {any} length */
const lengthOptions = (length) => ({
  duration: length.duration,
  maxDuration: length.max_duration,
  extendStride: length.extend_stride,
})

/** @type {Record<string, (given: any, model: any) => any>} */
const RUN = {
  // Arithmetic, without graphs

  uniforms: ({ seed, steps, codebooks }) => ({ uniforms: uniforms(BigInt(seed), steps, codebooks) }),

  delay: ({ codes, delays, frames, special }) => ({ columns: delay(nested(codes), delays, frames, special) }),

  undelay: ({ columns, delays }) => ({ codes: undelay(nested(columns), delays) }),

  windows: ({ duration, max_duration, extend_stride, frame_rate, prompt }) => {
    try {
      const found = windows(duration, max_duration, extend_stride, frame_rate, prompt)
      return { windows: Array.from(found, ({ start, known, frames }) => [start, known, frames]) }
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      return { refused: true }
    }
  },

  convert: ({ audio, from_rate, to_rate, channels }) => ({
    audio: convertAudio(nested(audio), from_rate, to_rate, channels),
  }),

  to_source: ({ audio, rate, source_rate, source_channels }) => ({
    audio: toSource(nested(audio), rate, source_rate, source_channels),
  }),

  splice: ({ source, generated, seam, crossfade, lead }) => ({
    audio: splice(nested(source), nested(generated), seam, crossfade, lead),
  }),

  match_level: ({ source, generated, seam, lead, rate }) => ({
    gain: Float64Array.of(matchLevel(nested(source), nested(generated), seam, lead, rate)),
  }),

  // Text and audio

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
    for await (const [piece] of codec.decodeStream(given, size)) pieces.push(piece)
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
      texts: perRow(texts),
      selfWav: perRow(self_wav),
      sampling: samplingOptions(sampling),
    })
    let start = 0
    for (const size of calls) {
      logits.push(await decoder.logits(slice(all, start, (start += size))))
    }
    decoder.release()
    return { logits }
  },

  generate: (given, model) => generateCodes(given, model),

  generate_takes: (given, model) => generateCodes(given, model),

  continue: async (
    { audio, sample_rate, description, melody, melody_sample_rate, takes, seed, sampling, ...length },
    model,
  ) => {
    const options = {
      description,
      takes,
      seed: BigInt(seed),
      ...(melody && { melody: nested(melody), melodySampleRate: melody_sample_rate }),
      ...lengthOptions(length),
      ...samplingOptions(sampling),
    }
    const generated = audio
      ? await model.generateContinuation(nested(audio), sample_rate, options)
      : await model.generate(options)
    return {
      codes: generated.takes.map((/** @type {any} */ take) => take.codes),
      audio: generated.takes.map((/** @type {any} */ take) => take.audio),
    }
  },

  continue_batch: async (given, model) => {
    const { descriptions, negatives, melodies, style_features: features, seed, sampling } = given
    const options = {
      description: descriptions,
      takes: given.takes,
      seed: Array.isArray(seed) ? seed.map(BigInt) : BigInt(seed),
      ...(negatives && { negativeDescription: negatives }),
      ...(melodies && {
        melody: melodies.map((/** @type {Stored | null} */ one) => one && nested(one)),
        melodySampleRate: given.melody_sample_rate,
      }),
      ...(features && { styleFeatures: perRow(features) }),
      ...lengthOptions(given),
      ...samplingOptions(sampling),
    }
    const { audio, codes } = given
    const { takes } = await (audio || codes
      ? model.generateContinuation(audio && nested(audio), given.sample_rate, {
          ...options,
          promptCodes: codes && nested(codes),
        })
      : model.generate(options))
    return { codes: takes.map((/** @type {any} */ take) => take.codes) }
  },
}

/** @param {any} given @param {any} model */
async function generateCodes(given, { lm }) {
  const { prompt, texts, negatives, self_wav, batch, takes, frames, sampling, seed, uniform, ...length } = given
  const codes = await lm.generateCodes({
    prompt: prompt && nested(prompt),
    texts: perRow(texts),
    negatives: perRow(negatives ?? null),
    selfWav: self_wav && (() => perRow(self_wav)),
    batch,
    takes,
    frames,
    ...lengthOptions(length),
    sampling: samplingOptions(sampling),
    seed: seed === null ? undefined : BigInt(seed),
    uniform: uniform?.data,
  })
  return { codes }
}

/** The command line. onnxruntime-node opens bundles on the disk, onnxruntime-web in memory. */
async function main() {
  const { readFile } = await import('node:fs/promises')
  const { join } = await import('node:path')
  const { fileURLToPath } = await import('node:url')
  const { parseArgs } = await import('node:util')
  const { values, positionals } = parseArgs({
    options: { ep: { type: 'string' } },
    allowPositionals: true,
  })
  const folder = positionals[0] ?? fileURLToPath(new URL('../tests/golden/conformance', import.meta.url))
  const node = values.ep === undefined || values.ep === 'cpu'
  const ort = await import(node ? 'onnxruntime-node' : 'onnxruntime-web')
  const rows = await conformance((path) => readFile(join(folder, path)), {
    ort,
    ...(values.ep && { executionProviders: [values.ep] }),
    ...(node && { source: (bundle) => join(folder, bundle) }),
    onRow: (row) => {
      const error = `${row.error && row.error.toExponential(1)} of ${row.within}`
      console.log(`${row.case.padEnd(64)} ${row.what.padEnd(9)} ${row.passed ? 'ok  ' : 'FAIL'} ${error.padStart(18)}`)
    },
  })
  const failed = rows.filter((row) => !row.passed).length
  const native = rows.filter((row) => row.native).length
  console.log(`${failed ? `${failed} failed` : 'all passed'}; ${native} of ${rows.length} rows on the C API`)
  process.exitCode = Math.min(failed, 1)
}

if (globalThis.process?.argv?.[1]) {
  const { realpathSync } = await import('node:fs')
  const { pathToFileURL } = await import('node:url')
  if (import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) await main()
}
