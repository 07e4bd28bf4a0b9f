/** The takes' waveforms above each other, on the time axis of the shown one, so that one playhead runs over all. */

import { drawWaveform } from './waveform.js'

/** @typedef {import('./takes.js').Take} Take */

export class Lanes {
  /**
   * @param {HTMLElement} list
   * @param {(take: Take, part: number | null) => void} choose part: where on the time axis, 0 .. 1; null: with the
   *   keyboard, where the player is
   */
  constructor(list, choose) {
    this.list = list
    this.choose = choose
    /** @type {Map<Take, HTMLElement>} */
    this.rows = new Map()
  }

  /** @param {Take} take */
  add(take) {
    const template = /** @type {HTMLTemplateElement} */ (document.getElementById('lane'))
    const row = /** @type {HTMLElement} */ (template.content.cloneNode(true)).querySelector('li')
    const button = row?.querySelector('button')
    if (!row || !button) return
    row.querySelectorAll('span')[0].textContent = String(take.number)
    button.setAttribute('aria-label', `Take ${take.number}, seed ${take.seed}, at this position`)
    button.addEventListener('click', ({ detail, clientX }) => {
      const { left, width } = row.getBoundingClientRect()
      this.choose(take, detail ? (clientX - left) / width : null)
    })
    this.rows.set(take, row)
    this.list.prepend(row) // newest first, as in the list of takes
  }

  /** @param {Take} take */
  remove(take) {
    this.rows.get(take)?.remove()
    this.rows.delete(take)
  }

  /** @param {Take | null} shown null: something else is shown, which is not in step with the takes */
  draw(shown) {
    this.list.hidden = !shown || this.rows.size < 2
    if (!shown || this.list.hidden) return
    const seconds = shown.samples[0].length / shown.sampleRate
    for (const [take, row] of this.rows) {
      const { sampleRate, samples, filled, seam } = take
      row.querySelector('button')?.setAttribute('aria-current', String(take === shown))
      const canvas = row.querySelector('canvas')
      if (!canvas) continue
      const visible = samples.map((channel) => channel.subarray(0, Math.round(seconds * sampleRate)))
      canvas.style.width = `${(100 * visible[0].length) / sampleRate / seconds}%`
      drawWaveform(canvas, { samples: visible, filled: Math.min(filled, visible[0].length), from: seam, to: Infinity })
    }
  }
}
