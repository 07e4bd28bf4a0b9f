/**
 * Check the app and the parts of js/src that need no ONNX Runtime, with what npm has; no phone, no Xcode, no Android SDK.
 *
 *     node js/react-native/check.js               with Node 22.13 or newer, after npm ci in js/; takes five minutes and 600 MB
 *                                                 in a temporary folder
 *     node js/react-native/check.js --keep folder where to install, and leave it there: a second run takes two minutes
 *
 *     types     tsc, against React Native's, Expo's and clean_lm's own types
 *     bundle    Metro, as `expo export` runs it, for Android and iOS; compiled to bytecode by hermes-compiler
 *     project   the folders android and ios, which Expo generates from app.json, contain the binding and the microphone
 *     Hermes    hermes.js in the virtual machine of hermes-engine-cli
 *
 * The newest virtual machine on npm is Hermes 0.12, older than React Native's Hermes 1: it lacks classes, async functions
 * and \p{...} in regular expressions, which Babel translates for it. What runs there is the same code in an older engine.
 */

import { execFileSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { figuresOf } from './figures.js'

const JS = fileURLToPath(new URL('..', import.meta.url))
const KIT = fileURLToPath(new URL('../../tests/golden/conformance/', import.meta.url))
const APP = ['package.json', 'app.json', 'tsconfig.json', 'index.js', 'App.js', 'bundle.js', 'figures.js', 'sound.js']
const PLUGIN = '@babel/plugin-transform-unicode-property-regex' // of Babel 7, as React Native's preset
const HOST = /** @type {Record<string, string>} */ ({ linux: 'linux64-bin', darwin: 'osx-bin', win32: 'win64-bin' })

const [major, minor] = process.versions.node.split('.').map(Number)
if (major < 22 || (major === 22 && minor < 13)) {
  throw new Error(`Node ${process.versions.node}: Expo needs Node 22.13 or newer; install one`)
}
const keep = process.argv[2] === '--keep' ? process.argv[3] : undefined
const folder = keep ?? mkdtempSync(join(tmpdir(), 'clean-lm-phone-'))

/** Run a program in the folder; what it prints. @param {string} program @param {string[]} args */
function run(program, ...args) {
  const env = { ...process.env, CI: '1', EXPO_NO_TELEMETRY: '1' }
  const shell = process.platform === 'win32' // npm is a script there
  return execFileSync(program, args, {
    cwd: folder,
    env,
    shell,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  })
}

function install() {
  mkdirSync(folder, { recursive: true })
  for (const name of APP) cpSync(join(JS, 'react-native', name), join(folder, name))
  run('npm', 'pack', JS, '--silent')
  // the tarball's name stays the same from run to run, and npm would keep the one that it knows
  rmSync(join(folder, 'node_modules/clean-lm'), { recursive: true, force: true })
  rmSync(join(folder, 'package-lock.json'), { force: true })
  run('npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts', '--loglevel=error')
  run('npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts', '--loglevel=error', '--no-save', `${PLUGIN}@^7`)
}

/** Bundle for a platform, and compile. @param {string} platform */
function bundle(platform) {
  const output = join(folder, `dist-${platform}`)
  run('npx', 'expo', 'export', '--platform', platform, '--output-dir', output)
  const scripts = join(output, '_expo/static/js', platform)
  const [name] = readdirSync(scripts).filter((file) => file.endsWith('.hbc'))
  const bytes = readFileSync(join(scripts, name))
  console.log(`bundle: ${platform}, ${(bytes.length / 1e6).toFixed(1)} MB, Hermes bytecode ${bytes.readUInt32LE(8)}`)
}

/** What Expo's configuration plugins write into the native projects. */
const GENERATED = /** @type {Record<string, [string, string][]>} */ ({
  android: [
    ['android/app/build.gradle', "implementation project(':onnxruntime-react-native')"],
    ['android/app/src/main/AndroidManifest.xml', 'android.permission.RECORD_AUDIO'],
  ],
  ios: [
    ['ios/Podfile', "pod 'onnxruntime-react-native'"],
    ['ios/cleanlm/Info.plist', 'NSMicrophoneUsageDescription'],
  ],
})

/** Have Expo generate a native project. @param {string} platform */
function generate(platform) {
  rmSync(join(folder, platform), { recursive: true, force: true })
  run('npx', 'expo', 'prebuild', '--no-install', '--platform', platform)
  for (const [file, text] of GENERATED[platform]) {
    if (!readFileSync(join(folder, file), 'utf8').includes(text)) throw new Error(`${file}: lacks ${text}`)
  }
  console.log(`project: ${platform} generated`)
}

/** What hermes.js compares with: the conformance kit's cases without graphs, and its texts. */
function writeKit() {
  const json = (/** @type {string} */ path) => JSON.parse(readFileSync(join(KIT, path), 'utf8'))
  const { cases, ...rest } = json('cases.json')
  const manifest = json('bundles/text/manifest.json')
  const arrays = readFileSync(join(KIT, 'arrays.bin'))
  const texts = cases.filter((/** @type {any} */ one) => one.do === 'tokens')
  const kit = {
    cases: { ...rest, cases: cases.filter((/** @type {any} */ one) => !one.bundles.length) },
    arrays: arrays.toString('hex'),
    manifest,
    manifests: json('manifests.json'),
    tokenizer: json('bundles/text/tokenizer.json'),
    texts: texts.map((/** @type {any} */ one) => ({ text: one.given.text, ids: idsOf(one.expected.ids, arrays) })),
    figures: figuresOf(manifest),
  }
  writeFileSync(join(folder, 'hermes/kit.json'), JSON.stringify(kit))
}

/** @param {any} ids a list, or where it is in arrays.bin @param {Buffer} arrays */
const idsOf = (ids, arrays) =>
  Array.isArray(ids) ? ids : Array.from({ length: ids.shape[0] }, (_, i) => arrays.readInt32LE(ids.at + 4 * i))

const METRO = `
const Metro = require('metro')
Metro.loadConfig({ cwd: __dirname }, {
  projectRoot: __dirname, watchFolders: [__dirname + '/../node_modules'],
  resolver: { nodeModulesPaths: [__dirname + '/../node_modules'] },
}).then((config) => Metro.runBuild(config, { entry: 'entry.js', out: __dirname + '/out.js', dev: false, minify: false }))
  .catch((error) => { console.error(error); process.exitCode = 1 })
`
const BABEL = `module.exports = {
  presets: [['@react-native/babel-preset', { unstable_transformProfile: 'default', enableBabelRuntime: false }]],
  plugins: ['${PLUGIN}'],
}
`

/** Run hermes.js in Hermes. */
function runInHermes() {
  const place = join(folder, 'hermes')
  mkdirSync(join(place, 'react-native'), { recursive: true })
  cpSync(join(JS, 'src'), join(place, 'src'), { recursive: true })
  const [conformance] = readFileSync(join(JS, 'conformance.js'), 'utf8').split('/** The command line.') // that is Node's
  writeFileSync(join(place, 'conformance.js'), conformance)
  for (const name of ['hermes.js', 'figures.js']) {
    cpSync(join(JS, 'react-native', name), join(place, 'react-native', name))
  }
  writeFileSync(join(place, 'package.json'), '{ "private": true }')
  writeFileSync(join(place, 'babel.config.js'), BABEL)
  writeFileSync(join(place, 'metro.js'), METRO)
  writeFileSync(join(place, 'entry.js'), "require('./react-native/hermes.js').main(require('./kit.json'))\n")
  writeKit()
  run('node', join(place, 'metro.js'))
  const hermes = join(folder, 'node_modules/hermes-engine-cli', HOST[process.platform], 'hermes')
  const printed = run(hermes, '-w', join(place, 'out.js'))
  console.log(`Hermes:\n${printed}`)
  if (!printed.includes('all passed')) process.exitCode = 1
}

try {
  install()
  run('npx', 'tsc', '-p', '.')
  console.log('types: no errors')
  runInHermes()
  for (const platform of ['android', 'ios']) {
    bundle(platform)
    generate(platform)
  }
} finally {
  if (!keep) rmSync(folder, { recursive: true, force: true })
}
