/**
 * ONNX Runtime's C API of the library that onnxruntime-node ships, called through koffi, a foreign function interface:
 *
 *     OrtGetApiBase() -> GetApi(17) -> table of pointers    ORT_API says which of them is what
 */

/** @typedef {bigint | null} Pointer */

const VERSION = 17 // of the C API; later ones only append entries
// Calls on other threads at a time. libuv has 4 such threads unless the program asks for more, and reading a file needs
// one, too; koffi refuses more than 256 calls.
const MOST_CALLS = Math.min(Math.max(1, Number(globalThis.process?.env?.UV_THREADPOOL_SIZE || 4) - 1), 128)
const STACK = 2 ** 23 // bytes of a call on another thread: graph optimizers and kernels overflow koffi's 128 KiB
const LIBRARY = { linux: 'libonnxruntime.so.1', darwin: 'libonnxruntime.1.dylib', win32: 'onnxruntime.dll' }
const LEVELS = { verbose: 0, info: 1, warning: 2, error: 3, fatal: 4 }
const DEFAULT_ALLOCATOR = { device: 0, memory: 0 } // OrtDeviceAllocator, OrtMemTypeDefault

/**
 * Of onnxruntime_c_api.h: each function's place in OrtApi, and its signature. PATH: ORTCHAR_T.
 *
 * @type {Record<string, [place: number, signature: string]>}
 */
export const ORT_API = {
  GetErrorMessage: [2, 'const char *(const void *status)'],
  CreateEnv: [3, 'void *(int level, const char *id, _Out_ void **env)'],
  CreateSession: [7, 'void *(const void *env, const PATH *path, const void *options, _Out_ void **session)'],
  CreateSessionOptions: [10, 'void *(_Out_ void **options)'],
  SetSessionExecutionMode: [13, 'void *(void *options, int mode)'],
  EnableMemPattern: [16, 'void *(void *options)'],
  DisableMemPattern: [17, 'void *(void *options)'],
  EnableCpuMemArena: [18, 'void *(void *options)'],
  DisableCpuMemArena: [19, 'void *(void *options)'],
  SetSessionLogId: [20, 'void *(void *options, const char *id)'],
  SetSessionLogVerbosityLevel: [21, 'void *(void *options, int level)'],
  SetSessionLogSeverityLevel: [22, 'void *(void *options, int level)'],
  SetSessionGraphOptimizationLevel: [23, 'void *(void *options, int level)'],
  SetIntraOpNumThreads: [24, 'void *(void *options, int threads)'],
  SetInterOpNumThreads: [25, 'void *(void *options, int threads)'],
  SessionGetInputCount: [30, 'void *(const void *session, _Out_ size_t *count)'],
  SessionGetOutputCount: [31, 'void *(const void *session, _Out_ size_t *count)'],
  SessionGetInputTypeInfo: [33, 'void *(const void *session, size_t index, _Out_ void **info)'],
  SessionGetOutputTypeInfo: [34, 'void *(const void *session, size_t index, _Out_ void **info)'],
  SessionGetInputName: [36, 'void *(const void *session, size_t index, void *allocator, _Out_ void **name)'],
  SessionGetOutputName: [37, 'void *(const void *session, size_t index, void *allocator, _Out_ void **name)'],
  CreateRunOptions: [39, 'void *(_Out_ void **options)'],
  CreateTensorWithDataAsOrtValue: [
    49,
    'void *(const void *cpu, void *data, size_t bytes, const int64_t *dims, size_t rank, int type, _Out_ void **value)',
  ],
  GetTensorMutableData: [51, 'void *(void *value, _Out_ void **data)'],
  CastTypeInfoToTensorInfo: [55, 'void *(const void *info, _Out_ void **tensor)'],
  GetTensorElementType: [60, 'void *(const void *tensor, _Out_ int *type)'],
  GetDimensionsCount: [61, 'void *(const void *tensor, _Out_ size_t *rank)'],
  GetDimensions: [62, 'void *(const void *tensor, _Out_ int64_t *dims, size_t rank)'],
  GetSymbolicDimensions: [63, 'void *(const void *tensor, void *names, size_t rank)'],
  GetTensorTypeAndShape: [65, 'void *(const void *value, _Out_ void **tensor)'],
  CreateCpuMemoryInfo: [69, 'void *(int allocator, int memory, _Out_ void **info)'],
  AllocatorFree: [76, 'void *(void *allocator, void *pointer)'],
  GetAllocatorWithDefaultOptions: [78, 'void *(_Out_ void **allocator)'],
  ReleaseStatus: [93, 'void (void *status)'],
  ReleaseMemoryInfo: [94, 'void (void *info)'],
  ReleaseSession: [95, 'void (void *session)'],
  ReleaseValue: [96, 'void (void *value)'],
  ReleaseRunOptions: [97, 'void (void *options)'],
  ReleaseTypeInfo: [98, 'void (void *info)'],
  ReleaseTensorTypeAndShapeInfo: [99, 'void (void *tensor)'],
  ReleaseSessionOptions: [100, 'void (void *options)'],
  AddSessionConfigEntry: [130, 'void *(void *options, const char *key, const char *value)'],
  RunWithBinding: [133, 'void *(void *session, const void *options, const void *binding)'],
  CreateIoBinding: [134, 'void *(void *session, _Out_ void **binding)'],
  ReleaseIoBinding: [135, 'void (void *binding)'],
  BindInput: [136, 'void *(void *binding, const char *name, const void *value)'],
  BindOutput: [137, 'void *(void *binding, const char *name, const void *value)'],
  BindOutputToDevice: [138, 'void *(void *binding, const char *name, const void *memory)'],
  GetBoundOutputValues: [140, 'void *(const void *binding, void *allocator, _Out_ void **values, _Out_ size_t *count)'],
  ClearBoundOutputs: [142, 'void (void *binding)'],
}

/**
 * The file of onnxruntime-node's binding, which this process has loaded with it. The library lies beside it, koffi in a
 * folder above. import.meta would give a path, too, but React Native cannot read it.
 */
function bindingPath() {
  const { cache } = process.getBuiltinModule('node:module').createRequire(process.execPath) // of all modules
  const path = Object.keys(cache).find((path) => path.endsWith('onnxruntime_binding.node'))
  if (path) return path
  throw new Error("onnxruntime-node's binding is not among the loaded modules: it must not be bundled")
}

/** koffi, where it is installed beside onnxruntime-node. @param {string} binding */
function installedKoffi(binding) {
  try {
    return process.getBuiltinModule('node:module').createRequire(binding)('koffi')
  } catch (error) {
    const [reason] = /** @type {Error} */ (error).message.split('\n')
    throw new Error(`koffi is not there (${reason}); install it: npm install koffi`)
  }
}

/** A path that Electron finds in its archive, as the system finds it. @param {string} path */
export const unpacked = (path) => path.replace(/app\.asar(?=[\\/])/, 'app.asar.unpacked')

/** @type {Map<any, OrtApi>} by the ort that they belong to; a thread has its own */
const opened = new Map()

/**
 * ONNX Runtime's C API, of the library that onnxruntime-node has loaded. Throws where koffi cannot call it.
 *
 * @param {any} ort onnxruntime-node
 * @param {any} [given] koffi, or its namespace; default: as it is installed
 */
export function openApi(ort, given) {
  const { env } = ort
  const known = opened.get(env)
  if (known) return known
  const version = env?.versions?.node
  if (!version) throw new Error('ort is not onnxruntime-node')
  const binding = bindingPath()
  const found = given ?? installedKoffi(binding)
  const koffi = found.load ? found : found.default
  const [major, minor, patch] = String(koffi?.version).split('.').map(Number)
  const isKnown = major === 3 && (minor > 3 || (minor === 3 && patch >= 4)) // older ones do not refuse a late config()
  if (!isKnown) throw new Error(`koffi: got version ${koffi?.version}, expected 3.3.4 or a later 3`)
  if (koffi.config().async_stack_size < STACK) koffi.config({ async_stack_size: STACK }) // throws after koffi.load
  const library = process
    .getBuiltinModule('node:path')
    .join(binding, '..', LIBRARY[/** @type {'linux'} */ (process.platform)])
  const logLevel = LEVELS[/** @type {'info'} */ (env.logLevel)] ?? LEVELS.warning
  const api = new OrtApi(koffi, unpacked(library), version, logLevel)
  opened.set(env, api)
  return api
}

/** ONNX Runtime's C API in one thread: its functions, and what must be freed. */
export class OrtApi {
  /**
   * @param {any} koffi
   * @param {string} path of the library
   * @param {string} version of onnxruntime-node
   * @param {number} logLevel
   */
  constructor(koffi, path, version, logLevel) {
    this.koffi = koffi
    this.calls = 0 // on other threads, now
    /** @type {(() => void)[]} */
    this.waiting = []
    const base = koffi.load(path).func('OrtGetApiBase', 'void *', [])()
    const entry = (/** @type {Pointer} */ table, /** @type {number} */ i) => koffi.decode(table, 8 * i, 'void *')
    const found = koffi.call(entry(base, 1), koffi.proto('const char *()'))
    if (found !== version) throw new Error(`${path} is ONNX Runtime ${found}, onnxruntime-node is ${version}`)
    const table = koffi.call(entry(base, 0), koffi.proto('void *(uint32_t version)'), VERSION)
    if (!table) throw new Error(`ONNX Runtime ${found} has no C API ${VERSION}`)
    const ortchar = process.platform === 'win32' ? 'char16_t' : 'char'
    /** @type {Record<string, any>} */
    this.functions = {}
    /** @type {Record<string, Pointer>} */
    this.pointers = {}
    for (const [name, [index, signature]] of Object.entries(ORT_API)) {
      this.pointers[name] = entry(table, index)
      this.functions[name] = koffi.decode(this.pointers[name], koffi.proto(signature.replace('PATH', ortchar)))
    }
    this.hooks = cleanupHooks(koffi)
    this.registry = new FinalizationRegistry((/** @type {() => void} */ free) => free())
    // one for the whole process, counted; Node ends the process where one pointer has two clean-up hooks
    this.env = this.create('CreateEnv', logLevel, 'clean-lm')
    this.memory = this.create('CreateCpuMemoryInfo', DEFAULT_ALLOCATOR.device, DEFAULT_ALLOCATOR.memory)
    this.own('MemoryInfo', this.memory)
    this.allocator = this.create('GetAllocatorWithDefaultOptions')
  }

  /** Call a function that returns a status. Throws ONNX Runtime's error. @param {string} name @param {any[]} args */
  call(name, ...args) {
    this._check(this.functions[name](...args))
  }

  /** The same on another thread, in turn. @param {string} name @param {any[]} args @returns {Promise<void>} */
  async callAsync(name, ...args) {
    if (this.calls < MOST_CALLS) this.calls++
    else await new Promise((resolve) => this.waiting.push(() => resolve(undefined)))
    try {
      await this._callNow(name, args)
    } finally {
      const next = this.waiting.shift() // takes over this call's place
      if (next) next()
      else this.calls--
    }
  }

  /** @param {string} name @param {any[]} args @returns {Promise<void>} */
  _callNow(name, args) {
    return new Promise((resolve, reject) => {
      this.functions[name].async(...args, (/** @type {Error | null} */ error, /** @type {Pointer} */ status) => {
        try {
          if (error) throw error
          resolve(this._check(status))
        } catch (reason) {
          reject(reason)
        }
      })
    })
  }

  /** What a function puts into its last argument. @param {string} name @param {any[]} args @returns {any} */
  create(name, ...args) {
    const out = [null]
    this.call(name, ...args, out)
    return out[0]
  }

  /** @param {Pointer} status */
  _check(status) {
    if (!status) return
    const message = this.functions.GetErrorMessage(status)
    this.functions.ReleaseStatus(status)
    throw new Error(message)
  }

  /**
   * Free an object with the thread at the latest, however it ends: not even a terminated worker leaves it.
   *
   * @param {string} kind of OrtApi's Release functions
   * @param {Pointer} pointer
   * @param {object} [holder] frees it when it is collected
   * @param {() => void} [freed] called afterwards; what it holds stays alive until then
   * @returns {() => void} frees it now, once
   */
  own(kind, pointer, holder, freed) {
    const release = this.pointers[`Release${kind}`]
    let isFree = false
    const free = () => {
      if (isFree) return
      isFree = true
      this.hooks?.remove(release, pointer)
      this.functions[`Release${kind}`](pointer)
      freed?.()
    }
    this.hooks?.add(release, pointer)
    if (holder) this.registry.register(holder, free)
    return free
  }
}

/**
 * Node's clean-up hooks of this thread, which call a C function with a pointer when the thread ends. Node runs no
 * JavaScript then, and koffi has none, so they are called by their C++ names. Throws where a worker has none; the main
 * thread ends with the process and needs none.
 *
 * @param {any} koffi
 */
function cleanupHooks(koffi) {
  const types = process.platform === 'win32' ? 'YAXPEAVIsolate@v8@@P6AXPEAX@Z1@Z' : 'EPN2v87IsolateEPFvPvES3_'
  const name = (/** @type {string} */ verb) =>
    process.platform === 'win32'
      ? `?${verb}EnvironmentCleanupHook@node@@${types}`
      : `_ZN4node${verb.length + 22}${verb}EnvironmentCleanupHook${types}`
  try {
    const node = koffi.load(null)
    const current =
      process.platform === 'win32' ? '?GetCurrent@Isolate@v8@@SAPEAV12@XZ' : '_ZN2v87Isolate10GetCurrentEv'
    const isolate = node.func(current, 'void *', [])()
    const [add, remove] = ['Add', 'Remove'].map((verb) => node.func(name(verb), 'void', ['void *', 'void *', 'void *']))
    return {
      add: (/** @type {Pointer} */ call, /** @type {Pointer} */ pointer) => add(isolate, call, pointer),
      remove: (/** @type {Pointer} */ call, /** @type {Pointer} */ pointer) => remove(isolate, call, pointer),
    }
  } catch (error) {
    if (process.getBuiltinModule('node:worker_threads').isMainThread) return null
    throw error
  }
}
