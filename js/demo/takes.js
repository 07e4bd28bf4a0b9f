/** The list of takes, each with buttons to play, compare, download and remove it. */

/**
 * @typedef {import('./player.js').Playable & TakeAbout} Take
 * @typedef {object} TakeAbout
 * @property {number} number
 * @property {number} seed
 * @property {string} text
 * @property {string} loop name of the loop that it continues
 * @property {number} seam the first generated sample
 * @property {Bars | null} bars null: its length is in seconds
 * @property {string} runs backend and variant
 * @property {number} ms time of a step
 * @property {number} realTime seconds of new audio per second, including the time to read the loop
 * @property {Int32Array[] | null} codes one array a codebook; null until it is complete
 * @property {string} state "generating", "done" or "stopped"
 *
 * @typedef {object} Bars
 * @property {number} count
 * @property {number} sampleRate of the loop
 * @property {number} samples of so many bars at that rate
 *
 * @typedef {'A' | 'B'} Slot
 * @typedef {object} Actions
 * @property {(take: Take) => void} play or pause
 * @property {(take: Take, slot: Slot) => void} assign
 * @property {(take: Take) => void} download
 * @property {(take: Take) => void} remove
 */

/** @param {number} seconds */
export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`

/** @param {number} factor of real time */
export const pace = (factor) => `${factor.toFixed(factor < 1 ? 2 : 1)}×`

/** @param {Take} take */
export function aboutTake({ filled, sampleRate, bars, realTime, runs, state, text }) {
  const seconds = `${(filled / sampleRate).toFixed(1)} s`
  const length = bars && state === 'done' ? `${bars.count} bars, ${seconds}` : seconds
  return [
    text ? `“${text}”` : '',
    state === 'done' ? length : `${state}, ${length}`,
    realTime ? `${pace(realTime)} real time` : '',
    runs,
  ]
    .filter(Boolean)
    .join(' · ')
}

export class TakeList {
  /**
   * @param {HTMLElement} list
   * @param {Actions} actions
   */
  constructor(list, actions) {
    this.list = list
    this.actions = actions
    /** @type {Map<Take, HTMLElement>} */
    this.rows = new Map()
  }

  /** @param {Take} take */
  add(take) {
    const template = /** @type {HTMLTemplateElement} */ (document.getElementById('take'))
    const row = /** @type {HTMLElement} */ (template.content.cloneNode(true)).querySelector('li')
    if (!row) return
    const names = { A: 'Compare as A', B: 'Compare as B', download: 'Download', remove: 'Remove' }
    for (const [what, name] of Object.entries(names)) {
      row.querySelector(`[data-do=${what}]`)?.setAttribute('aria-label', `${name}: take ${take.number}`)
    }
    row.addEventListener('click', (event) => {
      const button = /** @type {HTMLElement} */ (event.target).closest('button')
      const what = button?.dataset.do
      if (what === 'A' || what === 'B') this.actions.assign(take, what)
      else if (what === 'play' || what === 'download' || what === 'remove') this.actions[what](take)
    })
    this.rows.set(take, row)
    this.list.prepend(row) // newest first
  }

  /** @param {Take} take */
  remove(take) {
    this.rows.get(take)?.remove()
    this.rows.delete(take)
  }

  /**
   * @param {unknown} current whose waveform is drawn
   * @param {boolean} playing
   * @param {Record<Slot, Take | null>} slots
   */
  update(current, playing, slots) {
    for (const [take, row] of this.rows) {
      const isPlaying = playing && take === current
      row.setAttribute('aria-current', String(take === current))
      row.classList.toggle('playing', isPlaying)
      const [title, about] = row.querySelectorAll('strong, p')
      title.textContent = `Take ${take.number}, seed ${take.seed}`
      about.textContent = aboutTake(take)
      about.setAttribute('title', about.textContent)
      for (const button of row.querySelectorAll('button')) {
        const what = button.dataset.do
        if (what === 'play') button.setAttribute('aria-label', `${isPlaying ? 'Pause' : 'Play'} take ${take.number}`)
        if (what === 'A' || what === 'B') button.setAttribute('aria-pressed', String(slots[what] === take))
        if (what === 'remove') button.disabled = take.state === 'generating'
      }
    }
  }
}
