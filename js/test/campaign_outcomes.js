/**
 * One input of the campaign is tried: refused in one line, accepted, or something that must not happen.
 *
 * @typedef {'refused' | 'accepted' | 'other'} Kind
 * @typedef {{ kind: Kind, message: string }} Outcome
 *
 * @typedef {object} Case an input
 * @property {string} what it is, for the report
 * @property {() => Promise<Outcome>} run returns what came of it, or throws what refuses it
 *
 * @typedef {object} Part of the campaign, with what its inputs are tried on
 * @property {(random: Random) => Case} make an input
 * @property {() => void | Promise<void>} close
 */

import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

import { BundleError } from '../src/index.js'

const SECONDS = 20 // that one input may take, on a busy machine
const MEGABYTES = 1_000 // that it may add to the most memory that the process has had
const LONGEST_MESSAGE = 20_000
const ERRORS = [TypeError, RangeError, BundleError]
/** What a refusal says: the engine's own errors, such as those of a property of undefined, do not. */
const REASON = /\b(got|expected|needs|requested|takes no)\b/

/** @param {string} [message] @returns {Outcome} */
export const refused = (message = '') => ({ kind: 'refused', message })
/** @returns {Outcome} */
export const accepted = () => ({ kind: 'accepted', message: '' })
/** @param {string} message @returns {Outcome} */
export const other = (message) => ({ kind: 'other', message })

/** Numbers that follow from a name alone. */
export class Random {
  /** @param {string} name */
  constructor(name) {
    this.name = name
    this.count = 0
  }

  /** A whole number from 0 to n - 1. @param {number} n */
  below(n) {
    const digest = createHash('sha256').update(`${this.name} ${this.count++}`).digest()
    return digest.readUInt32LE(0) % n
  }

  /** True once in n times. @param {number} n */
  once(n) {
    return this.below(n) === 0
  }

  /** @template T @param {readonly T[]} list @returns {T} */
  pick(list) {
    return list[this.below(list.length)]
  }
}

/** Errors that nothing has caught, since the process began. @type {unknown[]} */
const uncaught = []

/** Note errors that nothing catches, which would end the process. */
export function noteUncaught() {
  process.on('uncaughtException', (error) => uncaught.push(error))
  process.on('unhandledRejection', (error) => uncaught.push(error))
}

/**
 * Try one input, within bounds of time and memory.
 *
 * @param {Case['run']} run
 * @param {number} [seconds]
 * @returns {Promise<Outcome>}
 */
export async function attempt(run, seconds = SECONDS) {
  const [before, peak] = [uncaught.length, peakMegabytes()]
  const outcome = await bounded(run, seconds)
  await sleep(1) // Node reports unhandled rejections after the current turn
  const grown = peakMegabytes() - peak
  if (uncaught.length > before) return other(`not caught: ${said(uncaught[before])}`)
  if (grown > MEGABYTES) return other(`took ${Math.round(grown)} MB: ${outcome.kind} ${outcome.message}`)
  return outcome
}

/**
 * @param {Case['run']} run
 * @param {number} seconds
 */
async function bounded(run, seconds) {
  const controller = new AbortController()
  const late = sleep(seconds * 1000, other(`more than ${seconds} s`), controller)
  late.catch(() => {}) // it is cancelled below
  try {
    return await Promise.race([run(), late])
  } catch (error) {
    return refusal(error)
  } finally {
    controller.abort()
  }
}

/**
 * What an error is: a refusal has one of the three types, and one line.
 *
 * @param {unknown} error
 */
function refusal(error) {
  if (!(error instanceof Error) || !ERRORS.some((type) => error.constructor === type)) return other(said(error))
  const { message } = error
  const isLine = message.length > 0 && message.length <= LONGEST_MESSAGE && !/[\p{C}\p{Zl}\p{Zp}]/u.test(message)
  if (isLine && !REASON.test(message)) return other(`does not say what was got or expected: ${said(error)}`)
  return isLine ? refused(message) : other(`not one printable line: ${JSON.stringify(message.slice(0, 300))}`)
}

/** @param {unknown} error whatever was thrown */
function said(error) {
  return error instanceof Error ? String(error.stack ?? error) : `${typeof error} thrown: ${String(error)}`
}

/** The most memory that this process has had. */
const peakMegabytes = () => process.resourceUsage().maxRSS / 1024
