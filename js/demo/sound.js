/** Reads audio from files and the microphone: one Float32Array a channel, and the sample rate. */

import { decodeWav } from '../src/wav.js'

const RATE = 44100 // to which browsers resample what is not a WAV file

/** @typedef {{ name: string, audio: Float32Array[], sampleRate: number }} Loop */

/**
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<Loop>}
 */
export async function readSound(file, name) {
  const content = await file.arrayBuffer()
  const { audio, sampleRate } = await decoded(content).catch(() => {
    throw new TypeError(`This browser cannot read “${name}” as audio. Most browsers read WAV, MP3, M4A, OGG and FLAC.`)
  })
  const seconds = audio[0].length / sampleRate
  if (!(seconds >= 0.1)) throw new RangeError(`“${name}” is ${seconds.toFixed(2)} s long: choose one of 0.1 s or more.`)
  return { name, audio, sampleRate }
}

/** Decode WAV at its own rate, everything else with the browser's decoder. @param {ArrayBuffer} content */
async function decoded(content) {
  try {
    return decodeWav(new Uint8Array(content))
  } catch {
    const buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(content)
    const audio = Array.from({ length: buffer.numberOfChannels }, (_, c) => buffer.getChannelData(c))
    return { audio, sampleRate: buffer.sampleRate }
  }
}

/** Records the microphone, without the processing that browsers do for calls. */
export class Recorder {
  /** @param {MediaStream} stream */
  constructor(stream) {
    this.stream = stream
    this.recorder = new MediaRecorder(stream)
    /** @type {Blob[]} */
    this.parts = []
    this.recorder.ondataavailable = ({ data }) => this.parts.push(data)
    this.recorder.start(250)
    this.started = performance.now()
  }

  static async start() {
    if (!navigator.mediaDevices || !globalThis.MediaRecorder) {
      throw new TypeError('This page cannot record: browsers allow it over https and from localhost only.')
    }
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false }
    const stream = await navigator.mediaDevices.getUserMedia({ audio }).catch((error) => {
      throw new TypeError(
        `The microphone is not available: ${error.message || error.name}. Allow it for this page, or drop a file.`,
      )
    })
    return new Recorder(stream)
  }

  get seconds() {
    return (performance.now() - this.started) / 1000
  }

  /** @returns {Promise<Loop>} */
  async stop() {
    const stopped = new Promise((resolve) => (this.recorder.onstop = resolve))
    this.recorder.stop()
    await stopped
    this.stream.getTracks().forEach((track) => track.stop())
    return readSound(new Blob(this.parts, { type: this.recorder.mimeType }), 'Recording')
  }
}

/**
 * The first or last seconds of a loop.
 *
 * @param {Loop} loop
 * @param {number} seconds
 * @param {boolean} first
 * @returns {{ from: number, to: number }} samples
 */
export function promptOf({ audio, sampleRate }, seconds, first) {
  const [samples, wanted] = [audio[0].length, Math.round(seconds * sampleRate)]
  if (wanted >= samples) return { from: 0, to: samples }
  return first ? { from: 0, to: wanted } : { from: samples - wanted, to: samples }
}
