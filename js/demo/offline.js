/** Keep the page for offline use: register the service worker, and cache what was loaded before it ran. */
export async function keepPage() {
  if (!navigator.serviceWorker) return
  try {
    await navigator.serviceWorker.register(new URL('../sw.js', import.meta.url))
    const controlled = new Promise((resolve) =>
      navigator.serviceWorker.addEventListener('controllerchange', resolve, { once: true }),
    )
    if (navigator.serviceWorker.controller) return
    await Promise.race([controlled, new Promise((resolve) => setTimeout(resolve, 3000))])
    const cache = await caches.open('clean-lm-page')
    const loaded = performance.getEntriesByType('resource').map(({ name }) => name)
    await cache.addAll([
      location.href.split('?')[0],
      ...new Set(loaded.filter((name) => new URL(name).origin === location.origin)),
    ])
  } catch (error) {
    console.warn('not kept for offline use:', error) // private windows have no caches; the page works all the same
  }
}
