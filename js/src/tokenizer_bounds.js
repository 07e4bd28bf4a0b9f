/** How much longer a tokenizer.json can make a text: a few hundred bytes of one can ask for more than memory holds. */

const MOST_GROWTH = 64 // times; T5's is 1

/**
 * Throw an Error where a text could become more than MOST_GROWTH times as long, or the file is no tokenizer's.
 *
 * @param {any} json
 */
export function requireGrowth(json) {
  if (typeof json !== 'object' || json === null) throw new Error('expected an object')
  const factor = product([json.normalizer, json.pre_tokenizer, json.post_processor])
  if (factor > MOST_GROWTH) {
    throw new Error(`may make a text ${factor} times as long, expected at most ${MOST_GROWTH} times`)
  }
}

/** How many times as long a step makes a text, at most; of steps in a sequence, all together. @param {any} step @returns {number} */
function growth(step) {
  if (Array.isArray(step)) return product(step)
  if (typeof step !== 'object' || step === null) return 1
  const inner = product(Object.values(step).filter(Array.isArray))
  if (step.type === 'Replace') return inner * replaced(step.pattern, String(step.content ?? ''))
  if (step.type === 'ByteLevel') return inner * 4
  if (step.type === 'TemplateProcessing') {
    return Math.max(1, JSON.stringify(step.single ?? []).split('"Sequence"').length - 1)
  }
  return inner
}

/** @param {any[]} steps */
const product = (steps) => steps.reduce((factor, step) => factor * growth(step), 1)

/** A regular expression may match between any two characters. @param {any} pattern @param {string} content */
function replaced(pattern, content) {
  const text = pattern?.String
  return typeof text === 'string' && text ? Math.max(1, content.length / text.length) : 1 + content.length
}
