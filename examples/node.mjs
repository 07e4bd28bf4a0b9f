/**
 * Continue a loop in Node, and write a WAV file.
 *
 *     npm ci --prefix js    # once: onnxruntime-node and the tokenizer
 *     make demo             # once: the demo's bundle, build/bundle
 *     node examples/node.mjs [bundle] [loop.wav] [out.wav]
 *
 * On Linux, onnxruntime-node's installer downloads CUDA libraries; ONNXRUNTIME_NODE_INSTALL=skip in the environment
 * prevents that. In a project of your own, `npm install path/to/clean_lm/js onnxruntime-node koffi` (koffi for Python's
 * speed), and import the first two by name:
 *
 *     import * as ort from 'onnxruntime-node'
 *     import { decodeWav, encodeWav, MusicGen } from 'clean-lm'
 */

import { readFile, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'

import { decodeWav, encodeWav, MusicGen } from '../js/src/index.js'

const ort = createRequire(new URL('../js/', import.meta.url))('onnxruntime-node') // from js/node_modules
const [bundle = 'build/bundle', input = 'demo/loop.wav', output = 'build/node.wav'] = process.argv.slice(2)

const model = await MusicGen.load(bundle, { ort })
const loop = decodeWav(await readFile(input))
const seconds = loop.audio[0].length / loop.sampleRate
console.log(`${bundle}: variant ${model.manifest.variant}, ${model.sampleRate} Hz, ${model.channels} channel(s)`)
console.log(`${input}: ${seconds.toFixed(1)} s at ${loop.sampleRate} Hz`)

const started = performance.now()
const { audio, sampleRate, seed } = await model.generateContinuation(loop.audio, loop.sampleRate, {
  description: model.text && 'drum and bass', // null where the bundle has no text encoder
  duration: seconds + 6, // the loop included
  temperature: 0.4,
  seed: 1, // the same seed gives the same take, in Python too
})
const took = (performance.now() - started) / 1000

await writeFile(output, encodeWav(audio, sampleRate))
console.log(
  `${output}: ${(audio[0].length / sampleRate).toFixed(1)} s, seed ${seed}, generated in ${took.toFixed(1)} s`,
)
await model.release()
