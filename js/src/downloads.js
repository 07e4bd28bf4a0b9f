/** The bodies of responses, piece by piece. */

const PIECE = 2 ** 26 // bytes

/** Bytes at the start of a larger array. @param {Uint8Array} bytes @param {number} size */
export function enlarged(bytes, size) {
  const larger = new Uint8Array(size)
  larger.set(bytes)
  return larger
}

/**
 * The body of a response in parts, as they come; the download ends where no more are asked for.
 *
 * @param {Response} response
 * @param {(error: Error) => unknown} broken what to throw where it breaks off
 * @returns {AsyncGenerator<Uint8Array, void, void>}
 */
export async function* partsOf(response, broken) {
  const fail = (/** @type {Error} */ error) => {
    throw broken(error)
  }
  if (!response.body) {
    yield new Uint8Array(await response.arrayBuffer().catch(fail))
    return
  }
  const reader = response.body.getReader()
  const next = () => reader.read().catch(fail)
  try {
    for (let part = await next(); !part.done; part = await next()) yield part.value
  } finally {
    reader.cancel().catch(() => {})
  }
}

/** Bytes as a stream: a Response of 2 GB fails in many engines. @param {Uint8Array} bytes */
export function streamOf(bytes) {
  let at = 0
  return new ReadableStream({
    pull(controller) {
      if (at === bytes.length) return controller.close()
      controller.enqueue(bytes.slice(at, (at = Math.min(at + PIECE, bytes.length))))
    },
  })
}
