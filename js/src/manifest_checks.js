/**
 * What must agree within a manifest, beyond the types and bounds of its fields. clean_lm/manifest_checks.py is the same.
 *
 * `model` is stored redundantly, as a hash: a damaged delay, sample rate or special token would be heard, not seen.
 *
 * @typedef {import('./manifest.js').ManifestTree} ManifestTree
 * @typedef {import('./manifest.js').GraphEntry} GraphEntry
 */

import { SCHEMA } from './manifest_schema.js'
import { sha256 } from './sha256.js'
import { FieldError, shown, validate } from './typed_json.js'

const { allOf, ...FIELDS } = SCHEMA
const CACHE = 'past_key_values.' // how the names of the cache's inputs begin; those of its outputs: "present."

/** Tensors that the runtime names, and how many axes they have: inputs and outputs of each graph. @type {Record<string, [Record<string, number>, Record<string, number>]>} */
const TENSORS = {
  lm_inference: [
    { codes: 3, position: 1, uniform: 2, cfg_coef: 0, temperature: 0, top_k: 0, top_p: 0 },
    { next_codes: 2, logits: 3 },
  ],
  lm_condition: [{ text_states: 3, text_mask: 2 }, {}],
  lm_melody: [{ audio: 2 }, { self_wav: 3 }],
  lm_style: [{ features: 3, eval_q: 0 }, { self_wav: 3 }],
  style_features: [{ audio: 2 }, { features: 3 }],
  compression_encode: [{ audio: 3 }, { codes: 3 }],
  compression_decode: [{ codes: 3 }, { audio: 3 }],
  compression_stream: [{ codes: 3 }, { audio: 3 }],
  text_encoder: [{ input_ids: 2, attention_mask: 2 }, { last_hidden_state: 3 }],
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
    checkTensors(entry.inputs, TENSORS[name][0], `${at}.inputs`)
    checkTensors(entry.outputs, TENSORS[name][1], `${at}.outputs`)
  }
  checkChannels(tree)
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
 * No two tensors have one name, and those that a runtime names are there, with so many axes.
 *
 * @param {GraphEntry['inputs']} tensors
 * @param {Record<string, number>} needed
 * @param {string} at
 */
function checkTensors(tensors, needed, at) {
  const axes = new Map(tensors.map(({ name, shape }) => [name, shape.length]))
  if (axes.size < tensors.length) throw new FieldError(`${at} has two tensors of one name`)
  for (const [name, expected] of Object.entries(needed)) {
    if (axes.get(name) === expected) continue
    const found = axes.has(name) ? `${axes.get(name)} axes` : 'none'
    throw new FieldError(`${at}: ${name} has ${found}, expected ${expected} axes`)
  }
}

/** The codec takes all of the model's channels at once, or each by itself. @param {ManifestTree} tree */
function checkChannels({ model, graphs }) {
  if (!Object.hasOwn(graphs, 'compression_encode')) return
  const [, taken] = graphs.compression_encode.inputs.find(({ name }) => name === 'audio')?.shape ?? []
  if (taken !== 1 && taken !== model.channels) {
    const where = 'graphs.compression_encode.inputs: audio'
    throw new FieldError(`${where} has ${taken} channels, expected 1 or ${model.channels}`)
  }
}

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
  const { special_token, card, delays, codebooks, layers } = model
  if (special_token !== card) throw new FieldError(`model.special_token is ${special_token}, expected card, ${card}`)
  if (delays.length !== codebooks) {
    throw new FieldError(`model.delays has ${delays.length} entries, expected one per codebook, ${codebooks}`)
  }
  checkCaches(graphs.lm_inference, layers, cache_update, '')
  for (const [name, variant] of Object.entries(variants ?? {})) {
    if (!Object.hasOwn(variant.graphs, 'lm_inference')) continue
    checkCaches(variant.graphs.lm_inference, layers, variant.cache_update, `variants.${name}.`, variant.cache)
  }
}

/** @param {GraphEntry} graph */
const cachesOf = (graph) => graph.inputs.filter(({ name }) => name.startsWith(CACHE))

/**
 * Every layer has its caches; `cache_update` and `cache` are what their shapes and types say.
 *
 * @param {GraphEntry} graph
 * @param {number} layers
 * @param {string | null | undefined} update
 * @param {string} at
 * @param {string} [kind]
 */
function checkCaches(graph, layers, update, at, kind) {
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
    const found = isSame(present.shape, shape) ? 'in_place' : 'new_columns'
    if (shape.length !== 4) {
      throw new FieldError(`${at}graphs.lm_inference.inputs: ${name} has ${shape.length} axes, expected 4 axes`)
    }
    if (found !== update) {
      throw new FieldError(`${at}cache_update is ${shown(update)}, and the shapes of ${name} say ${shown(found)}`)
    }
    if (kind !== undefined && (kind === 'int8') !== (dtype === 'int8')) {
      throw new FieldError(`${at}cache is ${shown(kind)}, and ${name} is ${dtype}`)
    }
  }
}
