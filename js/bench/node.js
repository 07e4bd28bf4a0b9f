/**
 * Compare Node with Python: milliseconds per step of the same bundle on the same machine, measured in turn.
 *
 *     node js/bench/node.js bundle [--variant fp32 int4 ...] [--python .venv/bin/python] [--rounds 9]
 *
 * Every round runs some steps in one, then in the other. Printed are medians over all steps of all rounds.
 */

import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    variant: { type: 'string', multiple: true, default: ['fp32'] },
    python: { type: 'string', default: 'python' },
    rounds: { type: 'string', default: '9' },
  },
})
const [CAPACITY, STEPS] = [1504, 6]
const here = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url))

/**
 * Start a process that times steps.
 *
 * @param {string} command
 * @param {string[]} args
 */
function timer(command, args) {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  return {
    /** @param {object} request */
    time: async (request) => {
      child.stdin.write(`${JSON.stringify(request)}\n`)
      return JSON.parse((await lines.next()).value)
    },
    end: () => child.stdin.end(),
  }
}

/** @param {number[]} times */
const median = (times) => times.sort((a, b) => a - b)[Math.floor(times.length / 2)]

console.log('variant   rows    columns   Node ms   Python ms   Node / Python')
for (const variant of values.variant) {
  const timers = [
    timer(process.execPath, [here('steps.js'), positionals[0], variant]),
    timer(values.python, [here('steps.py'), positionals[0], variant]),
  ]
  for (const guided of [false, true]) {
    for (const columns of [100, 750, 1490]) {
      const request = { guided, columns, capacity: CAPACITY, steps: STEPS }
      for (const { time } of timers) await time(request) // warm-up
      const times = /** @type {number[][]} */ ([[], []])
      for (let round = 0; round < Number(values.rounds); round++) {
        for (const i of round % 2 ? [1, 0] : [0, 1]) times[i].push(...(await timers[i].time(request)))
      }
      const [node, python] = times.map(median)
      const cells = [guided ? 2 : 1, columns, node.toFixed(1), python.toFixed(1), (node / python).toFixed(2)]
      console.log(variant.padEnd(9), ...cells.map((cell, i) => String(cell).padStart([5, 10, 9, 11, 15][i])))
    }
  }
  timers.forEach(({ end }) => end())
}
