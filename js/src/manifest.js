/** A bundle: what its manifest.json says is in it, and its graphs, opened in ONNX Runtime. */

import { fromFloat16, toFloat16 } from './float16.js'
import { BundleError, Files } from './source.js'

/**
 * @typedef {typeof import('onnxruntime-common')} Ort
 * @typedef {import('onnxruntime-common').InferenceSession} Session
 * @typedef {import('onnxruntime-common').Tensor} Tensor
 * @typedef {import('onnxruntime-common').Tensor.Type} TensorType
 * @typedef {{ name: string, dtype: TensorType, shape: (number | string)[] }} Port
 * @typedef {{ file: string, data?: string, inputs: Port[], outputs: Port[] }} GraphEntry
 * @typedef {Record<string, number>} Sizes what stands for the names in shapes
 * @typedef {'cpu' | 'wasm' | 'webgpu'} Backend
 *
 * @typedef {object} LoadOptions
 * @property {Ort} ort the ONNX Runtime to use: onnxruntime-node, onnxruntime-web or onnxruntime-react-native
 * @property {any[]} [executionProviders] ONNX Runtime's; without them its default: the CPU, in browsers WASM
 * @property {string} [variant] of those that the bundle holds ("fp32", "int4", ...); without it the one for the backend
 * @property {boolean} [hashes] compare every file's SHA-256 before it is opened; true where not given
 * @property {import('./source.js').LoadProgress} [onProgress] bytes read of all that will be
 * @property {AbortSignal} [signal]
 * @property {Cache} [cache] of the browser, where downloads are kept
 * @property {Partial<import('onnxruntime-common').InferenceSession.SessionOptions>} [sessionOptions]
 */

const [FORMAT, VERSION] = ['clean_lm', 1]
const ARRAYS = { float32: Float32Array, float16: Uint16Array, int64: BigInt64Array, int8: Int8Array }

/** manifest.json: what a bundle holds, and how to open it. */
export class Manifest {
  /**
   * @param {any} tree
   * @param {Files} files
   * @param {LoadOptions} options
   * @param {boolean} [half] whether the device computes in float16
   */
  constructor(tree, files, options, half = true) {
    this.files = files
    this.options = options
    this.backend = backendOf(options)
    const variants = tree.variants ?? {}
    /** @type {string[]} */
    const preferred = tree.backends?.[this.backend] ?? []
    /** the variant whose graphs are opened */
    this.variant = options.variant ?? preferred.find((name) => half || !isHalf(variants[name])) ?? tree.variant
    if (this.variant !== undefined && !(this.variant in variants)) {
      const held = Object.keys(variants).join(', ') || 'one unnamed'
      throw new BundleError(`${files.label('manifest.json')}: holds no variant "${this.variant}", only ${held}`)
    }
    const chosen = variants[this.variant]
    this.tree = {
      ...tree,
      graphs: { ...tree.graphs, ...chosen?.graphs },
      cache_update: chosen?.cache_update ?? tree.cache_update,
    }
    if (this.backend === 'webgpu' && chosen?.cache === 'int8') {
      throw new BundleError(
        `${files.label('manifest.json')}: variant "${this.variant}" has int8 caches, which WebGPU does not take; ` +
          'load another, or add one: export/quantize.py --variant q4f16',
      )
    }
    this.read = 0
    this.total = 0
  }

  /**
   * The bundle with the graphs of one variant.
   *
   * @param {import('./source.js').Source} source
   * @param {LoadOptions} options
   */
  static async open(source, options) {
    if (!options?.ort?.InferenceSession) {
      throw new TypeError('ort: expected ONNX Runtime, for example { ort: await import("onnxruntime-node") }')
    }
    const files = new Files(source, options)
    const path = files.label('manifest.json')
    const text = new TextDecoder().decode(await files.read('manifest.json'))
    /** @type {any} */
    let tree
    try {
      tree = JSON.parse(text)
    } catch (error) {
      throw new BundleError(`${path}: not readable JSON: ${/** @type {Error} */ (error).message}`)
    }
    if (tree?.format !== FORMAT) throw new BundleError(`${path}: format is ${tree?.format}, expected ${FORMAT}`)
    if (tree.version !== VERSION) throw new BundleError(`${path}: version is ${tree.version}, this reads ${VERSION}`)
    return new Manifest(tree, files, options, backendOf(options) !== 'webgpu' || (await computesInHalf()))
  }

  /**
   * One entry, which must have these fields.
   *
   * @param {string} entry
   * @param {string[]} fields
   * @returns {any}
   */
  need(entry, ...fields) {
    const found = this.tree[entry] ?? {}
    const missing = fields.filter((field) => !(field in found))
    if (missing.length) {
      const path = this.files.label('manifest.json')
      throw new BundleError(`${path}: ${entry} lacks ${missing.join(', ')}; export it again`)
    }
    return found
  }

  /**
   * One graph, its session not yet open.
   *
   * @param {string} name
   * @param {Backend} [backend] where it runs, if not where the rest does
   */
  graph(name, backend) {
    const entry = this.need('graphs')[name]
    if (!entry) {
      const held = Object.keys(this.tree.graphs).join(', ')
      throw new BundleError(`${this.files.label('manifest.json')}: holds no ${name}, only ${held}`)
    }
    return new Graph(this, entry, backend ?? this.backend)
  }

  /**
   * The files of a graph: the model, and the weights beside it.
   *
   * @param {GraphEntry} entry
   */
  filesOf(entry) {
    const parts = [entry.file, entry.data ?? entry.file]
    return Object.keys(this.tree.files).filter((file) => parts.some((part) => file.startsWith(part)))
  }

  /**
   * Tell how much will be read.
   *
   * @param {string[]} names
   */
  expect(names) {
    for (const name of new Set(names)) this.total += this.tree.files[name].bytes
  }

  /**
   * A file's content, checked.
   *
   * @param {string} name
   */
  async content(name) {
    return this.files.read(name, this.tree.files[name], (bytes) => this.progress(bytes, name))
  }

  /**
   * @param {number} bytes
   * @param {string} name
   */
  progress(bytes, name) {
    this.options.signal?.throwIfAborted()
    this.read += bytes
    this.options.onProgress?.(this.read, Math.max(this.read, this.total), name)
  }
}

/**
 * Which backend runs the graphs: what the manifest chooses a variant for.
 *
 * @param {LoadOptions} options
 * @returns {Backend}
 */
function backendOf({ ort, executionProviders }) {
  const first = executionProviders?.[0]
  const name = typeof first === 'object' ? first.name : first
  if (name === 'webgpu' || name === 'wasm') return name
  // onnxruntime-web registers "wasm" as a version of its own, the others "node" or "react-native"
  return name === undefined && 'web' in (ort.env?.versions ?? {}) ? 'wasm' : 'cpu'
}

/** @param {{ graphs: Record<string, GraphEntry> }} variant */
const isHalf = (variant) => variant.graphs.lm_inference.inputs.some(({ dtype }) => dtype === 'float16')

/** Whether this browser's GPU has shaders for float16. */
async function computesInHalf() {
  const adapter = await /** @type {any} */ (globalThis.navigator)?.gpu?.requestAdapter()
  return Boolean(adapter?.features.has('shader-f16'))
}

/** A graph and its tensors by name, with symbolic sizes as strings. */
export class Graph {
  /**
   * @param {Manifest} manifest
   * @param {GraphEntry} entry
   * @param {Backend} backend
   */
  constructor(manifest, entry, backend) {
    this.manifest = manifest
    this.entry = entry
    this.backend = backend
    this.ort = manifest.options.ort
    this.inputs = Object.fromEntries(entry.inputs.map((port) => [port.name, port]))
    this.outputs = Object.fromEntries(entry.outputs.map((port) => [port.name, port]))
    /** @type {Promise<Session> | undefined} */
    this.opening = undefined
  }

  /** The session, opened when first asked for: whoever gives no texts never loads what reads them. */
  session() {
    this.opening ??= this._open()
    return this.opening
  }

  /** @returns {Promise<Session>} */
  async _open() {
    const { files, options } = this.manifest
    const names = this.manifest.filesOf(this.entry)
    const { executionProviders, sessionOptions } = options
    const chosen = this.backend === this.manifest.backend ? executionProviders : [this.backend]
    const settings = {
      ...(chosen && { executionProviders: chosen }),
      logSeverityLevel: /** @type {3} */ (3),
      ...sessionOptions,
    }
    const path = this.manifest.backend === 'cpu' ? await files.path(this.entry.file) : null
    let session
    try {
      if (path !== null) {
        for (const name of names) {
          await files.check(name, this.manifest.tree.files[name])
          this.manifest.progress(this.manifest.tree.files[name].bytes, name)
        }
        session = await this.ort.InferenceSession.create(path, settings)
      } else {
        const model = await this.manifest.content(this.entry.file)
        const externalData = []
        for (const name of names.filter((name) => name !== this.entry.file)) {
          externalData.push({ path: name.replace(/.*\//, ''), data: await this.manifest.content(name) })
        }
        session = await this.ort.InferenceSession.create(model, { ...settings, externalData })
      }
    } catch (error) {
      const { message, name } = /** @type {Error} */ (error)
      if (error instanceof BundleError || name === 'AbortError') throw error
      const hint = /alloc|memory|out of bounds/i.test(message) ? '; too little memory: take a smaller variant' : ''
      throw new BundleError(`${files.label(this.entry.file)}: ONNX Runtime does not load it: ${message}${hint}`)
    }
    return session
  }

  /**
   * A tensor for one input or output, its symbolic sizes taken from `sizes`, filled with zeros.
   *
   * @param {string} name
   * @param {Sizes} sizes
   * @returns {Tensor}
   */
  zeros(name, sizes) {
    const { dtype, dims } = this.port(name, sizes)
    const size = dims.reduce((product, n) => product * n, 1)
    return this._tensor(dtype, new (arrayOf(dtype))(size), dims)
  }

  /**
   * A tensor for one input, with these values.
   *
   * @param {string} name
   * @param {ArrayLike<number>} values
   * @param {Sizes} [sizes]
   * @returns {Tensor}
   */
  tensor(name, values, sizes = {}) {
    const { dtype, dims } = this.port(name, sizes)
    if (dtype === 'int64') return this._tensor(dtype, BigInt64Array.from(values, BigInt), dims)
    const floats = values instanceof Float32Array ? values : Float32Array.from(values)
    return this._tensor(dtype, dtype === 'float16' ? toFloat16(floats) : floats, dims)
  }

  /**
   * @param {TensorType} dtype
   * @param {any} data
   * @param {number[]} dims
   * @returns {Tensor}
   */
  _tensor(dtype, data, dims) {
    const half = dtype === 'float16' && /** @type {any} */ (globalThis).Float16Array
    return new this.ort.Tensor(dtype, half ? new half(data.buffer, data.byteOffset, data.length) : data, dims)
  }

  /**
   * @param {string} name
   * @param {Sizes} sizes
   * @returns {{ dtype: TensorType, dims: number[] }}
   */
  port(name, sizes) {
    const { dtype, shape } = this.inputs[name] ?? this.outputs[name]
    return { dtype, dims: shape.map((size) => (typeof size === 'string' ? sizes[size] : size)) }
  }

  /**
   * Run, and give the outputs by name.
   *
   * @param {Record<string, Tensor>} feeds
   * @param {string[]} [outputs]
   * @returns {Promise<Record<string, Tensor>>}
   */
  async run(feeds, outputs = Object.keys(this.outputs)) {
    const session = await this.session()
    return session.run(feeds, outputs)
  }

  /** Free its memory. */
  async release() {
    const opening = this.opening
    this.opening = undefined
    await (await opening)?.release()
  }
}

/** @param {TensorType} dtype */
const arrayOf = (dtype) => ARRAYS[/** @type {keyof typeof ARRAYS} */ (dtype)]

/**
 * The values of a tensor as floats, whatever its precision.
 *
 * @param {Tensor} tensor
 * @returns {Promise<Float32Array>}
 */
export async function floats(tensor) {
  const data = /** @type {any} */ (await tensor.getData())
  if (data instanceof Uint16Array) return fromFloat16(data)
  return data instanceof Float32Array ? data : Float32Array.from(data)
}

/**
 * The values of a tensor of codes [rows, K, T] as [rows][K] -> T.
 *
 * @param {Tensor} tensor
 * @returns {Promise<Int32Array[][]>}
 */
export async function codesOf(tensor) {
  const data = /** @type {BigInt64Array} */ (await tensor.getData())
  const [rows, codebooks, frames = 1] = tensor.dims
  return Array.from({ length: rows }, (_, b) =>
    Array.from({ length: codebooks }, (_, k) => {
      const at = (b * codebooks + k) * frames
      return Int32Array.from(data.subarray(at, at + frames), Number)
    }),
  )
}
