/**
 * What an iterator gives, computed without waiting for whoever takes it: a player hears one chunk while the next ones
 * are made. Ends the iterator where whoever takes it ends.
 *
 * @template T
 * @param {AsyncIterable<T>} items
 * @returns {AsyncGenerator<T, void, void>}
 */
export async function* ahead(items) {
  /** @type {T[]} */
  const computed = []
  let [closed, finished] = [false, false]
  /** @type {unknown} */
  let failure
  let wake = () => {}
  const work = (async () => {
    try {
      for await (const item of items) {
        if (closed) return
        computed.push(item)
        wake()
      }
    } catch (error) {
      failure = error
    } finally {
      finished = true
      wake()
    }
  })()
  try {
    while (true) {
      if (computed.length) yield /** @type {T} */ (computed.shift())
      else if (failure) throw failure
      else if (finished) return
      else await new Promise((resolve) => (wake = () => resolve(undefined)))
    }
  } finally {
    closed = true
    await work
  }
}
