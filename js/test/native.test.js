/** A bundle's graphs on ONNX Runtime's C API: the same codes and audio, and nothing that a caller does ends the process. */

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync } from 'node:fs'
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import Module from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'

import koffi from 'koffi'
import * as node from 'onnxruntime-node'

import { conformance } from '../conformance.js'
import { ORT_API, unpacked } from '../src/c_api.js'
import { Codec, LanguageModel, Manifest, MusicGen } from '../src/index.js'
import { NativeSession } from '../src/native.js'
import { bundleFiles, BUNDLE, KIT } from './kit.js'
import { HEADER } from './ort_c_api.js'

const ort = /** @type {any} */ (node)
const here = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url))
/** @type {string} */
let folder
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'clean-lm-native-'))
})
after(() => rm(folder, { recursive: true }))

/** @param {string} bundle @param {object} [options] */
const open = async (bundle, options) =>
  new LanguageModel(await Manifest.open(bundle, { ort, native: true, ...options }))

/** A decoder, and its session with what it was given in a call. @param {LanguageModel} lm */
async function started(lm) {
  const decoder = /** @type {import('../src/index.js').Decoder} */ (await lm.decoder({ capacity: 16 }))
  const session = /** @type {any} */ (await lm.graph.session())
  assert.ok(session instanceof NativeSession)
  /** @type {any} */
  let given
  const { run } = session
  session.run = (/** @type {any} */ feeds, /** @type {any} */ fetches) => {
    given = [feeds, fetches]
    return run.call(session, feeds, fetches)
  }
  const call = () => decoder.call([lm.delays.map(() => Int32Array.of(1))], new Float32Array(lm.codebooks).fill(0.5))
  await call()
  session.run = run
  return { decoder, session, call, feeds: given[0], fetches: given[1] }
}

/** Collect garbage, and let finalizers run. */
async function collect() {
  setFlagsFromString('--expose-gc')
  for (let i = 0; i < 3; i++) {
    runInNewContext('gc')()
    await sleep(1)
  }
}

test('the library lies outside of an archive of Electron', () => {
  for (const [path, expected] of [
    ['/a/app.asar/node_modules/x', '/a/app.asar.unpacked/node_modules/x'],
    ['C:\\a\\app.asar\\node_modules\\x', 'C:\\a\\app.asar.unpacked\\node_modules\\x'],
    ['/a/app.asar.unpacked/node_modules/x', '/a/app.asar.unpacked/node_modules/x'],
    ['/a/node_modules/x', '/a/node_modules/x'],
  ])
    assert.equal(unpacked(path), expected)
})

test('every function is where the header has it, with as many parameters', () => {
  const ours = Object.entries(ORT_API).map(([name, [place, signature]]) => [
    name,
    [place, signature.slice(signature.indexOf('(')).split(',').length],
  ])
  assert.deepEqual(Object.fromEntries(ours), HEADER)
})

for (const native of [true, false]) {
  test(`native ${native}: the conformance kit's codes and logits`, async () => {
    const file = async (/** @type {string} */ path) => {
      const bytes = await readFile(join(KIT, path))
      if (path !== 'cases.json') return bytes
      const { cases } = JSON.parse(bytes.toString())
      const kept = cases.flatMap((/** @type {any} */ one) => {
        const bundles = one.bundles.filter((/** @type {string} */ name) => name !== 'standard')
        return ['logits', 'generate', 'continue'].includes(one.do) && bundles.length ? [{ ...one, bundles }] : []
      })
      return Buffer.from(JSON.stringify({ cases: kept }))
    }
    const rows = await conformance(file, { ort, native, source: (bundle) => join(KIT, bundle) })
    assert.ok(rows.length > 20, `${rows.length} rows`)
    for (const row of rows) assert.deepEqual([row.passed, row.native], [true, native], `${row.case}: ${row.what}`)
  })
}

test('the session is as onnxruntime-node has it', async () => {
  const path = `${BUNDLE}/lm_inference.onnx`
  const lm = await open(BUNDLE)
  const ours = await lm.graph.session()
  const theirs = await ort.InferenceSession.create(path)
  for (const key of /** @type {const} */ (['inputNames', 'outputNames', 'inputMetadata', 'outputMetadata']))
    assert.deepEqual(ours[key], theirs[key])
  const { feeds } = await started(lm)
  const [a, b] = [await ours.run(feeds), await theirs.run(feeds)]
  assert.deepEqual(Object.keys(a).sort(), Object.keys(b).sort())
  for (const name of Object.keys(a)) assert.deepEqual([a[name].dims, a[name].data], [b[name].dims, b[name].data])
  assert.deepEqual(Object.keys(await ours.run(feeds, ['logits'])), ['logits'])
})

test('it is used where it can be, and says why it is not', async () => {
  const files = await bundleFiles()
  const wrong = { ...ort, env: { ...ort.env, versions: { node: '1.99.0' } } }
  const loaded = { ...koffi, config: (/** @type {any} */ set) => {
    if (set) throw new Error('Cannot change Koffi configuration once a library has been loaded')
    return { async_stack_size: 2 ** 17 }
  } } // prettier-ignore
  const fresh = { ...ort, env: { ...ort.env } } // knows no library yet
  for (const [source, options, reason] of /** @type {[any, any, RegExp][]} */ ([
    [files, {}, /the bundle is not on a disk/],
    [`${KIT}/bundles/standard`, {}, /does not write its KV cache in place/],
    [BUNDLE, { executionProviders: ['cpu'] }, /executionProviders are chosen/],
    [
      BUNDLE,
      { sessionOptions: { enableProfiling: false } },
      /sessionOptions\.enableProfiling: got false, which is not translated/,
    ],
    [BUNDLE, { sessionOptions: { intraOpNumThreads: -1 } }, /sessionOptions\.intraOpNumThreads: got -1, which is not/],
    [BUNDLE, { sessionOptions: { extra: { session: { a: 1 } } } }, /sessionOptions\.extra: got an Object/],
    [BUNDLE, { ort: wrong }, /is ONNX Runtime 1\.\d+\.\d+, onnxruntime-node is 1\.99\.0/],
    [BUNDLE, { ort: fresh, koffi: loaded }, /Cannot change Koffi configuration/],
    [BUNDLE, { ort: fresh, koffi: { ...koffi, version: '3.3.3' } }, /koffi: got version 3\.3\.3, expected 3\.3\.4/],
    [BUNDLE, { ort: fresh, koffi: {} }, /koffi: got version undefined/],
    [BUNDLE, { ort: { ...ort, env: {} } }, /ort is not onnxruntime-node/],
  ])) {
    const model = await MusicGen.load(source, { ort, hashes: false, ...options }).catch((error) => error.message)
    assert.ok(model.lm?.native === false || /sessionOptions|intraOp/.test(model), String(model)) // the binding's words
    await assert.rejects(MusicGen.load(source, { ort, hashes: false, ...options, native: true }), reason)
  }
  assert.equal((await open(BUNDLE, { native: undefined })).native, true)
  assert.equal((await open(BUNDLE, { native: false })).native, false)
  assert.equal((await open(BUNDLE, { koffi: await import('koffi') })).native, true)
  await assert.rejects(open(BUNDLE, { native: 1 }), /native: got 1, expected true or false/)
  await assert.rejects(open(BUNDLE, { koffi: 'koffi' }), /koffi: got "koffi", expected an object/)
})

test('without koffi, onnxruntime-node runs the model', async () => {
  const { _load } = /** @type {any} */ (Module)
  const load = (/** @type {any} */ native) => MusicGen.load(BUNDLE, { ort: { ...ort, env: { ...ort.env } }, native })
  try {
    Object.assign(Module, {
      _load: (/** @type {string} */ name, /** @type {any[]} */ ...more) => {
        if (name === 'koffi') throw new Error("Cannot find module 'koffi'\nRequire stack:")
        return _load(name, ...more)
      },
    })
    assert.equal((await load(undefined)).lm.native, false)
    await assert.rejects(
      load(true),
      /native: cannot run here: koffi is not there \(Cannot find module 'koffi'\); install it/,
    )
  } finally {
    Object.assign(Module, { _load })
  }
  assert.equal((await load(undefined)).lm.native, true)
})

test('session options are those of the session', async () => {
  const sessionOptions = /** @type {any} */ ({
    intraOpNumThreads: 3,
    interOpNumThreads: 1,
    graphOptimizationLevel: 'extended',
    executionMode: 'sequential',
    enableCpuMemArena: false,
    enableMemPattern: true,
    logId: 'id',
    logVerbosityLevel: 2,
    extra: { session: { intra_op: { allow_spinning: '0' } } },
  })
  const lm = await open(BUNDLE, { sessionOptions })
  const api = /** @type {any} */ (lm.graph.native)
  const { call } = api
  /** @type {any[][]} */
  const calls = []
  api.call = (/** @type {any[]} */ ...given) => {
    calls.push(given.toSpliced(1, 1)) // the options that they are set in
    call.apply(api, given)
  }
  await lm.graph.session().finally(() => (api.call = call))
  assert.deepEqual(calls.slice(1, 11), [
    ['SetSessionLogSeverityLevel', 3],
    ['SetIntraOpNumThreads', 3],
    ['SetInterOpNumThreads', 1],
    ['SetSessionGraphOptimizationLevel', 2],
    ['SetSessionExecutionMode', 0],
    ['DisableCpuMemArena'],
    ['EnableMemPattern'],
    ['SetSessionLogId', 'id'],
    ['SetSessionLogVerbosityLevel', 2],
    ['AddSessionConfigEntry', 'session.intra_op.allow_spinning', '0'],
  ])
})

test('wrong feeds and fetches are errors, and the session goes on', async () => {
  const lm = await open(BUNDLE)
  const { decoder, session, call, feeds, fetches } = await started(lm)
  const { Tensor } = ort
  const whole = (/** @type {number[]} */ values, /** @type {number[]} */ dims) =>
    new Tensor('int64', BigInt64Array.from(values, BigInt), dims)
  const [past, present] = ['past_key_values.0.key', 'present.0.key']
  const sized = (/** @type {object} */ sizes) => lm.graph.zeros(past, { ...decoder.sizes, ...sizes })
  const { codes, ...missing } = feeds
  const { length: K } = lm.delays
  const shared = new Float32Array(new SharedArrayBuffer(4 * K))
  const resizable = new Float32Array(new /** @type {any} */ (ArrayBuffer)(4 * K, { maxByteLength: 64 }))
  for (const [change, fetched, message] of /** @type {[any, any, RegExp][]} */ ([
    [missing, fetches, /inputs: got none for codes, expected codes, position/],
    [{ ...feeds, more: codes }, fetches, /inputs: got more, expected/],
    [feeds, { ...fetches, more: null }, /outputs: got more, expected/],
    [feeds, {}, /outputs: got none/],
    [{ ...feeds, codes: null }, fetches, /codes: got null, expected a tensor on cpu/],
    [{ ...feeds, codes: [1] }, fetches, /codes: got undefined on undefined, expected a tensor/],
    [feeds, { ...fetches, [present]: [1] }, /present\.0\.key: got undefined on undefined/],
    [{ ...feeds, codes: new Tensor('string', ['a'], [1]) }, fetches, /codes: got string on cpu/],
    [{ ...feeds, codes: feeds.uniform }, fetches, /Unexpected input data type/],
    [{ ...feeds, codes: whole([1], [1]) }, fetches, /Invalid rank for input: codes/],
    [{ ...feeds, codes: whole(Array(K).fill(99_999), [1, K, 1]) }, fetches, /indices element out of data bounds/],
    [{ ...feeds, codes: whole(Array(2 * K).fill(0), [2, K, 1]) }, fetches, /batch_size/],
    [{ ...feeds, position: whole([1e9], feeds.position.dims) }, fetches, /seqlens_k/],
    [{ ...feeds, position: whole([-9], feeds.position.dims) }, fetches, /must be positive/],
    [{ ...feeds, [past]: sized({ capacity: 3 }) }, fetches, /past_key/],
    [feeds, { ...fetches, [present]: sized({ capacity: 3 }) }, /GroupQueryAttention/],
    [feeds, { ...fetches, [present]: sized({ rows: 3 }) }, /GroupQueryAttention/],
    [feeds, { ...fetches, [present]: whole([1], [1]) }, /Unexpected output data type/],
    [{ ...feeds, uniform: new Tensor('float32', shared, [1, K]) }, fetches, /uniform: got memory that is shared/],
    [
      { ...feeds, uniform: new Tensor('float32', resizable, [1, K]) },
      fetches,
      /uniform: got memory that is .*resizable/,
    ],
  ])) {
    await assert.rejects(session.run(change, fetched), (error) => error instanceof Error && message.test(error.message))
  }
  await call()
  await lm.graph.release()
  await assert.rejects(session.run(feeds, fetches), /has been released/)
  await call() // the graph opens another session
})

test('arrays that were transferred are refused', async () => {
  const lm = await open(BUNDLE)
  const { call, session, feeds, fetches } = await started(lm)
  const [tensor] = Object.values(feeds).filter(({ data }) => data.byteLength > 1000)
  const running = session.run(feeds, fetches)
  const moved = structuredClone(tensor.data.buffer, { transfer: [tensor.data.buffer] }) // kept: it is still written to
  await assert.rejects(running, /got 0 bytes, expected \d+; was its ArrayBuffer transferred\?/)
  await assert.rejects(call(), /got 0 bytes, expected \d+/)
  assert.ok(moved.byteLength > 1000)
  await (await started(lm)).call()
})

test('runs at a time, and a session that is released in the middle of them', async () => {
  const lm = await open(BUNDLE)
  const [one, other] = [await started(lm), await started(lm)]
  const { session, feeds, fetches } = one
  const running = [session.run(feeds, fetches), session.run(other.feeds, other.fetches)]
  await assert.rejects(session.run(feeds, fetches), /a run writes to these outputs already/)
  await lm.graph.release()
  for (const { logits, next_codes } of await Promise.all(running)) assert.ok(logits ?? next_codes)
  assert.equal(session.bindings.size, 0)
})

test('a graph that ONNX Runtime cannot load is an error in its words', async () => {
  const broken = join(folder, 'broken')
  await cp(BUNDLE, broken, { recursive: true })
  await writeFile(
    join(broken, 'lm_inference.onnx'),
    Buffer.alloc((await readFile(`${BUNDLE}/lm_inference.onnx`)).length),
  )
  for (const native of [true, false]) {
    await assert.rejects(MusicGen.load(broken, { ort, hashes: false, native }), {
      name: 'BundleError',
      message: /lm_inference\.onnx: ONNX Runtime cannot load it: /,
    })
  }
})

test('the event loop goes on while a prompt is read', async () => {
  const lm = await open(BUNDLE)
  const [rows, columns] = [8, 1000]
  const decoder = await lm.decoder({ batch: rows, capacity: columns })
  const codes = Array.from({ length: rows }, () => lm.delays.map(() => new Int32Array(columns)))
  await lm.graph.session()
  let ticks = 0
  const timer = setInterval(() => ticks++, 1)
  await decoder.call(codes, new Float32Array(rows * lm.codebooks))
  clearInterval(timer)
  assert.ok(ticks > 3, `${ticks} ticks`)
})

test('the event loop goes on while audio is encoded and decoded', async () => {
  const codec = new Codec(await Manifest.open(BUNDLE, { ort, native: true }))
  /** @template T @param {() => Promise<T>} run @returns {Promise<T>} */
  const watched = async (run) => {
    let ticks = 0
    const timer = setInterval(() => ticks++, 1)
    const result = await run()
    clearInterval(timer)
    assert.ok(ticks > 3, `${ticks} ticks`)
    return result
  }
  await codec.decode(await codec.encode([new Float32Array(codec.hop)])) // opens the sessions
  const codes = await watched(() => codec.encode([new Float32Array(300 * codec.sampleRate)]))
  const part = codes.map((row) => row.subarray(0, 400)) // decoded in one run
  await watched(() => codec.decode(part))
})

test('any number of calls at a time, and files can be read beside them', async () => {
  const codec = new Codec(await Manifest.open(BUNDLE, { ort, native: true }))
  const short = Array.from({ length: codec.channels }, () => new Float32Array(codec.hop).fill(0.1))
  const [expected, ...others] = await Promise.all(Array.from({ length: 300 }, () => codec.encode(short)))
  for (const codes of others) assert.deepEqual(codes, expected)

  const long = Array.from({ length: codec.channels }, () => new Float32Array(120 * codec.sampleRate))
  let ended = 0
  const encoding = [1, 2, 3, 4, 5].map(() => codec.encode(long).then(() => ended++))
  await readFile(join(BUNDLE, 'manifest.json'))
  assert.equal(ended, 0)
  await Promise.all(encoding)
})

test('300 decoders leave nothing behind', async () => {
  const lm = await open(BUNDLE)
  const uniform = new Float32Array(lm.codebooks)
  const session = /** @type {any} */ (await lm.graph.session())
  const some = async (/** @type {number} */ decoders) => {
    for (let i = 0; i < decoders; i++) {
      const decoder = await lm.decoder({ capacity: 3000 })
      await decoder.call([lm.delays.map(() => Int32Array.of(1))], uniform)
      if (i % 25 === 24) await collect()
    }
    await collect()
    return process.memoryUsage().rss / 1e6
  }
  const first = await some(50)
  const last = await some(300)
  assert.ok(session.bindings.size <= 1, `${session.bindings.size} bindings`)
  assert.ok(last - first < 50, `${first} MB, then ${last}`) // one decoder has 2.3 MB of caches
})

test('workers generate at a time; terminated in the middle of a run, they leave no session', async () => {
  const count = () => (existsSync('/proc/self/task') ? readdirSync('/proc/self/task').length : 0)
  await collect() // sessions of other tests
  const before = count()
  for (let i = 0; i < 4; i++) {
    const workers = [1, 2].map(() => new Worker(here('native_run.js')))
    await Promise.all(workers.map((worker) => once(worker, 'message')))
    await Promise.all(workers.map((worker) => worker.terminate()))
  }
  assert.ok(count() - before < 8, `${before} threads, then ${count()}`) // each session has 3
})

for (const [how, status] of /** @type {const} */ ([
  ['exit', 7],
  ['throw', 1],
])) {
  test(`a process that ends in the middle of a run, by ${how}, does not crash`, () => {
    const done = spawnSync(process.execPath, [here('native_run.js'), how], { encoding: 'utf8', timeout: 60_000 })
    assert.deepEqual([done.status, done.signal], [status, null], done.stderr)
  })
}
