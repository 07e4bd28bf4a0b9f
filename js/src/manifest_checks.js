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
  for (const [at, entry] of graphsOf(tree)) checkGraph(entry, at, tree)
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

/**
 * Throw FieldError where `model` or `defaults` lacks what a graph needs.
 *
 * @param {Pick<ManifestTree, 'model' | 'defaults' | 'graphs'>} tree
 */
export function checkParts(tree) {
  validate({ allOf, $defs: SCHEMA.$defs }, tree)
  if (Object.hasOwn(tree.graphs, 'compression_encode') && tree.model.frame_rate === null) {
    throw new FieldError('model.frame_rate is null, expected a number')
  }
}

/** Every graph of every variant, and where it stands. @param {ManifestTree} tree @returns {[string, GraphEntry][]} */
function graphsOf(tree) {
  const variants = Object.entries(tree.variants ?? {}).map(([name, { graphs }]) => ({
    at: `variants.${name}.`,
    graphs,
  }))
  return [{ at: '', graphs: tree.graphs }, ...variants].flatMap(({ at, graphs }) =>
    Object.entries(graphs).map(([name, entry]) => /** @type {[string, GraphEntry]} */ ([`${at}graphs.${name}`, entry])),
  )
}

/** Its files are listed, and no two of its tensors have one name. @param {GraphEntry} entry @param {string} at @param {ManifestTree} tree */
function checkGraph(entry, at, tree) {
  for (const field of /** @type {const} */ (['file', 'data'])) {
    const file = entry[field]
    if (typeof file === 'string' && !Object.hasOwn(tree.files, file)) {
      throw new FieldError(`${at}.${field} is ${shown(file)}, which \`files\` does not list`)
    }
  }
  for (const half of /** @type {const} */ (['inputs', 'outputs'])) {
    const names = entry[half].map(({ name }) => name)
    if (new Set(names).size < names.length) throw new FieldError(`${at}.${half} has two tensors of one name`)
  }
}

/** The default is one of the variants, and the bundle's own graphs are its. @param {ManifestTree} tree */
function checkVariants(tree) {
  const { variant = null, graphs } = tree
  const variants = tree.variants ?? {}
  const size = Object.keys(variants).length
  if ((variant === null) !== (size === 0)) {
    throw new FieldError(`variant is ${shown(variant)}, variants has ${size} entries`)
  }
  for (const [backend, names] of Object.entries(tree.backends ?? {}))
    requireKnown(names, variants, `backends.${backend}`)
  for (const [name, { graphs, cache, cache_update }] of Object.entries(variants)) {
    if (Object.hasOwn(graphs, 'lm_inference'))
      checkCaches(graphs.lm_inference, cache_update, `variants.${name}.`, cache)
  }
  if (variant === null) return
  requireKnown([variant], variants, 'variant')
  for (const [name, entry] of Object.entries(variants[variant].graphs)) {
    if (!isSame(graphs[name], entry)) {
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

/**
 * Throw FieldError where sizes of the language model do not follow from each other.
 *
 * @param {Pick<ManifestTree, 'model' | 'graphs' | 'cache_update'>} tree
 */
export function checkLanguageModel({ model, graphs, cache_update }) {
  if (!Object.hasOwn(graphs, 'lm_inference')) return
  const { special_token, card, delays, codebooks, layers } = model
  if (special_token !== card) throw new FieldError(`model.special_token is ${special_token}, expected card, ${card}`)
  if (delays.length !== codebooks) {
    throw new FieldError(`model.delays has ${delays.length} entries, expected one per codebook, ${codebooks}`)
  }
  const caches = new Set(cachesOf(graphs.lm_inference).map(({ name }) => name))
  const expected = Array.from({ length: layers }, (_, layer) => [
    `${CACHE}${layer}.key`,
    `${CACHE}${layer}.value`,
  ]).flat()
  if (caches.size !== expected.length || !expected.every((name) => caches.has(name))) {
    throw new FieldError(
      `graphs.lm_inference.inputs has ${caches.size} caches, expected 2 for each of ${layers} layers`,
    )
  }
  checkCaches(graphs.lm_inference, cache_update, '')
}

/** @param {GraphEntry} graph */
const cachesOf = (graph) => graph.inputs.filter(({ name }) => name.startsWith(CACHE))

/**
 * `cache_update` and `cache` are what the shapes and types of the caches say.
 *
 * @param {GraphEntry} graph
 * @param {string | null | undefined} update
 * @param {string} at
 * @param {string} [kind]
 */
function checkCaches(graph, update, at, kind) {
  const outputs = new Map(graph.outputs.map((tensor) => [tensor.name, tensor]))
  for (const { name, shape, dtype } of cachesOf(graph)) {
    const present = outputs.get(name.replaceAll('past_key_values', 'present'))
    if (!present) throw new FieldError(`${at}graphs.lm_inference.outputs lacks the cache of ${name}`)
    const found = isSame(present.shape, shape) ? 'in_place' : 'new_columns'
    if (found !== update) {
      throw new FieldError(`${at}cache_update is ${shown(update)}, and the shapes of ${name} say ${shown(found)}`)
    }
    if (kind !== undefined && (kind === 'int8') !== (dtype === 'int8')) {
      throw new FieldError(`${at}cache is ${shown(kind)}, and ${name} is ${dtype}`)
    }
  }
}
