/** The page's elements, and the messages it shows. */

import { explain } from './machine.js'

/** @template {HTMLElement} [T=HTMLElement] @param {string} id @returns {T} */
export const $ = (id) => /** @type {T} */ (document.getElementById(id))
/** @param {string} id */
export const field = (id) => /** @type {HTMLInputElement} */ ($(id))
/** @param {string} id */
export const select = (id) => /** @type {HTMLSelectElement} */ ($(id))
/** the query of the page's URL */
export const url = new URLSearchParams(location.search)
/** matches where the user prefers reduced motion */
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

/** Show progress, 0 .. 1; null: nothing is running. @param {number | null} part @param {string} text */
export function working(part, text) {
  $('working').hidden = part === null
  $('progress-text').textContent = text
  if (part !== null) field('progress').value = /** @type {any} */ (part)
}
