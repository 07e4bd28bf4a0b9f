#!/usr/bin/env node
/**
 * Try hostile, broken and absurd inputs on the page's server and on the runtime's options, and count what came of them.
 *
 *     node js/test/campaign.js                                200 inputs for each part, other seeds every day
 *     node js/test/campaign.js --rounds 1000 --seed 7         as many as that, always the same
 *     node js/test/campaign.js --part requests --seed 7 --first 41 --rounds 1      one input again
 *
 * A request is refused with an answer of 4xx or a closed socket, or accepted with the bytes of a listed file. Options are
 * refused by a TypeError, RangeError or BundleError of one line, or accepted with finite samples. Anything else is
 * "other": a crash, a wrong sound, a server that says no more, too much time or memory, a process that ended. The exit
 * code is 1 where there is one, and 2 where a flag is wrong. Inputs follow from the seed and their number alone.
 */

import { fork } from 'node:child_process'
import { once } from 'node:events'
import { realpathSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { other } from './campaign_outcomes.js'

/**
 * @typedef {import('./campaign_outcomes.js').Kind} Kind
 * @typedef {import('./campaign_outcomes.js').Outcome} Outcome
 * @typedef {{ part: string, number: number, what: string, outcome: Outcome }} Result
 * @typedef {Record<Kind, number>} Counts
 * @typedef {{ rounds: number, seed: number, first: number, parts: string[] }} Flags
 */

export const PARTS = ['requests', 'options']
const WORKER = fileURLToPath(new URL('campaign_worker.js', import.meta.url))
const SILENCE = 60_000 // milliseconds without a word, after which a process is ended

/**
 * Every input of a part. Where its process ends, the input that it was trying is the cause, and another one goes on.
 *
 * @param {string} part
 * @param {number} seed
 * @param {number} first
 * @param {number} rounds
 * @param {string} [worker] the program that tries them
 * @returns {AsyncGenerator<Result, void, void>}
 */
export async function* campaign(part, seed, first, rounds, worker = WORKER) {
  for (let next = first; next < first + rounds;) {
    for await (const result of turn(part, seed, next, first + rounds, worker)) {
      yield result
      next = result.number + 1
    }
  }
}

/**
 * The inputs of one process, up to the one that ends it. Throws an Error where it ends without one.
 *
 * @param {string} part
 * @param {number} seed
 * @param {number} first
 * @param {number} end
 * @param {string} worker
 * @returns {AsyncGenerator<Result, void, void>}
 */
async function* turn(part, seed, first, end, worker) {
  const child = fork(worker, [part, seed, first, end].map(String))
  const timer = setTimeout(() => child.kill('SIGKILL'), SILENCE)
  /** @type {Result | undefined} */
  let tried
  try {
    for await (const message of messages(child)) {
      timer.refresh()
      if ('what' in message) tried = { part, ...message, outcome: other('the process ended, or hung') }
      else if (tried) yield { ...tried, outcome: message.outcome }
      if ('outcome' in message) tried = undefined
    }
    if (tried) yield tried
    else if (child.exitCode !== 0) throw new Error(`${worker}: ended with ${child.exitCode ?? child.signalCode}`)
  } finally {
    clearTimeout(timer)
    child.kill('SIGKILL')
  }
}

/**
 * What a process tells, until it ends.
 *
 * @param {import('node:child_process').ChildProcess} child
 * @returns {AsyncGenerator<any, void, void>}
 */
async function* messages(child) {
  /** @type {any[]} */
  const waiting = []
  let wake = () => {}
  child.on('message', (message) => (waiting.push(message), wake()))
  let ended = false
  once(child, 'close').then(() => ((ended = true), wake()))
  while (!ended || waiting.length) {
    if (waiting.length) yield waiting.shift()
    else await new Promise((resolve) => (wake = () => resolve(undefined)))
  }
}

/** The counts of every part. @param {Record<string, Counts>} counts */
export function table(counts) {
  const row = (/** @type {string} */ name, /** @type {(string | number)[]} */ cells) =>
    name.padEnd(20) + cells.map((cell, i) => String(cell).padStart([8, 10, 10, 8][i])).join('')
  const cells = (/** @type {Counts[]} */ found) => {
    const sum = (/** @type {Kind} */ kind) => found.reduce((total, count) => total + count[kind], 0)
    const each = [sum('refused'), sum('accepted'), sum('other')]
    return [each.reduce((total, count) => total + count), ...each]
  }
  const rows = Object.entries(counts).map(([name, count]) => row(name, cells([count])))
  return [row('part', ['tried', 'refused', 'accepted', 'other']), ...rows, row('all', cells(Object.values(counts)))]
}

/** @param {string[]} args @returns {Flags} */
function flagsOf(args) {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '200' },
      seed: { type: 'string', default: String(Math.floor(Date.now() / 86_400_000)) }, // that of the day
      first: { type: 'string', default: '0' },
      part: { type: 'string', multiple: true },
    },
  })
  const named = [...(values.part ?? []), ...positionals]
  const wrong = named.find((name) => !PARTS.includes(name))
  if (wrong !== undefined) throw new Error(`--part ${wrong}: expected ${PARTS.join(' or ')}`)
  const [rounds, seed, first] = [
    count('rounds', values.rounds),
    count('seed', values.seed),
    count('first', values.first),
  ]
  return { rounds, seed, first, parts: named.length ? [...new Set(named)] : PARTS }
}

/** @param {string} flag @param {string} text */
function count(flag, text) {
  if (/^\d{1,15}$/.test(text)) return Number(text)
  throw new Error(`--${flag} ${text}: expected a whole number of at most 15 digits`)
}

/** @param {Flags} flags */
async function main({ rounds, seed, first, parts }) {
  console.log(`seed ${seed}`)
  /** @type {Record<string, Counts>} */
  const counts = {}
  for (const part of parts) {
    counts[part] = { refused: 0, accepted: 0, other: 0 }
    for await (const { number, what, outcome } of campaign(part, seed, first, rounds)) {
      counts[part][outcome.kind]++
      if (outcome.kind !== 'other') continue
      const again = `node js/test/campaign.js --part ${part} --seed ${seed} --first ${number} --rounds 1`
      console.log(`other: ${again}\n  ${what}\n  ${outcome.message.slice(0, 600)}`)
    }
  }
  console.log(table(counts).join('\n'))
  return parts.some((part) => counts[part].other) ? 1 : 0
}

if (process.argv[1] && realpathSync(process.argv[1]) === realpathSync(fileURLToPath(import.meta.url))) {
  try {
    process.exitCode = await main(flagsOf(process.argv.slice(2)))
  } catch (error) {
    console.error(/** @type {Error} */ (error).message)
    process.exitCode = 2
  }
}
