/** Draws a waveform as bars, a part of it highlighted. */

const [BAR, GAP] = [3, 2] // CSS pixels

/**
 * The peak of every bar, 0 .. 1; NaN where no samples are generated yet.
 *
 * @param {Float32Array[]} samples
 * @param {number} filled
 * @param {number} bars
 */
export function peaks(samples, filled, bars) {
  const each = samples[0].length / bars
  return Float32Array.from({ length: bars }, (_, bar) => {
    const [start, end] = [Math.floor(bar * each), Math.min(filled, Math.ceil((bar + 1) * each))]
    if (start >= end) return NaN
    let peak = 0
    const stride = Math.max(1, Math.floor((end - start) / 400)) // enough to look right
    for (const channel of samples) for (let i = start; i < end; i += stride) peak = Math.max(peak, Math.abs(channel[i]))
    return Math.min(1, peak)
  })
}

/**
 * @typedef {object} Drawn
 * @property {Float32Array[]} samples
 * @property {number} filled
 * @property {number} from first highlighted sample
 * @property {number} to end of the highlighted samples
 */

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Drawn} drawn
 */
export function drawWaveform(canvas, { samples, filled, from, to }) {
  const { clientWidth: width, clientHeight: height } = canvas
  const [scale, context] = [window.devicePixelRatio || 1, canvas.getContext('2d')]
  if (!context || !width || !height) return
  canvas.width = width * scale
  canvas.height = height * scale
  context.scale(scale, scale)
  const style = getComputedStyle(canvas)
  const [plain, bright, empty] = ['--wave', '--wave-bright', '--wave-empty'].map((name) => style.getPropertyValue(name))
  const bars = Math.max(1, Math.floor(width / (BAR + GAP)))
  const found = peaks(samples, filled, bars)
  const loudest = Math.max(0.05, ...found.filter((peak) => peak > 0))
  found.forEach((peak, bar) => {
    const sample = ((bar + 0.5) * samples[0].length) / bars
    const tall = Number.isNaN(peak) ? BAR : Math.max(BAR, (peak / loudest) * (height - 4))
    context.fillStyle = Number.isNaN(peak) ? empty : sample >= from && sample < to ? bright : plain
    context.beginPath()
    context.roundRect(Math.round((bar * width) / bars), Math.round((height - tall) / 2), BAR, Math.round(tall), BAR / 2)
    context.fill()
  })
}
