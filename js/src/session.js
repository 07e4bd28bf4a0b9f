/** ONNX Runtime's sessions, and tensors as their graphs expect them. */

import { BundleError } from './files.js'
import { fromFloat16, toFloat16 } from './float16.js'
import { NativeSession } from './native.js'
import { printable, shown } from './typed_json.js'

/**
 * @typedef {typeof import('onnxruntime-common')} Ort
 * @typedef {import('onnxruntime-common').InferenceSession} Session
 * @typedef {import('onnxruntime-common').Tensor} Tensor
 * @typedef {import('onnxruntime-common').Tensor.Type} TensorType
 * @typedef {{ name: string, dtype: TensorType, shape: (number | string)[] }} TensorSpec a string is a symbolic size
 * @typedef {Record<string, number>} Sizes values of symbolic sizes
 * @typedef {import('./manifest.js').Manifest} Manifest
 */

const ARRAYS = { float32: Float32Array, float16: Uint16Array, int64: BigInt64Array, int8: Int8Array }

/** A graph of a bundle: its inputs and outputs by name, and its session. */
export class Graph {
  /**
   * @param {Manifest} manifest
   * @param {import('./manifest.js').GraphEntry} entry
   * @param {import('./manifest.js').Backend} backend
   * @param {ReturnType<typeof import('./native.js').nativeApi>} [native] the C API that runs it; null: ort does
   */
  constructor(manifest, entry, backend, native = null) {
    this.manifest = manifest
    this.entry = entry
    this.backend = backend
    this.native = native
    this.ort = manifest.options.ort
    this.inputs = Object.fromEntries(entry.inputs.map((spec) => [spec.name, spec]))
    this.outputs = Object.fromEntries(entry.outputs.map((spec) => [spec.name, spec]))
    /** @type {Promise<Session> | undefined} */
    this.opening = undefined
  }

  /** The session. It opens with its first use: without texts, the text encoder is never loaded. */
  session() {
    this.opening ??= this._open()
    return this.opening
  }

  /** @returns {Promise<Session>} */
  async _open() {
    const { files, options } = this.manifest
    const { executionProviders, sessionOptions } = options
    const providers = this.backend === this.manifest.backend ? executionProviders : [this.backend]
    const settings = {
      ...(providers && { executionProviders: providers }),
      logSeverityLevel: /** @type {3} */ (3), // errors only
      ...sessionOptions,
    }
    try {
      const path = this.manifest.backend === 'cpu' ? await files.path(this.entry.file) : null
      const session = await (path === null ? this._fromMemory(settings) : this._fromDisk(path, settings))
      return await this._requireSame(session)
    } catch (error) {
      options.signal?.throwIfAborted()
      if (error instanceof BundleError) throw error
      const message = printable(/** @type {Error} */ (error).message)
      const hint = /alloc|memory|out of bounds/i.test(message) ? '; not enough memory: load a smaller variant' : ''
      const names = providers?.map((provider) => provider.name ?? provider).join(', ')
      const where = names ? ` with executionProviders ${names}` : ''
      throw new BundleError(`${files.label(this.entry.file)}: ONNX Runtime cannot load it${where}: ${message}${hint}`)
    }
  }

  /**
   * ONNX Runtime opens the file itself and maps its weights, so they are not copied into memory.
   *
   * @param {string} path
   * @param {object} settings
   */
  async _fromDisk(path, settings) {
    for (const name of this.manifest.filesOf(this.entry)) await this.manifest.verify(name)
    await this._requireListed()
    if (!this.native) return this.ort.InferenceSession.create(path, settings)
    const session = await NativeSession.create(this.native, path, settings, this._tensor.bind(this))
    return /** @type {Session} */ (/** @type {unknown} */ (session))
  }

  /** Throw BundleError if ONNX Runtime would read weights that manifest.json does not list. */
  async _requireListed() {
    const { files, tree } = this.manifest
    const name = this.entry.data ?? `${this.entry.file}.data`
    if (Object.hasOwn(tree.files, name)) return
    if (await files.exists(name)) {
      throw new BundleError(`${files.label(name)}: not listed in manifest.json; copy the bundle again`)
    }
  }

  /** @param {object} settings */
  async _fromMemory(settings) {
    const { manifest, entry } = this
    const model = await manifest.read(entry.file)
    const externalData = []
    for (const name of manifest.filesOf(entry).filter((name) => name !== entry.file)) {
      externalData.push({ path: name.replace(/.*\//, ''), data: await manifest.read(name) })
    }
    return this.ort.InferenceSession.create(model, { ...settings, externalData })
  }

  /**
   * The session, if its inputs and outputs are those of the manifest: before anything of those sizes is allocated.
   *
   * @param {Session} session
   */
  async _requireSame(session) {
    const { inputNames, outputNames, inputMetadata, outputMetadata } = session
    const path = this.manifest.files.label(this.entry.file)
    const wrong =
      difference('input', this.inputs, inputNames, inputMetadata) ??
      difference('output', this.outputs, outputNames, outputMetadata)
    if (wrong === undefined) return session
    await session.release()
    throw new BundleError(`${path}: ${wrong}; export the bundle again`)
  }

  /**
   * A tensor of zeros for an input or output.
   *
   * @param {string} name
   * @param {Sizes} sizes
   * @returns {Tensor}
   */
  zeros(name, sizes) {
    const { dtype, dims } = this.resolve(name, sizes)
    const size = dims.reduce((product, n) => product * n, 1)
    return this._tensor(dtype, new (arrayOf(dtype))(size), dims)
  }

  /**
   * A tensor for an input, converted to the type that the graph expects.
   *
   * @param {string} name
   * @param {ArrayLike<number>} values
   * @param {Sizes} [sizes]
   * @returns {Tensor}
   */
  tensor(name, values, sizes = {}) {
    const { dtype, dims } = this.resolve(name, sizes)
    if (dtype === 'int64') return this._tensor(dtype, BigInt64Array.from(values, BigInt), dims)
    // onnxruntime-react-native reads from the start of a buffer, wherever the array begins in it; native code may hold
    // memory of ours only, which nobody shares, transfers or resizes
    const isWhole = values instanceof Float32Array && values.byteOffset === 0 && !this.native
    const floats = isWhole ? values : Float32Array.from(values)
    return this._tensor(dtype, dtype === 'float16' ? toFloat16(floats) : floats, dims)
  }

  /**
   * @param {TensorType} dtype
   * @param {any} data float16 as bits, in a Uint16Array
   * @param {number[]} dims
   * @returns {Tensor}
   */
  _tensor(dtype, data, dims) {
    const Half = dtype === 'float16' && /** @type {any} */ (globalThis).Float16Array
    return new this.ort.Tensor(dtype, Half ? new Half(data.buffer, data.byteOffset, data.length) : data, dims)
  }

  /**
   * The type and shape of an input or output with its symbolic sizes filled in.
   *
   * @param {string} name
   * @param {Sizes} sizes
   * @returns {{ dtype: TensorType, dims: number[] }}
   */
  resolve(name, sizes) {
    const { dtype, shape } = this.inputs[name] ?? this.outputs[name]
    const unknown = shape.find((size) => typeof size === 'string' && sizes[size] === undefined)
    if (unknown !== undefined) {
      const [path, known] = [this.manifest.files.label(this.entry.file), Object.keys(sizes).join(', ')]
      throw new BundleError(`${path}: ${name} has a size ${shown(unknown)}, expected ${known}`)
    }
    return { dtype, dims: shape.map((size) => (typeof size === 'string' ? sizes[size] : size)) }
  }

  /**
   * Run the graph.
   *
   * @param {Record<string, Tensor>} feeds inputs by name
   * @param {string[]} [outputs] default: all
   * @returns {Promise<Record<string, Tensor>>} outputs by name
   */
  async run(feeds, outputs = Object.keys(this.outputs)) {
    const session = await this.session()
    return session.run(feeds, outputs)
  }

  /** Free the session's memory; the next run opens it again. */
  async release() {
    const opening = this.opening
    this.opening = undefined
    await (await opening)?.release()
  }
}

/**
 * How the inputs or outputs of a session differ from the manifest's; undefined where they do not. Types and shapes are
 * compared where this ONNX Runtime gives them.
 *
 * @param {'input' | 'output'} half
 * @param {Record<string, TensorSpec>} expected
 * @param {readonly string[]} names
 * @param {readonly import('onnxruntime-common').InferenceSession.ValueMetadata[]} [metadata]
 */
function difference(half, expected, names, metadata = []) {
  const held = new Set(names)
  const tensors = new Map(metadata.map((tensor) => [tensor.name, tensor]))
  for (const name of [...new Set([...names, ...Object.keys(expected)])].sort()) {
    const tensor = tensors.get(name)
    const spec = Object.hasOwn(expected, name) ? expected[name] : undefined
    if (spec && held.has(name) && !tensor) continue // its type is not known
    const found = !held.has(name) ? 'none' : tensor?.isTensor ? words(tensor.type, tensor.shape) : 'no tensor'
    const wanted = spec ? words(spec.dtype, spec.shape) : 'none'
    if (found !== wanted) return `${half} ${shown(name)} is ${found}, manifest.json says ${wanted}`
  }
}

/** @param {string} dtype @param {readonly (number | string)[]} shape */
const words = (dtype, shape) =>
  `${dtype} [${shape.map((size) => (typeof size === 'string' ? `'${printable(size)}'` : size)).join(', ')}]`

/** @param {TensorType} dtype */
const arrayOf = (dtype) => ARRAYS[/** @type {keyof typeof ARRAYS} */ (dtype)]

/**
 * A float tensor's values in float32.
 *
 * @param {Tensor} tensor
 * @returns {Promise<Float32Array>}
 */
export async function floatsOf(tensor) {
  const data = /** @type {any} */ (await tensor.getData())
  if (data instanceof Uint16Array) return fromFloat16(data)
  return data instanceof Float32Array ? data : Float32Array.from(data)
}

/**
 * A tensor of codes [B, K, T], or [B, K] for one frame, as nested arrays.
 *
 * @param {Tensor} tensor
 * @returns {Promise<Int32Array[][]>} [B][K] -> T
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
