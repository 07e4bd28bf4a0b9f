/** A bundle on a server, and what of it is on the phone. */

import { MusicGen } from 'clean-lm'
import { Directory, File, Paths } from 'expo-file-system'
import * as ort from 'onnxruntime-react-native'

/**
 * @typedef {import('./figures.js').Tree} Tree
 * @typedef {(done: number, total: number) => void} OnProgress in bytes
 */

/** The folder that a bundle's files are in: one for each address. @param {string} url */
function folderOf(url) {
  const folder = new Directory(Paths.document, 'bundles', encodeURIComponent(url))
  folder.create({ intermediates: true, idempotent: true })
  return folder
}

/**
 * manifest.json of a bundle. Throws where it cannot be downloaded.
 *
 * @param {string} url the bundle's folder, over https
 * @returns {Promise<Tree>} MusicGen.load checks it
 */
export async function downloadManifest(url) {
  const file = await download(url, 'manifest.json')
  return JSON.parse(await file.text())
}

/**
 * Download the files of a variant that are not there already; a file is there as a whole or not at all.
 *
 * @param {string} url
 * @param {Tree} tree
 * @param {string[]} names
 * @param {OnProgress} onProgress
 */
export async function downloadFiles(url, tree, names, onProgress) {
  const total = names.reduce((sum, name) => sum + tree.files[name].bytes, 0)
  let done = 0
  for (const name of names) {
    const { bytes } = tree.files[name]
    const file = new File(folderOf(url), name)
    if (!file.exists || file.size !== bytes) await download(url, name, (n) => onProgress(done + n, total))
    onProgress((done += bytes), total)
  }
}

/** @param {string} url @param {string} name @param {(bytes: number) => void} [onBytes] */
async function download(url, name, onBytes) {
  if (name.split('/').includes('..')) throw new Error(`${name}: lies outside of the bundle's folder`)
  const file = new File(folderOf(url), name)
  file.parentDirectory.create({ intermediates: true, idempotent: true })
  const partial = new File(file.parentDirectory, `${file.name}.partial`)
  const from = `${url.replace(/\/*$/, '')}/${name.split('/').map(encodeURIComponent).join('/')}`
  const onProgress = (/** @type {{ bytesWritten: number }} */ { bytesWritten }) => onBytes?.(bytesWritten)
  await File.downloadFileAsync(from, partial, { idempotent: true, onProgress })
  await partial.move(file, { overwrite: true })
  return file
}

/**
 * The model. The platform hashes the files, and ONNX Runtime opens them by their paths.
 *
 * @param {string} url
 * @param {string} variant
 */
export async function loadModel(url, variant) {
  const folder = folderOf(url)
  const device = { folder: folder.uri, file: (/** @type {string} */ name) => new File(folder, name) }
  return MusicGen.load(device, { ort, variant })
}

/** The library's own version: Gradle and CocoaPods choose it, not the npm package. */
export const ortVersion = () => String(/** @type {any} */ (globalThis).OrtApi?.version ?? 'unknown')
