/** Sound from files and the microphone: one Float32Array a channel, and its rate. */

import { decodeWav } from '../src/audio.js'

const RATE = 44100 // of what the browser decodes, where a file is no WAV

/** @typedef {{ name: string, audio: Float32Array[], sampleRate: number }} Loop */

/**
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<Loop>}
 */
export async function readSound(file, name) {
  const content = await file.arrayBuffer()
  const { audio, sampleRate } = await decoded(content).catch(() => {
    throw new TypeError(`“${name}” is not a sound that this browser can read. WAV, MP3, M4A, OGG and FLAC usually are.`)
  })
  const seconds = audio[0].length / sampleRate
  if (!(seconds >= 0.1))
    throw new RangeError(`“${name}” has ${seconds.toFixed(2)} s of sound: a tenth of a second is the least.`)
  return { name, audio, sampleRate }
}

/** WAV as it is, at its own rate; the rest as the browser decodes it. @param {ArrayBuffer} content */
async function decoded(content) {
  try {
    return decodeWav(new Uint8Array(content))
  } catch {
    const buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(content)
    const audio = Array.from({ length: buffer.numberOfChannels }, (_, c) => buffer.getChannelData(c))
    return { audio, sampleRate: buffer.sampleRate }
  }
}

/** A recording of the microphone, as it sounds: without what makes calls clearer. */
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
      throw new TypeError('This page cannot record: browsers allow it on https or localhost alone.')
    }
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false }
    const stream = await navigator.mediaDevices.getUserMedia({ audio }).catch((error) => {
      throw new TypeError(
        `The microphone cannot be used: ${error.message || error.name}. Allow it for this page, or drop a file.`,
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
