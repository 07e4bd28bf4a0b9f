/**
 * What must agree within a manifest, beyond the types and bounds of its fields. clean_lm/manifest_checks.py is the same.
 *
 * `model` is stored redundantly, as a hash: a damaged delay, sample rate or special token would be heard, not seen.
 *
 * @typedef {import('./manifest.js').ManifestTree} ManifestTree
 * @typedef {import('./manifest.js').GraphEntry} GraphEntry
 * @typedef {import('./session.js').TensorSpec} TensorSpec
 */

import { SCHEMA } from './manifest_schema.js'
import { sha256 } from './sha256.js'
import { FieldError, shown, validate } from './typed_json.js'

const { allOf, ...FIELDS } = SCHEMA
const CACHE = 'past_key_values.' // how the names of the cache's inputs begin; those of its outputs: "present."

/**
 * Tensors that the runtime names, inputs and outputs of each graph: what each axis is, of `model`'s sizes; '' for any.
 *
 * @type {Record<string, [Record<string, string[]>, Record<string, string[]>]>}
 */
const TENSORS = {
  lm_inference: [
    {
      ...{ codes: ['', 'codebooks', ''], position: [''], uniform: ['', 'codebooks'] },
      ...{ cfg_coef: [], temperature: [], top_k: [], top_p: [] },
    },
    { next_codes: ['', 'codebooks'], logits: ['', 'codebooks', 'card'] },
  ],
  lm_condition: [{ text_states: ['', '', 'text_dim'], text_mask: ['', ''] }, {}],
  lm_melody: [{ audio: ['', ''] }, { self_wav: ['', '', 'dim'] }],
  lm_style: [{ features: ['', '', ''], eval_q: [] }, { self_wav: ['', '', 'dim'] }],
  style_features: [{ audio: ['', ''] }, { features: ['', '', 'style_feature_dim'] }],
  compression_encode: [{ audio: ['', '', ''] }, { codes: ['', '', ''] }],
  compression_decode: [{ codes: ['', '', ''] }, { audio: ['', '', ''] }],
  compression_stream: [{ codes: ['', '', ''] }, { audio: ['', '', ''] }],
  text_encoder: [{ input_ids: ['', ''], attention_mask: ['', ''] }, { last_hidden_state: ['', '', 'text_dim'] }],
}

/**
 * Throw FieldError unless every field of a manifest is there, of its type and within its bounds, and all agree.
 *
 * @param {any} json
 * @returns {Promise<ManifestTree>}
 */
export async function checkManifest(json) {
  validate(FIELDS, json)
  /** @type {ManifestTree} */
  const tree = json
  const found = await modelSha256(tree.model)
  if (found !== tree.model_sha256) {
    throw new FieldError(`model_sha256 is ${tree.model_sha256}, and model's is ${found}: it was changed or damaged`)
  }
  checkParts(tree)
  for (const [at, name, entry] of graphsOf(tree)) {
    checkFiles(entry, at, tree)
    checkTensors(entry.inputs, TENSORS[name][0], tree.model, `${at}.inputs`)
    checkTensors(entry.outputs, TENSORS[name][1], tree.model, `${at}.outputs`)
  }
  checkCodec(tree)
  checkVariants(tree)
  checkLanguageModel(tree)
  return tree
}

/**
 * The SHA-256 of a manifest's `model` in hexadecimal: of its JSON with the names sorted, without spaces, in UTF-8
 * (RFC 8785).
 *
 * @param {object} model without objects in it
 */
export function modelSha256(model) {
  const sorted = Object.entries(model).sort(([a], [b]) => (a < b ? -1 : 1))
  return sha256(new TextEncoder().encode(JSON.stringify(Object.fromEntries(sorted))))
}

/** `model` and `defaults` have what the graphs need. @param {ManifestTree} tree */
function checkParts(tree) {
  validate({ allOf, $defs: SCHEMA.$defs }, tree)
  if (Object.hasOwn(tree.graphs, 'compression_encode') && tree.model.frame_rate === null) {
    throw new FieldError('model.frame_rate is null, expected a number')
  }
}

/** Every graph of every variant: where it stands, and its name. @param {ManifestTree} tree @returns {[string, string, GraphEntry][]} */
function graphsOf(tree) {
  const variants = Object.entries(tree.variants ?? {}).map(([name, { graphs }]) => ({
    at: `variants.${name}.`,
    graphs,
  }))
  return [{ at: '', graphs: tree.graphs }, ...variants].flatMap(({ at, graphs }) =>
    Object.entries(graphs).map(
      ([name, entry]) => /** @type {[string, string, GraphEntry]} */ ([`${at}graphs.${name}`, name, entry]),
    ),
  )
}

/** A graph's files are listed. @param {GraphEntry} entry @param {string} at @param {ManifestTree} tree */
function checkFiles(entry, at, tree) {
  for (const field of /** @type {const} */ (['file', 'data'])) {
    const file = entry[field]
    if (typeof file === 'string' && !Object.hasOwn(tree.files, file)) {
      throw new FieldError(`${at}.${field} is ${shown(file)}, which \`files\` does not list`)
    }
  }
}

/**
 * No two tensors have one name, and those that a runtime names are there, with the axes that they should have.
 *
 * @param {GraphEntry['inputs']} tensors
 * @param {Record<string, string[]>} needed
 * @param {Record<string, any>} model
 * @param {string} at
 */
function checkTensors(tensors, needed, model, at) {
  const shapes = new Map(tensors.map(({ name, shape }) => [name, shape]))
  if (shapes.size < tensors.length) throw new FieldError(`${at} has two tensors of one name`)
  for (const [name, axes] of Object.entries(needed)) {
    const found = shapes.get(name)
    if (found?.length !== axes.length) {
      const held = found ? `${found.length} axes` : 'none'
      throw new FieldError(`${at}: ${name} has ${held}, expected ${axes.length} axes`)
    }
    axes.forEach((axis, i) => {
      if (axis && Object.hasOwn(model, axis) && found[i] !== model[axis]) {
        throw new FieldError(`${at}: ${name} has a size ${shown(found[i])}, expected model.${axis}, ${model[axis]}`)
      }
    })
  }
}

/**
 * The codec takes all of the model's channels at once, or each by itself; rates and codebooks follow from that.
 *
 * @param {ManifestTree} tree
 */
function checkCodec({ model, graphs }) {
  if (!Object.hasOwn(graphs, 'compression_encode')) return
  const { channels, sample_rate, hop, frame_rate } = model
  const taken = shapeOf(graphs.compression_encode.inputs, 'audio')[1]
  if (typeof taken !== 'number' || (taken !== 1 && taken !== channels)) {
    throw new FieldError(`graphs.compression_encode: audio has ${taken} channels, expected 1 or ${channels}`)
  }
  const codebooks = Math.floor((model.codebooks * taken) / channels)
  const ends = /** @type {const} */ ([
    ['compression_encode', 'outputs'],
    ['compression_decode', 'inputs'],
    ['compression_stream', 'inputs'],
  ])
  for (const [name, half] of ends) {
    const found = Object.hasOwn(graphs, name) ? shapeOf(graphs[name][half], 'codes')[1] : codebooks
    if (found !== codebooks) {
      const expected = `expected ${codebooks}, as model.codebooks says`
      throw new FieldError(`graphs.${name}: codes has ${found} codebooks, ${expected}`)
    }
  }
  if (!(Math.abs(sample_rate / hop - frame_rate) < 1)) {
    const rate = `sample_rate / hop, ${sample_rate / hop}`
    throw new FieldError(`model.frame_rate is ${frame_rate}, expected ${rate}, rounded at most`)
  }
}

/** @param {GraphEntry['inputs']} tensors @param {string} name */
const shapeOf = (tensors, name) => /** @type {TensorSpec} */ (tensors.find((tensor) => tensor.name === name)).shape

/** The default is one of the variants, and the bundle's own graphs are its. @param {ManifestTree} tree */
function checkVariants(tree) {
  const { variant = null } = tree
  const variants = tree.variants ?? {}
  const size = Object.keys(variants).length
  if ((variant === null) !== (size === 0)) {
    throw new FieldError(`variant is ${shown(variant)}, variants has ${size} entries`)
  }
  for (const [backend, names] of Object.entries(tree.backends ?? {}))
    requireKnown(names, variants, `backends.${backend}`)
  for (const [name, { graphs }] of Object.entries(variants)) {
    const unknown = Object.keys(graphs).filter((graph) => !Object.hasOwn(tree.graphs, graph))
    if (unknown.length) {
      throw new FieldError(`variants.${name}.graphs has ${unknown.sort()[0]}, which the bundle's graphs lack`)
    }
  }
  if (variant === null) return
  requireKnown([variant], variants, 'variant')
  for (const [name, entry] of Object.entries(variants[variant].graphs)) {
    if (!isSame(tree.graphs[name], entry)) {
      throw new FieldError(`graphs.${name} is not that of the default variant ${variant}`)
    }
  }
}

/** @param {string[]} names @param {object} variants @param {string} at */
function requireKnown(names, variants, at) {
  const unknown = names.find((name) => !Object.hasOwn(variants, name))
  if (unknown === undefined) return
  const known = Object.keys(variants).join(', ')
  throw new FieldError(`${at} is ${shown(unknown)}, expected one of the variants ${known}`)
}

/** Whether two JSON values are the same, of entries of `graphs`. @param {any} a @param {any} b @returns {boolean} */
function isSame(a, b) {
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return a === b
  const [ours, theirs] = [Object.keys(a), Object.keys(b)]
  return (
    Array.isArray(a) === Array.isArray(b) &&
    ours.length === theirs.length &&
    ours.every((name) => Object.hasOwn(b, name) && isSame(a[name], b[name]))
  )
}

/** Sizes of the language model follow from each other. @param {ManifestTree} tree */
function checkLanguageModel({ model, graphs, cache_update, variants }) {
  if (!Object.hasOwn(graphs, 'lm_inference')) return
  const { special_token, card, delays, codebooks, dim, heads, head_dim } = model
  if (special_token !== card) throw new FieldError(`model.special_token is ${special_token}, expected card, ${card}`)
  if (delays.length !== codebooks) {
    throw new FieldError(`model.delays has ${delays.length} entries, expected one per codebook, ${codebooks}`)
  }
  if (dim !== heads * head_dim) {
    throw new FieldError(`model.dim is ${dim}, expected heads x head_dim, ${heads} x ${head_dim}`)
  }
  checkCaches(graphs.lm_inference, model, cache_update, '')
  for (const [name, variant] of Object.entries(variants ?? {})) {
    if (!Object.hasOwn(variant.graphs, 'lm_inference')) continue
    checkCaches(variant.graphs.lm_inference, model, variant.cache_update, `variants.${name}.`, variant.cache)
  }
}

/** @param {GraphEntry} graph */
const cachesOf = (graph) => graph.inputs.filter(({ name }) => name.startsWith(CACHE))

/**
 * Every layer has its caches; `cache_update` and `cache` are what their shapes and types say.
 *
 * @param {GraphEntry} graph
 * @param {ManifestTree['model']} model
 * @param {string | null | undefined} update
 * @param {string} at
 * @param {string} [kind]
 */
function checkCaches(graph, { layers, heads }, update, at, kind) {
  const caches = new Set(cachesOf(graph).map(({ name }) => name))
  const pairs = Array.from({ length: layers }, (_, layer) => [`${CACHE}${layer}.key`, `${CACHE}${layer}.value`])
  if (caches.size !== 2 * layers || !pairs.flat().every((name) => caches.has(name))) {
    const expected = `2 for each of ${layers} layers`
    throw new FieldError(`${at}graphs.lm_inference.inputs has ${caches.size} caches, expected ${expected}`)
  }
  const outputs = new Map(graph.outputs.map((tensor) => [tensor.name, tensor]))
  for (const { name, shape, dtype } of cachesOf(graph)) {
    const present = outputs.get(name.replaceAll('past_key_values', 'present'))
    if (!present) throw new FieldError(`${at}graphs.lm_inference.outputs lacks the cache of ${name}`)
    if (shape.length !== 4 || shape[1] !== heads) {
      const where = `${at}graphs.lm_inference.inputs: ${name}`
      throw new FieldError(`${where} is ${shape.join(' x ')}, expected ${heads} heads on the second of 4 axes`)
    }
    const found = isSame(present.shape, shape) ? 'in_place' : 'new_columns'
    if (found !== update) {
      throw new FieldError(`${at}cache_update is ${shown(update)}, and the shapes of ${name} say ${shown(found)}`)
    }
    if (kind !== undefined && (kind === 'int8') !== (dtype === 'int8')) {
      throw new FieldError(`${at}cache is ${shown(kind)}, and ${name} is ${dtype}`)
    }
  }
}
