/** The list of takes: each is played, compared, kept as a file or thrown away. */

/**
 * @typedef {import('./player.js').Sounding & TakeAbout} Take
 * @typedef {object} TakeAbout
 * @property {number} number
 * @property {number} seed
 * @property {string} text
 * @property {string} loop the name of what it continues
 * @property {number} seam the first sample that is generated
 * @property {string} runs backend and variant
 * @property {number} ms of a column
 * @property {number} realTime seconds of new sound in a second, reading the loop included
 * @property {Int32Array[] | null} codes of all frames, one array a codebook, once it is complete
 * @property {string} state "generating", "done" or "stopped"
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

/** @param {Take} take */
export function aboutTake({ filled, sampleRate, realTime, runs, state, text }) {
  const length = `${(filled / sampleRate).toFixed(1)} s`
  const pace = realTime ? `${realTime.toFixed(realTime < 1 ? 2 : 1)}× real time` : ''
  return [text ? `“${text}”` : '', state === 'done' ? length : `${state}, ${length}`, pace, runs].filter(Boolean).join(' · ')
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
    const row = document.createElement('li')
    const name = `take ${take.number}`
    row.innerHTML = `
      <button type="button" class="round" data-do="play"><svg viewBox="0 0 24 24" aria-hidden="true"><path class="play" d="M8 5v14l11-7z"/><path class="pause" d="M7 5h4v14H7zM13 5h4v14h-4z"/></svg></button>
      <div class="about"><strong></strong><p class="small"></p></div>
      <div class="tools">
        <button type="button" data-do="A" aria-label="Compare ${name} as A">A</button>
        <button type="button" data-do="B" aria-label="Compare ${name} as B">B</button>
        <button type="button" data-do="download" aria-label="Download ${name}"><svg viewBox="0 0 24 24" aria-hidden="true"><path d="M11 4h2v8l3-3 1.4 1.4L12 16l-5.4-5.6L8 9l3 3zM5 18h14v2H5z"/></svg></button>
        <button type="button" data-do="remove" class="quiet" aria-label="Remove ${name}"><svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6.4 5 12 10.6 17.6 5 19 6.4 13.4 12l5.6 5.6-1.4 1.4-5.6-5.6L6.4 19 5 17.6l5.6-5.6L5 6.4z"/></svg></button>
      </div>`
    row.addEventListener('click', (event) => {
      const button = /** @type {HTMLElement} */ (event.target).closest('button')
      const what = button?.dataset.do
      if (what === 'A' || what === 'B') this.actions.assign(take, what)
      else if (what === 'play' || what === 'download' || what === 'remove') this.actions[what](take)
    })
    this.rows.set(take, row)
    this.list.prepend(row) // the newest one first
  }

  /** @param {Take} take */
  remove(take) {
    this.rows.get(take)?.remove()
    this.rows.delete(take)
  }

  /**
   * @param {unknown} current what is shown above
   * @param {boolean} playing
   * @param {Record<Slot, Take | null>} slots
   */
  update(current, playing, slots) {
    for (const [take, row] of this.rows) {
      const heard = playing && take === current
      row.setAttribute('aria-current', String(take === current))
      row.classList.toggle('playing', heard)
      const [title, about] = row.querySelectorAll('strong, p')
      title.textContent = `Take ${take.number}, seed ${take.seed}`
      about.textContent = aboutTake(take)
      about.setAttribute('title', about.textContent)
      for (const button of row.querySelectorAll('button')) {
        const what = button.dataset.do
        if (what === 'play') button.setAttribute('aria-label', `${heard ? 'Pause' : 'Play'} take ${take.number}`)
        if (what === 'A' || what === 'B') button.setAttribute('aria-pressed', String(slots[what] === take))
        if (what === 'remove') button.disabled = take.state === 'generating'
      }
    }
  }
}
