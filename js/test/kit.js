/** Shared by the tests: the conformance kit's bundles, and a short clip. */

import { readFile, readdir } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'

export const KIT = fileURLToPath(new URL('../../tests/golden/conformance', import.meta.url))
export const BUNDLE = `${KIT}/bundles/text`

/** A bundle's files by name. @param {string} [folder] */
export async function bundleFiles(folder = BUNDLE) {
  /** @type {Map<string, any>} */
  const files = new Map()
  for (const name of await readdir(folder)) files.set(name, await readFile(`${folder}/${name}`))
  return files
}

/** Two decaying tones, left and right. @param {number} seconds @param {number} rate */
export function clip(seconds, rate) {
  return [220, 330].map((hertz) =>
    Float32Array.from(
      { length: seconds * rate },
      (_, i) => Math.exp(-i / rate) * 0.5 * Math.sin((2 * Math.PI * hertz * i) / rate),
    ),
  )
}
