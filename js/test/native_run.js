/**
 * A thread or process that is always in the middle of a run on the C API, so that a test can end it there. As a worker
 * it says 'running'; as a program it ends itself as its argument says.
 */

import { isMainThread, parentPort } from 'node:worker_threads'

import * as ort from 'onnxruntime-node'

import { LanguageModel, Manifest } from '../src/index.js'
import { BUNDLE } from './kit.js'

const options = { ort: /** @type {any} */ (ort), native: true, sessionOptions: { intraOpNumThreads: 4 } }
const lm = new LanguageModel(await Manifest.open(BUNDLE, options))
const [rows, columns] = [4, 700]
const decoder = /** @type {import('../src/index.js').Decoder} */ (await lm.decoder({ batch: rows, capacity: columns }))
const codes = Array.from({ length: rows }, () => lm.delays.map(() => new Int32Array(columns)))
const uniform = new Float32Array(rows * lm.codebooks)
const run = () => {
  decoder.filled = 0
  return decoder.call(codes, uniform)
}
await run()
const running = run()
if (isMainThread) {
  if (process.argv[2] === 'exit') process.exit(7)
  throw new Error('uncaught') // ends the process with 1
}
parentPort?.postMessage('running')
await running
for (;;) await run()
