/**
 * Time a bundle in Node, as js/bench/steps.py does in Python: prints ONNX Runtime's version, then
 * answers requests with times, in lines of JSON.
 */

import { monitorEventLoopDelay } from 'node:perf_hooks'
import { createInterface } from 'node:readline'

import * as ort from 'onnxruntime-node'

import { MusicGen } from '../src/index.js'

const [, , bundle, variant, path] = process.argv
const options = { ort: /** @type {any} */ (ort), variant, hashes: false, native: path === 'native' }
const model = await MusicGen.load(bundle, options)
const { lm, sampleRate, channels } = model
const codes = [lm.delays.map(() => new Int32Array(1))]
const uniform = new Float32Array(lm.codebooks).fill(0.5)
const text = new Float32Array(8 * lm.textDim)
/** @type {Record<string, any>} Decoders */
const decoders = {}

const RUNS = /** @type {Record<string, (request: any) => Promise<number[]>>} */ ({
  /** Milliseconds of single steps behind `columns` cached ones. */
  steps: async ({ guided, capacity, columns, steps }) => {
    const decoder = (decoders[guided] ??= await lm.decoder({ capacity, texts: [guided ? text : null] }))
    const times = []
    for (let i = 0; i < steps; i++) {
      decoder.filled = columns
      const start = performance.now()
      await decoder.call(codes, uniform)
      times.push(performance.now() - start)
    }
    return times
  },

  /** Milliseconds to encode `prompt` seconds of a tone, continue it to `duration` without a text, and decode. */
  whole: async ({ prompt, duration }) => {
    const tone = Float32Array.from({ length: prompt * sampleRate }, (_, i) => 0.3 * Math.sin(0.05 * i))
    const start = performance.now()
    await model.generateContinuation(
      Array.from({ length: channels }, () => tone),
      sampleRate,
      { duration, seed: 1 },
    )
    return [performance.now() - start]
  },
})

console.log(JSON.stringify(ort.env.versions.node))
const delay = monitorEventLoopDelay({ resolution: 10 }) // ms; of 1 ms, its timer takes 4 % of the steps' time
for await (const line of createInterface({ input: process.stdin })) {
  const { run, ...request } = JSON.parse(line)
  delay.reset()
  delay.enable()
  const times = await RUNS[run](request)
  delay.disable()
  console.log(JSON.stringify({ times, gap: delay.max / 1e6 }))
}
