/**
 * Service worker for offline use: keeps what the page has loaded, and answers with it where the server does not.
 *
 * Bundles' files are not kept here: the page caches them by their SHA-256 (Files in src/files.js), so that unchanged ones
 * are not downloaded again.
 */

const CACHE = 'clean-lm-page'
const worker = /** @type {any} */ (self) // a ServiceWorkerGlobalScope, whose types conflict with a page's

worker.addEventListener('install', () => worker.skipWaiting())
worker.addEventListener('activate', (/** @type {any} */ event) => event.waitUntil(worker.clients.claim()))
worker.addEventListener('fetch', (/** @type {any} */ event) => {
  const { request } = event
  const url = new URL(request.url)
  const isBundle = /\/bundles\/[^/]+\/(?!manifest\.json$)/.test(url.pathname)
  if (request.method === 'GET' && url.origin === location.origin && !isBundle) event.respondWith(answer(request, event))
})

/** @param {Request} request @param {any} event */
async function answer(request, event) {
  const cache = await caches.open(CACHE)
  try {
    const response = await fetch(request)
    if (response.ok) event.waitUntil(cache.put(request, response.clone()).catch(() => {})) // the disk may be full
    return response
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: request.mode === 'navigate' })
    if (kept) return kept
    throw error
  }
}
