// node tests/fuzz/verdict.mjs FOLDER: whether JavaScript reads the manifest.json of a bundle, in a word, and why not
import { BundleError } from '../../js/src/files.js'
import { Manifest } from '../../js/src/manifest.js'

try {
  await Manifest.open(process.argv[2], { ort: { InferenceSession: {} } })
  console.log('accepted')
} catch (error) {
  if (!(error instanceof BundleError)) throw error
  console.log(`refused ${error.message}`)
}
