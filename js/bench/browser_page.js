/** What js/bench/browser.js runs in a page: a model, and window.time(what, count), which measures it. */

/** @typedef {Record<string, (count: number) => Promise<number[]>>} Runs how to measure, by what */

const PREFILL = 300 // columns
const CAPACITY = 1504 // columns of 30 s and the largest delay, to a multiple of 32
const SECONDS = 6 // of sound that is encoded, and decoded
const page = /** @type {any} */ (window)

// ONNX Runtime does not tell its heap
const { Memory } = WebAssembly
WebAssembly.Memory = class extends Memory {
  /** @param {WebAssembly.MemoryDescriptor} descriptor */
  constructor(descriptor) {
    super(descriptor)
    page.heap = this
  }
}

/** @param {{ kind: string, variant: string, threads: number }} contender */
export async function open({ kind, variant, threads }) {
  const { step, prefill, encode, decode } = await (kind === 'clean_lm' ? cleanLm : transformers)(variant, threads)
  const runs = /** @type {Record<string, () => Promise<unknown>>} */ ({ prefill, encode, decode })
  page.time = async (/** @type {string | number} */ what, /** @type {number} */ count) => {
    const times = []
    if (typeof what === 'number') await step(what) // allocates the cache
    for (let i = 0; i < count; i++) {
      const start = performance.now()
      await (typeof what === 'number' ? step(what) : runs[what]())
      times.push(performance.now() - start)
    }
    return times
  }
}

/** @param {string} variant @param {number} threads */
async function cleanLm(variant, threads) {
  const ort = await import(/** @type {any} */ ('/ort/ort.wasm.min.mjs'))
  const { MusicGen } = await import('../src/index.js')
  ort.env.wasm.wasmPaths = '/ort/'
  ort.env.wasm.numThreads = threads
  const options = { ort, executionProviders: ['wasm'], variant, lazy: true } // no text encoder
  const model = await MusicGen.load(`${location.origin}/bundle/`, options)
  const { lm, codec } = model
  const uniform = new Float32Array(lm.codebooks).fill(0.5)
  const one = [lm.delays.map(() => new Int32Array(1))]
  const many = [lm.delays.map(() => new Int32Array(PREFILL))]
  const frames = lm.delays.map(() => new Int32Array(SECONDS * model.frameRate))
  const tone = Array.from({ length: model.channels }, () => wave(SECONDS * model.sampleRate))
  const begin = () => lm.decoder({ capacity: CAPACITY, texts: [null] })
  const decoder = /** @type {any} */ (await begin())
  return {
    step: (/** @type {number} */ columns) => {
      decoder.filled = columns
      return decoder.call(one, uniform)
    },
    prefill: async () => (await begin()).call(many, uniform),
    encode: () => codec.encode(tone),
    decode: () => codec.decode(frames),
  }
}

/**
 * transformers.js has no way to continue audio: its prefill is a call of 300 columns, as its own loop would make one. It
 * has no encoder of audio, either, which is counted as 0.
 *
 * @param {string} dtype @param {number} threads
 */
async function transformers(dtype, threads) {
  const { env, MusicgenForConditionalGeneration, Tensor } = await import(
    /** @type {any} */ ('/transformers/transformers.min.js')
  )
  Object.assign(env, {
    allowRemoteModels: false,
    allowLocalModels: true,
    localModelPath: '/models/',
    useBrowserCache: false,
  })
  Object.assign(env.backends.onnx.wasm, { wasmPaths: '/transformers-ort/', numThreads: threads, proxy: false })
  const dtypes = { text_encoder: 'fp32', decoder_model_merged: dtype, encodec_decode: 'fp32' }
  const model = await MusicgenForConditionalGeneration.from_pretrained('musicgen', { dtype: dtypes, device: 'wasm' })
  const { num_codebooks: books, num_attention_heads: heads, hidden_size: width } = model.config.decoder
  const textWidth = model.config.text_encoder.d_model
  const codes = (/** @type {number} */ columns) =>
    new Tensor('int64', new BigInt64Array(books * columns), [books, columns])
  const inputs = {
    encoder_outputs: new Tensor('float32', new Float32Array(textWidth), [1, 1, textWidth]),
    attention_mask: new Tensor('int64', new BigInt64Array(1), [1, 1]),
  }
  const prefill = (columns = PREFILL) => model.forward({ ...inputs, decoder_input_ids: codes(columns) })
  const first = await prefill(1)
  /** A cache of zeros. @param {number} columns */
  const cacheOf = (columns) => {
    const dims = [1, heads, columns, width / heads]
    const entries = Object.entries(first).filter(([name]) => name.startsWith('present'))
    return Object.fromEntries(
      entries.map(([name, tensor]) => {
        const zeros = () => new Tensor('float32', new Float32Array(width * columns), dims)
        return [name.replace('present', 'past_key_values'), name.includes('encoder') ? tensor : zeros()]
      }),
    )
  }
  /** @type {{ columns: number, cache: any }} */
  let last = { columns: 0, cache: null }
  return {
    step: (/** @type {number} */ columns) => {
      if (last.columns !== columns) last = { columns, cache: cacheOf(columns) }
      return model.forward({ ...inputs, decoder_input_ids: codes(1), past_key_values: last.cache })
    },
    prefill: () => prefill(),
    encode: async () => {},
    decode: () => {
      const frames = SECONDS * 50
      const audio_codes = new Tensor('int64', new BigInt64Array(books * frames), [1, 1, books, frames])
      return model.sessions.encodec_decode.run({ audio_codes: audio_codes.ort_tensor })
    },
  }
}

/** A tone. @param {number} length */
const wave = (length) => Float32Array.from({ length }, (_, i) => 0.3 * Math.sin(0.05 * i))
