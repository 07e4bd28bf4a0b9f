/** Time steps of a bundle in Node, as js/bench/steps.py does in Python: reads requests as JSON lines, prints times. */

import { monitorEventLoopDelay } from 'node:perf_hooks'
import { createInterface } from 'node:readline'

import * as ort from 'onnxruntime-node'

import { LanguageModel, Manifest } from '../src/index.js'

const [, , bundle, variant, path] = process.argv
const options = { ort: /** @type {any} */ (ort), variant, hashes: false, native: path === 'native' }
const lm = new LanguageModel(await Manifest.open(bundle, options))
const codes = [lm.delays.map(() => new Int32Array(1))]
const uniform = new Float32Array(lm.codebooks).fill(0.5)
const text = new Float32Array(8 * lm.textDim)
const delay = monitorEventLoopDelay({ resolution: 1 })
/** @type {Record<string, any>} Decoders */
const decoders = {}
for await (const line of createInterface({ input: process.stdin })) {
  const { guided, capacity, columns, steps } = JSON.parse(line)
  const decoder = (decoders[guided] ??= await lm.decoder({ capacity, texts: [guided ? text : null] }))
  const times = []
  delay.reset()
  delay.enable()
  for (let i = 0; i < steps; i++) {
    decoder.filled = columns
    const start = performance.now()
    await decoder.call(codes, uniform)
    times.push(performance.now() - start)
  }
  delay.disable()
  console.log(JSON.stringify({ times, gap: delay.max / 1e6 }))
}
