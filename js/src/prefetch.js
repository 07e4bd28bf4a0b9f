/**
 * Pull items from an iterator without waiting for the consumer: a player plays one chunk while the next ones are
 * generated. When the consumer stops, so does the iterator, after the item it is working on.
 *
 * @template T
 * @param {AsyncIterable<T>} items
 * @returns {AsyncGenerator<T, void, void>}
 */
export async function* prefetch(items) {
  /** @type {T[]} */
  const ready = []
  let [closed, finished] = [false, false]
  /** @type {unknown} */
  let failure
  let wake = () => {}
  const producer = (async () => {
    try {
      for await (const item of items) {
        if (closed) return
        ready.push(item)
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
      if (ready.length) yield /** @type {T} */ (ready.shift())
      else if (failure) throw failure
      else if (finished) return
      else await new Promise((resolve) => (wake = () => resolve(undefined)))
    }
  } finally {
    closed = true
    await producer
  }
}
