/** Sound in and out: picked, recorded, played while it is generated, shared. */

import { encodeWav } from 'clean-lm'
import { File, Paths } from 'expo-file-system'
import { shareAsync } from 'expo-sharing'
import { AudioContext, AudioManager, AudioRecorder, decodeAudioData } from 'react-native-audio-api'

/** @typedef {{ audio: Float32Array[], sampleRate: number, name: string }} Loop one array a channel */
/** @typedef {{ end: () => Promise<Loop> }} Recording */

const RATE = 44100 // that is asked for; the device may record at another one
const LEAD = 0.2 // seconds before the first chunk sounds

/** Have the user pick a file, and decode it; null where none is picked. @returns {Promise<Loop | null>} */
export async function pickLoop() {
  const { result } = await File.pickFileAsync({ mimeTypes: 'audio/*' })
  if (!result) return null
  const sound = await decodeAudioData(await result.arrayBuffer())
  const audio = Array.from({ length: sound.numberOfChannels }, (_, c) => sound.getChannelData(c).slice())
  return { audio, sampleRate: sound.sampleRate, name: result.name }
}

/**
 * Record in mono. Throws where the microphone is not allowed.
 *
 * @returns {Promise<Recording>}
 */
export async function startRecording() {
  if ((await AudioManager.requestRecordingPermissions()) !== 'Granted') throw new Error('the microphone is not allowed')
  AudioManager.setAudioSessionOptions({ iosCategory: 'playAndRecord', iosOptions: ['defaultToSpeaker'] })
  const recorder = new AudioRecorder()
  /** @type {Float32Array[]} */
  const parts = []
  let sampleRate = RATE
  succeed(
    recorder.onAudioReady({ sampleRate: RATE, bufferLength: 4096, channelCount: 1 }, ({ buffer, numFrames }) => {
      sampleRate = buffer.sampleRate
      parts.push(buffer.getChannelData(0).slice(0, numFrames))
    }),
  )
  succeed(await recorder.start())
  const end = async () => {
    await recorder.stop()
    recorder.clearOnAudioReady()
    const length = parts.reduce((sum, part) => sum + part.length, 0)
    if (!length) throw new Error('nothing was recorded')
    return { audio: [joined(parts, length)], sampleRate, name: 'recording' }
  }
  return { end }
}

/** @param {{ status: 'success' } | { status: 'error', message: string }} result */
function succeed(result) {
  if (result.status === 'error') throw new Error(result.message)
}

/** @param {Float32Array[]} parts @param {number} length */
function joined(parts, length) {
  const whole = new Float32Array(length)
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

/** Plays chunks one after the other as they come, and keeps them. */
export class Player {
  /** @param {number} sampleRate */
  constructor(sampleRate) {
    this.sampleRate = sampleRate
    this.context = new AudioContext({ sampleRate })
    this.next = 0 // seconds of the context's clock
    /** @type {Float32Array[][]} */
    this.chunks = []
  }

  /** @param {Float32Array[]} channels */
  play(channels) {
    this.chunks.push(channels)
    const { context, sampleRate } = this
    const buffer = context.createBuffer(channels.length, channels[0].length, sampleRate)
    channels.forEach((channel, c) => buffer.copyToChannel(new Float32Array(channel), c))
    const source = context.createBufferSource()
    source.buffer = buffer
    source.connect(context.destination)
    this.next = Math.max(this.next, context.currentTime + LEAD) // after the last chunk, or soon, where that has ended
    source.start(this.next)
    this.next += buffer.duration
  }

  /** Be silent, and free the device. */
  async close() {
    await this.context.close()
  }

  /** Share what was played as a WAV file. */
  async share() {
    const [first] = this.chunks
    if (!first) throw new Error('nothing was generated')
    const audio = first.map((_, c) => {
      const parts = this.chunks.map((chunk) => chunk[c])
      return joined(
        parts,
        parts.reduce((sum, { length }) => sum + length, 0),
      )
    })
    const file = new File(Paths.cache, 'continued.wav')
    await file.write(encodeWav(audio, this.sampleRate))
    await shareAsync(file.uri, { mimeType: 'audio/wav' })
  }
}
