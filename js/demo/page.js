/** The page's elements, and what it says. */

import { explain } from './machine.js'

/** @template {HTMLElement} [T=HTMLElement] @param {string} id @returns {T} */
export const $ = (id) => /** @type {T} */ (document.getElementById(id))
/** @param {string} id */
export const field = (id) => /** @type {HTMLInputElement} */ ($(id))
/** @param {string} id */
export const select = (id) => /** @type {HTMLSelectElement} */ ($(id))
/** what the address says */
export const url = new URLSearchParams(location.search)
/** whether motion is unwelcome */
export const calm = matchMedia('(prefers-reduced-motion: reduce)')

/** @param {unknown} error */
export function complain(error) {
  $('alert-text').textContent = explain(error)
  $('alert').hidden = false
}

/** @param {string} text */
export const say = (text) => void ($('status').textContent = text)

export const megabytes = (/** @type {number} */ bytes) =>
  bytes < 1e7 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.round(bytes / 1e6)} MB`

/** @param {unknown} error */
export function complainUnlessStopped(error) {
  if (/** @type {Error} */ (error)?.name === 'AbortError') return
  complain(error)
  say('')
}

/** How far it is; null: nothing is under way. @param {number | null} part @param {string} text */
export function working(part, text) {
  $('working').hidden = part === null
  $('progress-text').textContent = text
  if (part !== null) field('progress').value = /** @type {any} */ (part)
}
