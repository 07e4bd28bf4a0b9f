/**
 * The parts of JSON Schema that manifest_schema.js is written in, with errors that name the field, as
 * clean_lm/typed_json.py has them.
 *
 * Names of parsed JSON are never looked up in a prototype: "__proto__" and "constructor" are names like others.
 *
 * @typedef {{ [keyword: string]: any }} Schema
 * @typedef {(schema: Schema, value: any, at: string, definitions: Record<string, Schema>) => void} Keyword
 */

/** A field that is missing, unknown, of another type or out of bounds: where it stands, what was found and expected. */
export class FieldError extends Error {
  name = 'FieldError'
}

const TYPES = /** @type {Record<string, { what: string, fits: (value: unknown) => boolean }>} */ ({
  integer: { what: 'a whole number', fits: Number.isInteger },
  number: { what: 'a number', fits: Number.isFinite },
  string: { what: 'a text', fits: (value) => typeof value === 'string' },
  boolean: { what: 'true or false', fits: (value) => typeof value === 'boolean' },
  array: { what: 'a list', fits: Array.isArray },
  object: { what: 'an object', fits: isObject },
  null: { what: 'null', fits: (value) => value === null },
})
const PLAIN = /^[\w.\-/]{1,100}$/ // names that need no quotes
const LONGEST = 60 // characters of a value in a message
const NOTES = ['$schema', '$defs', 'title', 'description'] // keywords that refuse nothing

/** Whether a JSON value is an object. @param {unknown} value @returns {value is Record<string, any>} */
export function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/**
 * Throw FieldError unless a JSON value is what a schema says.
 *
 * @param {Schema} schema
 * @param {unknown} value
 * @param {string} [at] what the value is called in errors ("model"), "" for the whole
 * @param {Record<string, Schema>} [definitions] that $ref names
 */
export function validate(schema, value, at = '', definitions = schema.$defs ?? {}) {
  const unknown = Object.keys(schema).find((keyword) => !Object.hasOwn(KEYWORDS, keyword) && !NOTES.includes(keyword))
  if (unknown !== undefined) throw new Error(`the schema has the keyword ${unknown}, which this code does not know`)
  for (const [keyword, check] of Object.entries(KEYWORDS)) {
    if (Object.hasOwn(schema, keyword)) check(schema, value, at, definitions)
  }
}

/** Whether a value is what a schema says. @param {Schema} schema @param {unknown} value @param {string} at @param {Record<string, Schema>} definitions */
function fits(schema, value, at, definitions) {
  try {
    validate(schema, value, at, definitions)
    return true
  } catch (error) {
    if (error instanceof FieldError) return false
    throw error
  }
}

/** The first of several schemas that a value fits; of "X or null", the errors of X. @type {Keyword} */
function anyOf({ anyOf: choices }, value, at, definitions) {
  if (choices.some((/** @type {Schema} */ choice) => fits(choice, value, at, definitions))) return
  const named = choices.filter((/** @type {Schema} */ { type }) => type !== 'null')
  validate(named.at(-1), value, at, definitions)
}

/** A number's bounds, both included. @type {Keyword} */
function range({ minimum, maximum }, value, at) {
  if (typeof value !== 'number' || (value >= minimum && value <= maximum)) return
  throw new FieldError(`${at} is ${shown(value)}, expected ${minimum} to ${maximum}`)
}

/** @type {Map<string, RegExp>} */
const compiled = new Map()

/** A text's form and length, in characters. @type {Keyword} */
function pattern({ pattern: expression, maxLength, description }, value, at) {
  if (typeof value !== 'string') return
  const form = compiled.get(expression) ?? new RegExp(expression, 'u')
  compiled.set(expression, form)
  const isLong = value.length > 2 * maxLength || [...value].length > maxLength
  if (isLong || !form.test(value)) {
    throw new FieldError(`${at} is ${shown(value)}, expected ${description} of at most ${maxLength} characters`)
  }
}

/** How many items a list, or entries an object has. @param {number} found @param {number} low @param {number} high @param {string} at */
function count(found, low, high, at) {
  if (found >= low && found <= high) return
  throw new FieldError(`${at} has ${found} entries, expected ${low} to ${high}`)
}

/** An object's fields: those that it needs, and those that it may have. @type {Keyword} */
function fields({ properties = {}, required = [], additionalProperties }, value, at, definitions) {
  if (!isObject(value)) return
  if (additionalProperties === false) {
    const unknown = Object.keys(value).find((name) => !Object.hasOwn(properties, name))
    if (unknown !== undefined) throw new FieldError(`${at || 'it'} has the unknown field ${shown(unknown)}`)
  }
  for (const name of new Set([...Object.keys(properties), ...required])) {
    if (Object.hasOwn(value, name)) validate(properties[name] ?? {}, value[name], joined(at, name), definitions)
    else if (required.includes(name)) throw new FieldError(`${at || 'it'} lacks ${name}`)
  }
}

/** What the checks do, in their order. @type {Record<string, Keyword>} */
const KEYWORDS = {
  $ref: ({ $ref }, value, at, definitions) => validate(definitions[$ref.split('/').at(-1)], value, at, definitions),
  type: ({ type }, value, at) => {
    if (!TYPES[type].fits(value)) throw new FieldError(`${at || 'it'} is ${shown(value)}, expected ${TYPES[type].what}`)
  },
  enum: ({ enum: choices }, value, at) => {
    if (!choices.includes(value)) {
      throw new FieldError(`${at} is ${shown(value)}, expected ${choices.map(shown).join(' or ')}`)
    }
  },
  anyOf,
  minimum: range,
  maximum: range,
  pattern,
  maxLength: () => {}, // beside pattern, which looks at it
  properties: fields,
  required: (schema, ...rest) => schema.properties || fields(schema, ...rest),
  propertyNames: ({ propertyNames }, value, at, definitions) => {
    for (const name of Object.keys(value)) validate(propertyNames, name, `a name in ${at || 'it'}`, definitions)
  },
  additionalProperties: ({ properties, additionalProperties }, value, at, definitions) => {
    if (properties) return // then it is false, which `fields` looks at
    for (const name of Object.keys(value)) validate(additionalProperties, value[name], joined(at, name), definitions)
  },
  items: ({ items }, value, at, definitions) =>
    value.forEach((/** @type {unknown} */ item, /** @type {number} */ i) =>
      validate(items, item, `${at}[${i}]`, definitions),
    ),
  minItems: ({ minItems, maxItems }, value, at) => count(value.length, minItems, maxItems, at),
  maxItems: () => {},
  minProperties: ({ minProperties, maxProperties }, value, at) =>
    count(Object.keys(value).length, minProperties, maxProperties, at),
  maxProperties: () => {},
  allOf: ({ allOf }, value, at, definitions) =>
    allOf.forEach((/** @type {Schema} */ part) => validate(part, value, at, definitions)),
  if: ({ if: condition, then }, value, at, definitions) => {
    if (fits(condition, value, at, definitions)) validate(then, value, at, definitions)
  },
  then: () => {},
}

/** Where a field stands; names that are no plain words in quotes. @param {string} at @param {string} name */
function joined(at, name) {
  const plain = PLAIN.test(name) ? name : shown(name)
  return at ? `${at}.${plain}` : plain
}

/** A JSON value in one line: long texts cut, objects and lists by their size alone. @param {unknown} value */
export function shown(value) {
  if (isObject(value)) return `an object of ${Object.keys(value).length}`
  if (Array.isArray(value)) return `a list of ${value.length}`
  const text =
    typeof value === 'string'
      ? `'${printable(value.slice(0, LONGEST + 1).replace(/[\\']/g, '\\$&'))}'`
      : String(value ?? null)
  return text.length <= LONGEST ? text : `${text.slice(0, LONGEST - 3)}...`
}

/** A text in one line: control characters and line breaks as \uXXXX. @param {string} text */
export function printable(text) {
  return text.replace(/(?! )[\p{C}\p{Z}]/gu, (character) => {
    const code = /** @type {number} */ (character.codePointAt(0)).toString(16)
    return `\\u${code.length > 4 ? `{${code}}` : code.padStart(4, '0')}`
  })
}
