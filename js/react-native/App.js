/** Two screens: choose a variant by its figures; pick or record a loop, have it continued, play and share it. */

import { useRef, useState } from 'react'
import { Pressable, SafeAreaView, ScrollView, StyleSheet, Text, TextInput } from 'react-native'

import { downloadFiles, downloadManifest, loadModel, ortVersion } from './bundle.js'
import { figuresOf } from './figures.js'
import { pickLoop, Player, startRecording } from './sound.js'

/**
 * @typedef {import('clean-lm').MusicGen} MusicGen
 * @typedef {import('./figures.js').Figures} Figures
 * @typedef {(text: string) => void} Say
 */

const SECONDS = 20 // in all, the loop among them
const PROMPT = 6 // seconds of the loop's end that are continued
const gigabytes = (/** @type {number} */ bytes) => `${(bytes / 1e9).toFixed(2)} GB`
const percent = (/** @type {number} */ done, /** @type {number} */ total) => `${Math.floor((100 * done) / total)} %`

export function App() {
  const [model, setModel] = useState(/** @type {MusicGen | null} */ (null))
  const [status, say] = useState('')
  return (
    <SafeAreaView style={styles.screen}>
      <ScrollView keyboardShouldPersistTaps="handled">
        <Text style={styles.title}>clean_lm</Text>
        {model ? <Continue model={model} say={say} /> : <Choose onModel={setModel} say={say} />}
        <Text>{status}</Text>
      </ScrollView>
    </SafeAreaView>
  )
}

/** The first screen: the variants of a bundle and what they need. @param {{ onModel: (model: MusicGen) => void, say: Say }} props */
function Choose({ onModel, say }) {
  const [url, setUrl] = useState('https://')
  const [tree, setTree] = useState(/** @type {import('./figures.js').Tree | null} */ (null))
  const [isBusy, run] = useTask(say)
  const look = () => run('Reading manifest.json', async () => setTree(await downloadManifest(url)))
  const load = (/** @type {Figures} */ figures) =>
    run('Downloading', async () => {
      if (!tree) return
      await downloadFiles(url, tree, figures.files, (done, total) => say(`Downloading: ${percent(done, total)}`))
      say('Loading')
      onModel(await loadModel(url, figures.variant))
      say(`Ready. ONNX Runtime ${ortVersion()}`)
    })
  return (
    <>
      <TextInput style={styles.input} value={url} onChangeText={setUrl} autoCapitalize="none" inputMode="url" />
      <Button title="Look at the bundle" disabled={isBusy} onPress={look} />
      {tree &&
        figuresOf(tree).map((figures) => (
          <Pressable
            key={figures.variant}
            style={styles.card}
            disabled={isBusy || figures.refusal !== null}
            onPress={() => load(figures)}
          >
            <Text style={styles.name}>{figures.variant}</Text>
            <Text>{describe(figures)}</Text>
          </Pressable>
        ))}
    </>
  )
}

/** @param {Figures} figures */
function describe({ refusal, download, weights, text, cache, guided }) {
  if (refusal) return `Cannot run here: ${refusal}`
  return [
    `Download ${gigabytes(download)}`,
    `Without a description: weights ${gigabytes(weights)}, KV cache ${gigabytes(cache)} at most`,
    `With one: weights ${gigabytes(weights + text)}, KV cache ${gigabytes(guided)} at most`,
  ].join('\n')
}

/** The second screen. @param {{ model: MusicGen, say: Say }} props */
function Continue({ model, say }) {
  const [loop, setLoop] = useState(/** @type {import('./sound.js').Loop | null} */ (null))
  const [description, setDescription] = useState('')
  const [recording, setRecording] = useState(/** @type {import('./sound.js').Recording | null} */ (null))
  const [isBusy, run] = useTask(say)
  const player = useRef(/** @type {Player | null} */ (null))
  const controller = useRef(new AbortController())

  const pick = () => run('Reading', async () => setLoop((await pickLoop()) ?? loop))
  const record = () =>
    run(recording ? 'Reading' : 'Recording', async () => {
      setRecording(recording ? null : await startRecording())
      if (recording) setLoop(await recording.end())
    })
  const generate = () =>
    run('Generating', async () => {
      if (!loop) return
      await player.current?.close()
      player.current = new Player(model.sampleRate)
      controller.current = new AbortController()
      const { sampleRate } = loop
      const prompt = loop.audio.map((channel) => channel.slice(-Math.round(PROMPT * sampleRate)))
      const onProgress = (/** @type {number} */ done, /** @type {number} */ total) => {
        if (done % 10 === 0) say(`Generating: ${percent(done, total)}`)
      }
      const { signal } = controller.current
      const options = { description: description || undefined, duration: SECONDS, signal, onProgress }
      for await (const chunk of model.streamContinuation(prompt, sampleRate, options)) player.current.play(chunk)
    })
  return (
    <>
      <Button title="Pick a loop" disabled={isBusy || recording !== null} onPress={pick} />
      <Button title={recording ? 'Stop recording' : 'Record a loop'} disabled={isBusy} onPress={record} />
      <Text>{loop ? `${loop.name}: ${(loop.audio[0].length / loop.sampleRate).toFixed(1)} s` : 'No loop yet'}</Text>
      {model.text && (
        <TextInput
          style={styles.input}
          value={description}
          onChangeText={setDescription}
          placeholder="Description, or nothing"
        />
      )}
      <Button title="Continue" disabled={isBusy || recording !== null || !loop} onPress={generate} />
      <Button title="Cancel" disabled={!isBusy} onPress={() => controller.current.abort(new Error('Cancelled'))} />
      <Button title="Share" disabled={isBusy} onPress={() => run('Sharing', async () => player.current?.share())} />
    </>
  )
}

/**
 * Runs one task at a time, and says what it throws.
 *
 * @param {Say} say
 * @returns {[boolean, (what: string, task: () => Promise<void>) => Promise<void>]}
 */
function useTask(say) {
  const [isBusy, setBusy] = useState(false)
  const run = async (/** @type {string} */ what, /** @type {() => Promise<void>} */ task) => {
    setBusy(true)
    say(what)
    try {
      await task()
    } catch (error) {
      say(error instanceof Error ? error.message : String(error))
    } finally {
      setBusy(false)
    }
  }
  return [isBusy, run]
}

/** @param {{ title: string, disabled: boolean, onPress: () => void }} props */
function Button({ title, disabled, onPress }) {
  return (
    <Pressable accessibilityRole="button" style={styles.button} disabled={disabled} onPress={onPress}>
      <Text style={disabled ? styles.faint : styles.label}>{title}</Text>
    </Pressable>
  )
}

const styles = StyleSheet.create({
  screen: { flex: 1, margin: 16 },
  title: { fontSize: 24, marginVertical: 12 },
  input: { borderWidth: 1, borderColor: '#888', borderRadius: 8, padding: 12, marginVertical: 8 },
  button: { backgroundColor: '#222', borderRadius: 8, padding: 14, marginVertical: 4, alignItems: 'center' },
  card: { borderWidth: 1, borderColor: '#888', borderRadius: 8, padding: 12, marginVertical: 4 },
  name: { fontWeight: 'bold' },
  label: { color: '#fff' },
  faint: { color: '#888' },
})
