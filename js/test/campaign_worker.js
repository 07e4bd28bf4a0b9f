/** Some inputs of one part of the campaign, in a process of their own: it tells what comes of each. */

import { attempt, noteUncaught, Random } from './campaign_outcomes.js'
import { openOptions } from './campaign_options.js'
import { openRequests } from './campaign_requests.js'

/** @typedef {import('./campaign_outcomes.js').Outcome} Outcome */

/** @type {Record<string, () => Promise<import('./campaign_outcomes.js').Part>>} */
const OPEN = { requests: openRequests, options: openOptions }

/** @param {{ number: number, what: string } | { number: number, outcome: Outcome }} message */
const tell = (message) => new Promise((resolve) => process.send?.(message, undefined, undefined, resolve))

const [name, seed, first, end] = process.argv.slice(2)
noteUncaught()
process.on('disconnect', () => process.exit()) // nobody listens any more
const part = await OPEN[name]()
for (let number = Number(first); number < Number(end); number++) {
  const { what, run } = part.make(new Random(`${name} ${seed} ${number}`))
  await tell({ number, what }) // before it is tried, as it may end the process
  await tell({ number, outcome: await attempt(run) })
}
await part.close()
process.disconnect()
