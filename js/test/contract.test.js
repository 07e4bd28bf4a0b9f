/**
 * The JavaScript loop of export/CONTRACT.md generates the codes that the conformance kit expects.
 *
 * CLEAN_LM_KIT names another folder of the same form: tests/test_contract.py has one with bundles too large for the kit.
 */

import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import test from 'node:test'
import { fileURLToPath } from 'node:url'
import * as ort from 'onnxruntime-node'

import { nested, stored } from '../conformance.js'
import { LanguageModel, Manifest, uniforms } from '../src/index.js'
import { toFloat16 } from '../src/float16.js'

const path = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url))
const KIT = process.env.CLEAN_LM_KIT ?? path('../../tests/golden/conformance')
const [block, ...others] =
  (await readFile(path('../../export/CONTRACT.md'), 'utf8')).match(/(?<=```js\n)[^]*?(?=```)/g) ?? []
const { generate } = await import(`data:text/javascript,${encodeURIComponent(block ?? '')}`)
const { cases } = JSON.parse(await readFile(`${KIT}/cases.json`, 'utf8'))
const { buffer } = new Uint8Array(await readFile(`${KIT}/arrays.bin`))

/** Whether the loop can run a case: it has one window, and texts of equal length or none. */
const canRun = (/** @type {any} */ { texts, frames }) =>
  frames && (!texts || texts.every((/** @type {any} */ text) => String(text?.shape) === String(texts[0]?.shape)))

test('the contract has one JavaScript block', () => assert.deepEqual(others, []))

for (const one of cases) {
  if (one.do !== 'generate' || !canRun(one.given)) continue
  for (const bundle of one.bundles) {
    test(`${one.name} [${bundle}]`, async () => {
      const { given, expected } = stored(one, buffer)
      const codes = await loop(`${KIT}/bundles/${bundle}`, given)
      assert.deepEqual(codes.flat(), nested(expected.codes).flat())
    })
  }
}

/** @param {string} bundle @param {any} given */
async function loop(bundle, { prompt, texts, self_wav, batch, frames, sampling, seed, uniform }) {
  const manifest = await Manifest.open(bundle, { ort: /** @type {any} */ (ort) })
  const lm = new LanguageModel(manifest)
  const size = batch * lm.codebooks
  const steps = frames + Math.max(...lm.delays) - (prompt?.shape[2] ?? 0) - Math.min(...lm.delays)
  const options = {
    temperature: sampling.temperature,
    topK: sampling.top_k,
    topP: sampling.top_p,
    cfgCoef: sampling.cfg_coef,
    cfgCoefBeta: sampling.cfg_coef_beta ?? 1,
    prefix: /** @type {any} */ (null),
  }
  const rows = texts && texts.map((/** @type {any} */ text) => text && text.data)
  const prefixed = 'prefix' in lm.graph.inputs
  if (prefixed) {
    const wavs = self_wav && self_wav.map((/** @type {any} */ wav) => wav && wav.data)
    const all = { ...lm.sampling, ...options, cfgCoefBeta: sampling.cfg_coef_beta }
    options.prefix = (await lm.conditioning.build(rows ?? Array(batch).fill(null), wavs, all)).prefix
  }
  return generate(
    ort,
    bundle,
    prompt ? nested(prompt) : Array(batch).fill(lm.delays.map(() => [])),
    !prefixed && texts?.[0] ? tensor(manifest, texts) : null,
    frames,
    uniform ? split(uniform.data, size) : draws(seed, batch, steps, lm.codebooks),
    options,
  )
}

/** Texts of equal length in the type that the manifest names. @param {Manifest} manifest @param {any[]} texts */
function tensor(manifest, texts) {
  const { dtype = 'float32' } =
    manifest.tree.graphs.lm_condition.inputs.find(({ name }) => name === 'text_states') ?? {}
  const states = Float32Array.from(texts.flatMap(({ data }) => [...data]))
  return new ort.Tensor(/** @type {any} */ (dtype), dtype === 'float16' ? toFloat16(states) : states, [
    texts.length,
    ...texts[0].shape,
  ])
}

/**
 * Uniform numbers as [steps] of [B x K]; zeros without a seed.
 *
 * @param {string | null} seed
 * @param {number} batch
 * @param {number} steps
 * @param {number} codebooks
 */
function draws(seed, batch, steps, codebooks) {
  const takes = Array.from({ length: batch }, (_, b) =>
    seed === null ? new Float32Array(steps * codebooks) : uniforms(BigInt(seed) + BigInt(b), steps, codebooks),
  ).map((take) => split(take, codebooks))
  return Array.from({ length: steps }, (_, s) => Float32Array.from(takes.flatMap((take) => [...take[s]])))
}

/** @param {Float32Array} data @param {number} size */
const split = (data, size) =>
  Array.from({ length: data.length / size }, (_, i) => data.subarray(i * size, (i + 1) * size))
