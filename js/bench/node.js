/**
 * Compare Node with Python: the same bundle on the same machine, measured in turn. Node runs the graphs on ONNX
 * Runtime's C API (native, which needs koffi) and on the session of onnxruntime-node.
 *
 *     node js/bench/node.js bundle [--variant fp32 int4 ...] [--python .venv/bin/python] [--rounds 9] [--whole]
 *
 * Every round runs some steps in one after the other. Printed are medians over all steps of all rounds, and the longest
 * time for which the event loop stood still. With --whole, every round is a continuation in its place, in Python and
 * native: 6 s are encoded, continued to 30 s without a text, and decoded. Printed are the least seconds of each, their
 * ratio, and the median of the rounds' ratios.
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
    whole: { type: 'boolean', default: false },
  },
})
const [bundle, ...variants] = positionals // node:util gives an option one value; the others stand behind it
const [CAPACITY, STEPS] = [1504, 6]
const [PROMPT, DURATION] = [6, 30] // s
const here = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url))

/**
 * Start a process that times steps. Its first line is the version of its ONNX Runtime.
 *
 * @param {string} command
 * @param {string[]} args
 */
async function timer(command, args) {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const line = async () => {
    const { value, done } = await lines.next()
    if (done) throw new Error(`${command} has ended: see above`)
    return JSON.parse(value)
  }
  return {
    version: /** @type {string} */ (await line()),
    /** @param {object} request */
    time: (request) => {
      child.stdin.write(`${JSON.stringify(request)}\n`)
      return line()
    },
    end: () => child.stdin.end(),
  }
}

/** @param {number[]} times */
const median = (times) => times.sort((a, b) => a - b)[Math.floor(times.length / 2)]

const RUNTIMES = ['python', 'native', 'onnxruntime-node']

/** Processes that time a variant, one for each runtime. @param {string} variant @param {string[]} runtimes */
async function timersOf(variant, runtimes) {
  /** @type {Awaited<ReturnType<typeof timer>>[]} */
  const timers = []
  for (const runtime of runtimes) {
    const [command, ...args] = runtime === 'python' ? [values.python, 'steps.py'] : [process.execPath, 'steps.js']
    timers.push(await timer(command, [here(args[0]), bundle, variant, runtime]))
  }
  console.log(`ONNX Runtime: ${runtimes.map((runtime, i) => `${timers[i].version} in ${runtime}`).join(', ')}`)
  return timers
}

/**
 * Times of a request in ms, and the longest gap of the event loop, of each timer: measured in turn.
 *
 * @param {Awaited<ReturnType<typeof timersOf>>} timers
 * @param {object} request
 */
async function measure(timers, request) {
  const times = timers.map(() => /** @type {number[]} */ ([]))
  const gaps = timers.map(() => 0)
  for (let round = 0; round < Number(values.rounds); round++) {
    for (let i = 0; i < timers.length; i++) {
      const at = (i + round) % timers.length
      const { times: found, gap } = await timers[at].time(request)
      times[at].push(...found)
      gaps[at] = Math.max(gaps[at], gap ?? 0)
    }
  }
  return { times, gaps }
}

/** @param {string} variant */
async function printSteps(variant) {
  const timers = await timersOf(variant, RUNTIMES)
  for (const guided of [false, true]) {
    for (const columns of [100, 750, 1490]) {
      const request = { run: 'steps', guided, columns, capacity: CAPACITY, steps: STEPS }
      for (const { time } of timers) await time(request) // warm-up
      const { times, gaps } = await measure(timers, request)
      const [python, ...node] = times.map(median)
      const cells = node.flatMap((ms, i) => [ms.toFixed(1), (ms / python).toFixed(2), gaps[i + 1].toFixed(0)])
      print(variant, [guided ? 2 : 1, columns, python.toFixed(1), ...cells])
    }
  }
  timers.forEach(({ end }) => end())
}

/** @param {string} variant */
async function printWhole(variant) {
  const timers = await timersOf(variant, RUNTIMES.slice(0, 2))
  for (const { time } of timers) await time({ run: 'whole', prompt: PROMPT, duration: PROMPT + 1 }) // warm-up
  const { times, gaps } = await measure(timers, { run: 'whole', prompt: PROMPT, duration: DURATION })
  const ratios = times[0].map((python, round) => times[1][round] / python) // of runs beside each other
  const [python, native] = times.map((list) => Math.min(...list) / 1000)
  const cells = [python, native, native / python, median(ratios)].map((number) => number.toFixed(2))
  print(variant, [...cells, gaps[1].toFixed(0)])
  timers.forEach(({ end }) => end())
}

const heads = values.whole
  ? ['Python s', 'native s', '/ Python', 'median /', 'gap ms']
  : ['rows', 'columns', 'Python ms', 'native ms', '/ Python', 'gap ms', 'o.-node ms', '/ Python', 'gap ms']
const widths = heads.map((head) => head.length + 3)
/** @param {string} variant @param {unknown[]} cells */
const print = (variant, cells) =>
  console.log(variant.padEnd(9), ...cells.map((cell, i) => String(cell).padStart(widths[i])))

print('variant', heads)
for (const variant of [...values.variant, ...variants]) await (values.whole ? printWhole : printSteps)(variant)
