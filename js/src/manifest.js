/** A bundle's manifest.json as typed data, and which of its variants is loaded. */

import { DeviceFiles, isDevice } from './device.js'
import { BundleError, Files } from './files.js'
import { HubFiles, isHub } from './hub.js'
import { checkManifest } from './manifest_checks.js'
import { nativeApi } from './native.js'
import { LOAD, validateOptions } from './options.js'
import { Graph } from './session.js'
import { FieldError, isObject, printable, shown } from './typed_json.js'

/**
 * @typedef {import('./session.js').Ort} Ort
 * @typedef {import('./session.js').TensorSpec} TensorSpec
 * @typedef {'cpu' | 'wasm' | 'webgpu'} Backend
 * @typedef {'in_place' | 'new_columns'} CacheUpdate what `present` holds: the whole cache, or its new columns
 * @typedef {{ file: string, data?: string | null, inputs: TensorSpec[], outputs: TensorSpec[] }} GraphEntry
 *   data: the file with its weights, where that is not `file`.data
 * @typedef {{ bytes: number, sha256: string }} FileEntry
 *
 * @typedef {object} VariantEntry one way of storing the weights: the graphs that differ from the manifest's own
 * @property {Record<string, GraphEntry>} graphs
 * @property {CacheUpdate} cache_update
 * @property {'float' | 'int8'} cache type of the KV cache
 *
 * @typedef {object} ModelEntry sizes. Those of parts whose graphs the bundle does not contain are missing
 * @property {number} layers
 * @property {number} dim
 * @property {number} heads
 * @property {number} head_dim
 * @property {number[]} delays
 * @property {number} codebooks
 * @property {number} card codes of a codebook
 * @property {number} special_token
 * @property {number} text_dim
 * @property {number} max_duration seconds of a window
 * @property {number} frame_rate null in bundles without a codec
 * @property {number} sample_rate
 * @property {number} channels
 * @property {number} hop samples of a frame
 * @property {number} lookahead frames of the codec
 * @property {'melody' | 'style' | null} [self_wav]
 * @property {number} style_sample_rate of MERT's input
 * @property {number} style_receptive_field samples of one of MERT's features
 * @property {number} [style_levels] of the style's quantizer
 *
 * @typedef {object} DefaultsEntry those of a bundle with a language model
 * @property {number} duration
 * @property {number} extend_stride
 * @property {number} temperature
 * @property {number} top_k
 * @property {number} top_p
 * @property {number} cfg_coef
 *
 * @typedef {object} ManifestTree manifest.json, as manifest_schema.js has it
 * @property {string} format
 * @property {number} version
 * @property {ModelEntry} model
 * @property {string} model_sha256
 * @property {DefaultsEntry} defaults
 * @property {CacheUpdate | null} [cache_update]
 * @property {Record<string, GraphEntry>} graphs
 * @property {Record<string, FileEntry>} files
 * @property {string | null} [variant] the default one
 * @property {Record<string, VariantEntry> | null} [variants]
 * @property {Record<string, string[]> | null} [backends] the variants that each backend prefers, the best first
 *
 * @typedef {object} LoadOptions
 * @property {Ort} ort the ONNX Runtime to use: onnxruntime-node, onnxruntime-web or onnxruntime-react-native
 * @property {any[]} [executionProviders] as ONNX Runtime takes them; default: the CPU, in browsers WASM
 * @property {string} [variant] "fp32", "int4", ...; default: the one that the bundle prefers for the backend
 * @property {boolean} [hashes] compare every file's SHA-256 before it is opened; default true
 * @property {string} [confine] a folder, or a URL, that no file of the bundle may lie outside of; default: none
 * @property {import('./files.js').OnProgress} [onProgress] called with the bytes read so far and their total
 * @property {AbortSignal} [signal] cancels loading
 * @property {Cache} [cache] a cache of the browser, where downloads are kept
 * @property {string} [token] of the Hugging Face hub, for private and gated repositories; default in Node: HF_TOKEN
 * @property {string} [endpoint] of the hub; default: https://huggingface.co, in Node HF_ENDPOINT
 * @property {string} [cacheFolder] Node: where bundles from the hub are kept; default: clean-lm in the user's cache
 * @property {Partial<import('onnxruntime-common').InferenceSession.SessionOptions>} [sessionOptions]
 * @property {boolean} [native] Node: whether the graphs run on ONNX Runtime's C API, with a KV cache that is not copied and
 *   beside the event loop; true: throw where they cannot; default: where they can, which LanguageModel.native says
 * @property {object} [koffi] what calls the C API; default: the package koffi, where it is installed
 */

const [FORMAT, VERSION] = ['clean_lm', 1]
const OLDEST = [1, 29] // of onnxruntime-node

/** A bundle with one of its variants chosen. */
export class Manifest {
  /**
   * @param {ManifestTree} tree manifest.json
   * @param {Files} files
   * @param {LoadOptions} options
   * @param {boolean} [float16] whether the device computes in float16
   */
  constructor(tree, files, options, float16 = true) {
    this.files = files
    this.options = options
    this.path = files.label('manifest.json')
    this.backend = backendOf(options)
    const variants = tree.variants ?? {}
    const preferred = tree.backends?.[this.backend] ?? []
    const canRun = (/** @type {string} */ name) => float16 || !isFloat16({ ...tree.graphs, ...variants[name].graphs })
    /** the variant whose graphs are opened; undefined where the bundle has no variants */
    this.variant = options.variant ?? preferred.find(canRun) ?? tree.variant ?? undefined
    if (this.variant !== undefined && !Object.hasOwn(variants, this.variant)) {
      const available = Object.keys(variants).join(', ') || 'one without a name'
      throw new BundleError(`${this.path}: got variant ${shown(this.variant)}, the bundle contains ${available}`)
    }
    const chosen = this.variant === undefined ? undefined : variants[this.variant]
    if (this.backend === 'webgpu' && chosen?.cache === 'int8') {
      throw new BundleError(
        `${this.path}: variant "${this.variant}" has an int8 KV cache, which WebGPU does not support; ` +
          'load another variant, or add one: export/quantize.py --variant q4f16',
      )
    }
    /** manifest.json, its graphs those of the variant @type {ManifestTree} */
    this.tree = {
      ...tree,
      graphs: { ...tree.graphs, ...chosen?.graphs },
      cache_update: chosen?.cache_update ?? tree.cache_update,
    }
    this.bytesRead = 0
    this.bytesTotal = 0
    /** what its graphs run on; undefined until one is asked for @type {ReturnType<typeof nativeApi> | undefined} */
    this.native = undefined
  }

  /**
   * Read manifest.json and choose a variant. Throws BundleError where the bundle cannot be used.
   *
   * @param {import('./files.js').Source} source
   * @param {LoadOptions} options
   */
  static async open(source, options) {
    if (!options?.ort?.InferenceSession) {
      throw new TypeError('ort: expected ONNX Runtime, for example { ort: await import("onnxruntime-node") }')
    }
    validateOptions('load', options, LOAD)
    const files = openFiles(source, options)
    const bytes = await files.read('manifest.json')
    const tree = await readTree(bytes, files.label('manifest.json'))
    if (files instanceof HubFiles) await files.adopt(tree, bytes)
    return new Manifest(tree, files, options, backendOf(options) !== 'webgpu' || (await gpuHasFloat16()))
  }

  /**
   * A graph of the bundle; its session opens with its first use.
   *
   * @param {string} name
   * @param {Backend} [backend] where it runs; default: where all the others do
   */
  graph(name, backend) {
    const { graphs } = this.tree
    if (!Object.hasOwn(graphs, name)) {
      const available = Object.keys(graphs).join(', ') || 'none'
      throw new BundleError(`${this.path}: expected the graph ${name}, the bundle contains ${available}`)
    }
    if (this.native === undefined) this.native = nativeApi(this)
    return new Graph(this, graphs[name], backend ?? this.backend, this.native)
  }

  /**
   * Names of a graph's files: the model, and the weights beside it.
   *
   * @param {GraphEntry} entry
   */
  filesOf({ file, data }) {
    return [file, data ?? `${file}.data`].filter((name) => Object.hasOwn(this.tree.files, name))
  }

  /**
   * Count files towards the total that onProgress reports.
   *
   * @param {string[]} names
   */
  addToTotal(names) {
    for (const name of new Set(names)) this.bytesTotal += this.tree.files[name].bytes
  }

  /**
   * The content of a file, compared with its size and hash.
   *
   * @param {string} name
   */
  async read(name) {
    return this.files.read(name, this.tree.files[name], (bytes) => this.reportProgress(bytes, name))
  }

  /**
   * Compare a file on a disk with its size and hash.
   *
   * @param {string} name
   */
  async verify(name) {
    await this.files.verify(name, this.tree.files[name], (bytes) => this.reportProgress(bytes, name))
  }

  /**
   * @param {number} bytes read since the last report
   * @param {string} name
   */
  reportProgress(bytes, name) {
    this.options.signal?.throwIfAborted()
    this.bytesRead += bytes
    this.options.onProgress?.(this.bytesRead, Math.max(this.bytesRead, this.bytesTotal), {
      unit: 'bytes',
      file: name,
    })
  }
}

/** @param {import('./files.js').Source} source @param {LoadOptions} options */
function openFiles(source, options) {
  if (isDevice(source)) return new DeviceFiles(source, options)
  return isHub(source) ? new HubFiles(source, options) : new Files(source, options)
}

/**
 * manifest.json, every entry of it checked. Throws BundleError, which names the field.
 *
 * @param {Uint8Array} bytes
 * @param {string} path in messages
 * @returns {Promise<ManifestTree>}
 */
export async function readTree(bytes, path) {
  const json = parsed(bytes, path)
  if (!isObject(json) || json.format !== FORMAT) {
    throw new BundleError(`${path}: format is ${shown(isObject(json) ? json.format : json)}, expected ${shown(FORMAT)}`)
  }
  if (json.version !== VERSION) {
    throw new BundleError(`${path}: version is ${shown(json.version)}, this clean_lm reads ${VERSION}`)
  }
  return checkManifest(json).catch((error) => {
    throw named(path, error)
  })
}

/** @param {Uint8Array} bytes @param {string} path @returns {unknown} */
function parsed(bytes, path) {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes))
  } catch (error) {
    throw new BundleError(`${path}: not readable JSON: ${printable(/** @type {Error} */ (error).message)}`)
  }
}

/** An error of a field, with the file that it is in. @param {string} path @param {unknown} error */
function named(path, error) {
  if (!(error instanceof FieldError)) return error
  return new BundleError(`${path}: ${error.message}; export the bundle again, or update clean_lm`)
}

/**
 * Throw an Error for a version of onnxruntime-node that ends the process, by a division by zero, where cross-attention
 * has no rows: without a text, that is.
 *
 * @param {string | undefined} version undefined: another package
 */
function requireVersion(version) {
  if (version === undefined) return
  const [major, minor] = version.split('.').map(Number)
  if (major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1])) return
  const oldest = OLDEST.join('.')
  throw new Error(`onnxruntime-node ${version} found, expected ${oldest} or newer: npm install onnxruntime-node@latest`)
}

/**
 * The backend that runs the graphs; the manifest prefers variants by it.
 *
 * @param {LoadOptions} options
 * @returns {Backend}
 */
function backendOf({ ort, executionProviders }) {
  requireVersion(ort.env?.versions?.node)
  const first = executionProviders?.[0]
  const name = typeof first === 'object' ? first.name : first
  if (name === 'webgpu' || name === 'wasm') return name
  // onnxruntime-web registers a version "web"; the other packages register "node" or "react-native"
  return name === undefined && 'web' in (ort.env?.versions ?? {}) ? 'wasm' : 'cpu'
}

/** Whether the KV cache or activations of a variant's graphs are float16. @param {Record<string, GraphEntry>} graphs */
const isFloat16 = ({ lm_inference }) => Boolean(lm_inference?.inputs.some(({ dtype }) => dtype === 'float16'))

/** Whether this browser's GPU has float16 shaders. */
async function gpuHasFloat16() {
  const adapter = await /** @type {any} */ (globalThis.navigator)?.gpu?.requestAdapter()
  return Boolean(adapter?.features.has('shader-f16'))
}
