/**
 * A session of ONNX Runtime that leaves the event loop alone and whose KV cache is really written in place, for Node and
 * Electron.
 *
 * onnxruntime-node runs a graph on the thread of the event loop, which stands still meanwhile: for a second or more while
 * the codec encodes or decodes. It returns a copy of every output that it is given memory for: with a full cache a step
 * takes two to four times as long as in Python. This session calls the C API of the same library, and binds the arrays
 * once:
 *
 *     CreateSession(path)                       weights stay mapped from their file
 *     CreateIoBinding, BindInput, BindOutput    once; later only what changed
 *     RunWithBinding                            on a thread of libuv: the event loop goes on
 *
 * Remove this file and c_api.js when onnxruntime-node no longer copies, https://github.com/microsoft/onnxruntime/pull/32346,
 * and runs graphs on another thread.
 */

import { openApi } from './c_api.js'
import { shown } from './options.js'

/**
 * @typedef {import('onnxruntime-common').Tensor} Tensor
 * @typedef {import('onnxruntime-common').InferenceSession.ValueMetadata} ValueMetadata
 * @typedef {import('./c_api.js').OrtApi} OrtApi
 * @typedef {import('./c_api.js').Pointer} Pointer
 * @typedef {ArrayBufferView & { length: number }} TypedArray
 * @typedef {(type: any, data: any, dims: number[]) => Tensor} CreateTensor
 * @typedef {{ tensor: Tensor, data: TypedArray, bytes: number }} Memory what a name is bound to
 */

/** Of onnxruntime_c_api.h: the number of a type, and the arrays that hold it; float16 as bits. */
const TYPES = {
  float32: { id: 1, Array: Float32Array },
  uint8: { id: 2, Array: Uint8Array },
  int8: { id: 3, Array: Int8Array },
  uint16: { id: 4, Array: Uint16Array },
  int16: { id: 5, Array: Int16Array },
  int32: { id: 6, Array: Int32Array },
  int64: { id: 7, Array: BigInt64Array },
  bool: { id: 9, Array: Uint8Array },
  float16: { id: 10, Array: Uint16Array },
  float64: { id: 11, Array: Float64Array },
  uint32: { id: 12, Array: Uint32Array },
  uint64: { id: 13, Array: BigUint64Array },
}
const NAMES = Object.fromEntries(Object.entries(TYPES).map(([name, { id }]) => [id, name]))

/** @param {string} setter @param {number} [most] */
const level =
  (setter, most = 2 ** 31 - 1) =>
  (/** @type {any} */ n) =>
    Number.isInteger(n) && n >= 0 && n <= most && [[setter, n]]
/** @param {string} setter @param {Record<string, number>} values */
const choice = (setter, values) => (/** @type {any} */ name) =>
  typeof name === 'string' && Object.hasOwn(values, name) && [[setter, values[name]]]
/** @param {string} what */
const toggle = (what) => (/** @type {any} */ on) => typeof on === 'boolean' && [[`${on ? 'Enable' : 'Disable'}${what}`]]

/**
 * Entries of a session's configuration: `extra: { session: { a: '1' } }` is session.a.
 *
 * @param {any} extra
 * @param {string} [prefix]
 * @returns {any[][] | false}
 */
function configEntries(extra, prefix = '') {
  if (typeof extra === 'string') return [['AddSessionConfigEntry', prefix.slice(0, -1), extra]]
  if (typeof extra !== 'object' || extra === null) return false
  const nested = Object.entries(extra).map(([key, value]) => configEntries(value, `${prefix}${key}.`))
  return !nested.includes(false) && /** @type {any[][][]} */ (nested).flat()
}

/**
 * Session options as calls of setters; false where a value is not theirs.
 *
 * @type {Record<string, (value: any) => any[][] | false>}
 */
const SESSION_OPTIONS = {
  intraOpNumThreads: level('SetIntraOpNumThreads'),
  interOpNumThreads: level('SetInterOpNumThreads'),
  graphOptimizationLevel: choice('SetSessionGraphOptimizationLevel', {
    disabled: 0,
    basic: 1,
    extended: 2,
    layout: 3,
    all: 99,
  }),
  executionMode: choice('SetSessionExecutionMode', { sequential: 0, parallel: 1 }),
  enableCpuMemArena: toggle('CpuMemArena'),
  enableMemPattern: toggle('MemPattern'),
  logId: (id) => typeof id === 'string' && [['SetSessionLogId', id]],
  logSeverityLevel: level('SetSessionLogSeverityLevel', 4),
  logVerbosityLevel: level('SetSessionLogVerbosityLevel'),
  extra: (extra) => typeof extra === 'object' && configEntries(extra),
}

/** @param {string} name @param {unknown} value */
const settersOf = (name, value) => Object.hasOwn(SESSION_OPTIONS, name) && SESSION_OPTIONS[name](value)

/**
 * The C API that a bundle's graphs run on; null: onnxruntime-node's own sessions run them.
 *
 * @param {import('./manifest.js').Manifest} manifest
 * @returns {OrtApi | null} throws where the option `native` is true, with the reason why it cannot be
 */
export function nativeApi({ backend, files, options, tree }) {
  const { native, executionProviders, sessionOptions = {}, ort, koffi } = options
  if (native === false) return null
  try {
    if (backend !== 'cpu' || typeof process === 'undefined' || !process.versions?.node) throw new Error('needs Node')
    if (files.folder === null) throw new Error('the bundle is not on a disk')
    if (tree.cache_update === 'new_columns') throw new Error('the variant does not write its KV cache in place')
    if (executionProviders) throw new Error('executionProviders are chosen')
    const foreign = Object.entries(sessionOptions).find(([name, value]) => !settersOf(name, value))
    if (foreign) throw new Error(`sessionOptions.${foreign[0]}: got ${shown(foreign[1])}, which is not translated`)
    return openApi(ort, koffi)
  } catch (error) {
    if (!native) return null
    throw new Error(`native: cannot run here: ${/** @type {Error} */ (error).message}`)
  }
}

/** A session with the interface of onnxruntime's. Tensors are on the CPU. */
export class NativeSession {
  /**
   * @param {OrtApi} api
   * @param {Pointer} pointer
   * @param {CreateTensor} createTensor of float16 it gets the bits
   */
  constructor(api, pointer, createTensor) {
    this.api = api
    this.pointer = pointer
    this.createTensor = createTensor
    this.free = api.own('Session', pointer, this)
    this.options = api.create('CreateRunOptions')
    this.freeOptions = api.own('RunOptions', this.options, this)
    /** @type {Set<() => void>} free the bindings, before the session */
    this.bindings = new Set()
    /** @type {WeakMap<Tensor, Binding>} by a tensor that outputs are written to: a decoder's cache */
    this.byOutput = new WeakMap()
    /** @type {Map<Binding, Promise<unknown>>} */
    this.running = new Map()
    this.isReleased = false
    this.inputMetadata = this._metadata('Input')
    this.outputMetadata = this._metadata('Output')
    this.inputNames = this.inputMetadata.map(({ name }) => name)
    this.outputNames = this.outputMetadata.map(({ name }) => name)
    this.names = { input: new Set(this.inputNames), output: new Set(this.outputNames) }
  }

  /**
   * Open a graph. ONNX Runtime maps its weights. Throws ONNX Runtime's error.
   *
   * @param {OrtApi} api
   * @param {string} path
   * @param {Record<string, any>} settings session options, which SESSION_OPTIONS has
   * @param {CreateTensor} createTensor
   */
  static async create(api, path, settings, createTensor) {
    const options = api.create('CreateSessionOptions')
    try {
      for (const [name, value] of Object.entries(settings)) {
        for (const [setter, ...args] of settersOf(name, value) || []) api.call(setter, options, ...args)
      }
      const session = [null]
      await api.callAsync('CreateSession', api.env, path, options, session)
      return new NativeSession(api, session[0], createTensor)
    } finally {
      api.functions.ReleaseSessionOptions(options)
    }
  }

  /** @param {'Input' | 'Output'} half @returns {ValueMetadata[]} */
  _metadata(half) {
    const { api, pointer } = this
    return Array.from({ length: api.create(`SessionGet${half}Count`, pointer) }, (_, i) => {
      const text = api.create(`SessionGet${half}Name`, pointer, i, api.allocator)
      const name = api.koffi.decode.string(text)
      api.call('AllocatorFree', api.allocator, text)
      const info = api.create(`SessionGet${half}TypeInfo`, pointer, i)
      try {
        const tensor = api.create('CastTypeInfoToTensorInfo', info)
        const type = tensor && NAMES[api.create('GetTensorElementType', tensor)]
        return type ? { name, isTensor: true, type, shape: this._shape(tensor) } : { name, isTensor: false }
      } finally {
        api.functions.ReleaseTypeInfo(info)
      }
    })
  }

  /** @param {Pointer} tensor its type and shape @returns {(number | string)[]} a string is a symbolic size */
  _shape(tensor) {
    const { api } = this
    const rank = api.create('GetDimensionsCount', tensor)
    const [sizes, names] = [new BigInt64Array(rank), new BigUint64Array(rank)]
    api.call('GetDimensions', tensor, sizes, rank)
    api.call('GetSymbolicDimensions', tensor, names, rank)
    return Array.from(sizes, (size, i) => (size < 0n ? api.koffi.decode.string(names[i]) : Number(size)))
  }

  /**
   * Run the graph. Outputs are written into the tensors of `fetches`; what is null there gets a new one.
   *
   * @param {Record<string, Tensor>} feeds
   * @param {readonly string[] | Record<string, Tensor | null>} [fetches] default: all
   * @returns {Promise<Record<string, Tensor>>} throws ONNX Runtime's error
   */
  async run(feeds, fetches = this.outputNames) {
    if (this.isReleased) throw new Error('the session has been released')
    /** @type {Record<string, Tensor | null>} */
    const wanted = Array.isArray(fetches) ? Object.fromEntries(fetches.map((name) => [name, null])) : { ...fetches }
    requireNames('input', this.names.input, Object.keys(feeds), this.names.input.size)
    requireNames('output', this.names.output, Object.keys(wanted))
    const given = /** @type {Tensor[]} */ (Object.values(wanted).filter((tensor) => tensor))
    const binding = this._bindingOf(given)
    if (this.running.has(binding)) throw new Error('a run writes to these outputs already: await it first')
    try {
      binding.bind(feeds, wanted)
      const run = this.api.callAsync('RunWithBinding', this.pointer, this.options, binding.pointer)
      this.running.set(binding, run) // holds the arrays that ONNX Runtime reads and writes
      await run
      const results = binding.results(wanted)
      if (!given.length) binding.free()
      return results
    } catch (error) {
      binding.free()
      throw error
    } finally {
      this.running.delete(binding)
    }
  }

  /**
   * The binding that has written to one of these outputs, or a new one.
   *
   * @param {Tensor[]} outputs
   */
  _bindingOf(outputs) {
    for (const tensor of outputs) {
      const known = this.byOutput.get(tensor)
      if (known && !known.isFree) return known
    }
    const binding = new Binding(this)
    for (const tensor of outputs) if (typeof tensor === 'object') this.byOutput.set(tensor, binding)
    return binding
  }

  /** Free the session, after the runs that are under way. */
  async release() {
    this.isReleased = true
    await Promise.allSettled(this.running.values())
    for (const free of [...this.bindings]) free()
    this.freeOptions()
    this.free()
  }
}

/** What the inputs and outputs of a session are bound to. */
class Binding {
  /** @param {NativeSession} session */
  constructor(session) {
    const { api } = session
    this.api = api
    this.createTensor = session.createTensor
    this.pointer = api.create('CreateIoBinding', session.pointer)
    // no closure in here may hold `this`, which would never be collected; this one holds the session for as long
    const free = api.own('IoBinding', this.pointer, this, () => session.bindings.delete(free))
    session.bindings.add(free)
    this.isFree = false
    this._free = free
    /** @type {Map<string, Memory>} */
    this.inputs = new Map()
    /** @type {Map<string, Memory | null>} in ONNX Runtime's order; null: it allocates */
    this.outputs = new Map()
  }

  free() {
    this.isFree = true
    this._free()
  }

  /**
   * Bind what is not bound already.
   *
   * @param {Record<string, Tensor>} feeds
   * @param {Record<string, Tensor | null>} fetches
   */
  bind(feeds, fetches) {
    const { api, inputs, outputs, pointer } = this
    const names = Object.keys(fetches)
    if (names.length !== outputs.size || !names.every((name) => outputs.has(name))) {
      api.functions.ClearBoundOutputs(pointer)
      outputs.clear()
    }
    for (const name of Object.keys(feeds)) this._bind('BindInput', inputs, name, feeds[name])
    for (const name of names) {
      const tensor = fetches[name]
      if (tensor) this._bind('BindOutput', outputs, name, tensor)
      else {
        api.call('BindOutputToDevice', pointer, name, api.memory)
        outputs.set(name, null)
      }
    }
  }

  /**
   * @param {'BindInput' | 'BindOutput'} call
   * @param {Map<string, Memory | null>} bound
   * @param {string} name
   * @param {Tensor} tensor
   */
  _bind(call, bound, name, tensor) {
    const { api, pointer } = this
    const before = bound.get(name)
    if (before && before.tensor === tensor && tensor.data === /** @type {any} */ (before.data)) {
      return requireAttached(name, before)
    }
    const memory = memoryOf(name, tensor)
    const { data, bytes } = memory
    // of a view of few bytes, V8 allocates the buffer that native code may hold only when it is asked for
    const address = bytes ? api.koffi.address(data.buffer) + BigInt(data.byteOffset) : null
    const { id } = TYPES[/** @type {'int8'} */ (tensor.type)]
    const shape = BigInt64Array.from(tensor.dims, BigInt)
    const value = api.create('CreateTensorWithDataAsOrtValue', api.memory, address, bytes, shape, shape.length, id)
    try {
      api.call(call, pointer, name, value)
    } finally {
      api.functions.ReleaseValue(value) // the binding has its own reference
    }
    bound.set(name, memory)
  }

  /**
   * The outputs after a run.
   *
   * @param {Record<string, Tensor | null>} fetches
   * @returns {Record<string, Tensor>}
   */
  results(fetches) {
    for (const bound of [this.inputs, this.outputs]) {
      for (const [name, memory] of bound) if (memory) requireAttached(name, memory)
    }
    const given = /** @type {Record<string, Tensor>} */ (fetches)
    return Object.values(fetches).every(Boolean) ? given : { ...given, ...this._allocated() }
  }

  /** Copies of the outputs that ONNX Runtime allocated. @returns {Record<string, Tensor>} */
  _allocated() {
    const { api, outputs } = this
    const [values, count] = [[null], [0]]
    api.call('GetBoundOutputValues', this.pointer, api.allocator, values, count)
    const pointers = [...api.koffi.decode(values[0], 'uint64_t', count[0])]
    const frees = pointers.map((value) => api.own('Value', value)) // of a worker that is terminated while it copies them
    try {
      const named = [...outputs].map(([name, memory], i) => ({ name, memory, value: pointers[i] }))
      const allocated = named.filter(({ memory }) => memory === null)
      return Object.fromEntries(allocated.map(({ name, value }) => [name, this._read(value)]))
    } finally {
      for (const free of frees) free()
      api.call('AllocatorFree', api.allocator, values[0])
    }
  }

  /** A copy of an output that ONNX Runtime allocated. @param {bigint} value */
  _read(value) {
    const { api } = this
    const info = api.create('GetTensorTypeAndShape', value)
    try {
      const type = /** @type {keyof typeof TYPES} */ (NAMES[api.create('GetTensorElementType', info)])
      const rank = api.create('GetDimensionsCount', info)
      const shape = new BigInt64Array(rank)
      api.call('GetDimensions', info, shape, rank)
      const dims = Array.from(shape, Number)
      const { Array: Typed } = TYPES[type]
      const size = dims.reduce((product, n) => product * n, 1)
      const from = size ? api.create('GetTensorMutableData', value) : null
      const bytes = from ? api.koffi.decode(from, 'uint8_t', size * Typed.BYTES_PER_ELEMENT) : new Uint8Array(0)
      return this.createTensor(type, new Typed(bytes.buffer, bytes.byteOffset, size), dims)
    } finally {
      api.functions.ReleaseTensorTypeAndShapeInfo(info)
    }
  }
}

/**
 * @param {'input' | 'output'} half
 * @param {Set<string>} known
 * @param {string[]} given
 * @param {number} [least] how many of them are needed
 */
function requireNames(half, known, given, least = 1) {
  if (given.length >= least && given.every((name) => known.has(name))) return
  const unknown = given.filter((name) => !known.has(name))
  const missing = [...known].filter((name) => !given.includes(name))
  const found = unknown.length ? unknown.join(', ') : `none for ${missing.join(', ')}`
  throw new Error(`${half}s: got ${found}, expected ${[...known].join(', ')}`)
}

/**
 * The memory of a tensor. Throws where native code must not hold it.
 *
 * @param {string} name in messages
 * @param {Tensor} tensor
 * @returns {Memory}
 */
function memoryOf(name, tensor) {
  const { type, dims, location } = tensor ?? {}
  const held = TYPES[/** @type {'int8'} */ (type)]
  if (!held || location !== 'cpu') {
    const found = tensor ? `${type} on ${location}` : String(tensor)
    throw new TypeError(`${name}: got ${found}, expected a tensor on cpu of ${Object.keys(TYPES).join(', ')}`)
  }
  const data = /** @type {TypedArray} */ (/** @type {unknown} */ (tensor.data))
  const bytes = dims.reduce((product, n) => product * n, held.Array.BYTES_PER_ELEMENT)
  const memory = { tensor, data, bytes }
  requireAttached(name, memory)
  const { buffer } = data
  const isOwn = Object.prototype.toString.call(buffer) === '[object ArrayBuffer]'
  if (isOwn && !(/** @type {any} */ (buffer).resizable)) return memory
  throw new TypeError(`${name}: got memory that is shared or resizable, expected an ArrayBuffer of fixed length`)
}

/**
 * Throw where memory is not there any more, because its buffer was transferred.
 *
 * @param {string} name in the message
 * @param {Memory} memory
 */
function requireAttached(name, { data, bytes }) {
  if (data.byteLength === bytes) return
  throw new TypeError(`${name}: got ${data.byteLength} bytes, expected ${bytes}; was its ArrayBuffer transferred?`)
}
