#!/usr/bin/env node
/**
 * Serve the demo page, or copy its files into a folder for a static host.
 *
 *     node js/demo/serve.js --bundle build/bundle [more bundles] [--loop demo/loop.wav] [--port 8000] [--host localhost]
 *     node js/demo/serve.js --bundle build/bundle --cert cert.pem --key key.pem --host 0.0.0.0     https: for a phone
 *     node js/demo/serve.js --bundle build/bundle --out site
 *
 * Only listed files are served: those of the page's folders and of the bundles' manifests.
 */

import { createHash } from 'node:crypto'
import { readFileSync, realpathSync } from 'node:fs'
import { createServer } from 'node:http'
import { createServer as createSecureServer } from 'node:https'
import { basename, dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import send from 'send'

import { printable } from '../src/typed_json.js'
import { exportSite } from './export.js'
import { realFile, requireFile, Site } from './site.js'

/** @typedef {import('node:http').IncomingMessage} Request @typedef {import('node:http').ServerResponse} Response */

/** WASM threads need the first two; another host must send them too. */
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-cache', // browsers ask again, and get 304 where nothing changed
}

/**
 * Start the server. Throws an Error of one line if it cannot.
 *
 * @param {{ bundles: string[], loop?: string, port?: number, host?: string, https?: { cert: string, key: string } }} options
 *   port: 0 for a free one; https: files of a certificate and its key
 * @returns {Promise<{ url: string, close: () => void }>}
 */
export async function serve({ bundles, loop, port = 8000, host = 'localhost', https }) {
  const site = new Site(bundles, loop)
  const server = https ? secureServer(https) : createServer({ requireHostHeader: false })
  /** @type {import('node:http').RequestListener} */
  const listener = (request, response) => {
    setHeaders(response, HEADERS)
    answer(site.files(), request, response)
  }
  server.on('request', listener).on('checkContinue', listener).on('checkExpectation', listener)
  server.on('clientError', refuse)
  await new Promise((resolve, reject) => {
    server.once('error', (error) => reject(new Error(`cannot serve on host ${host}, port ${port}: ${error.message}`)))
    server.listen(port, host, () => resolve(undefined))
  })
  server.on('error', (error) => console.error(printable(error.message)))
  const address = /** @type {import('node:net').AddressInfo} */ (server.address())
  const close = () => {
    server.close()
    server.closeAllConnections()
  }
  const name = host.includes(':') ? `[${host}]` : host
  return { url: `${https ? 'https' : 'http'}://${name}:${address.port}/demo/`, close }
}

/** @param {{ cert: string, key: string }} files */
function secureServer({ cert, key }) {
  const [certificate, secret] = [cert, key].map((path) => readFileSync(requireFile(path)))
  try {
    return createSecureServer({ cert: certificate, key: secret, requireHostHeader: false })
  } catch (error) {
    const { message } = /** @type {Error} */ (error)
    throw new Error(`--cert ${cert} --key ${key}: ${message}; expected a certificate and its key, both as PEM`)
  }
}

/**
 * Answer what is no HTTP. On a connection that has been answered before, the answer would land in the middle of a file
 * that is still being sent: it is closed.
 *
 * @param {Error} error
 * @param {import('node:stream').Duplex} socket
 */
function refuse(error, socket) {
  const { bytesWritten } = /** @type {import('node:net').Socket} */ (socket)
  if (!socket.writable || bytesWritten) return void socket.destroy()
  const headers = { ...HEADERS, Connection: 'close', 'Content-Length': 0 }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.end(`HTTP/1.1 400 Bad Request\r\n${lines.join('')}\r\n`)
}

/** @param {Response} response @param {Record<string, string | number>} headers */
function setHeaders(response, headers) {
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value)
}

/** An answer without a body. @param {Response} response @param {number} status @param {Record<string, string>} [headers] */
function end(response, status, headers = {}) {
  setHeaders(response, headers)
  if (status !== 304) response.setHeader('Content-Length', 0)
  response.writeHead(status).end()
}

/**
 * @param {import('./site.js').Files} files
 * @param {Request} request
 * @param {Response} response
 */
function answer(files, request, response) {
  request.resume() // a body is not read
  if (request.method !== 'GET' && request.method !== 'HEAD') return end(response, 405, { Allow: 'GET, HEAD' })
  const path = pathOf(request.url ?? '')
  if (path === undefined) return end(response, 400)
  if (path === '' || path === 'demo') return end(response, 302, { Location: '/demo/' })
  const file = files.get(path === 'demo/' ? 'demo/index.html' : path)
  if (Buffer.isBuffer(file)) return sendJson(file, request, response)
  const real = file && realFile(file)
  if (!real) return end(response, 404)
  sendFile(real, request, response)
}

/**
 * The decoded path of a request, without the slash before it; undefined where it has none.
 *
 * @param {string} url "/path?query", or after a proxy "http://host/path"
 */
function pathOf(url) {
  const [path] = url.replace(/^https?:\/\/[^/?#]*/i, '').split('?')
  if (!path.startsWith('/')) return undefined
  try {
    return decodeURIComponent(path.slice(1))
  } catch {
    return undefined // "%" without two digits, or no UTF-8
  }
}

/**
 * @param {Buffer} content
 * @param {Request} request
 * @param {Response} response
 */
function sendJson(content, request, response) {
  const tag = `"${createHash('sha256').update(content).digest('base64url')}"`
  response.setHeader('ETag', tag)
  if (request.headers['if-none-match'] === tag) return end(response, 304)
  setHeaders(response, { 'Content-Type': 'application/json; charset=utf-8', 'Content-Length': content.length })
  response.end(request.method === 'HEAD' ? undefined : content)
}

/**
 * A file, or the part of it that the request has asked for. `send` closes it when the visitor goes.
 *
 * @param {string} path real
 * @param {Request} request
 * @param {Response} response
 */
function sendFile(path, request, response) {
  const options = { root: dirname(path), index: /** @type {false} */ (false), cacheControl: false }
  send(request, encodeURIComponent(basename(path)), { ...options, dotfiles: 'allow' })
    .on('directory', () => end(response, 404)) // it was a file a moment ago
    .on('error', (error) => (response.headersSent ? response.destroy() : end(response, error.status ?? 500)))
    .pipe(response)
}

/** @param {string} text */
function portOf(text) {
  const port = Number(text)
  if (/^\d{1,5}$/.test(text) && port < 65_536) return port
  throw new Error(`--port ${text}: expected a whole number from 0 (any free port) to 65535`)
}

/** @param {string | undefined} cert @param {string | undefined} key */
function httpsOf(cert, key) {
  if (cert !== undefined && key !== undefined) return { cert, key }
  if (cert === undefined && key === undefined) return undefined
  throw new Error(`--${cert === undefined ? 'key' : 'cert'}: https needs both; give --cert cert.pem --key key.pem`)
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      bundle: { type: 'string', default: 'build/bundle' },
      loop: { type: 'string' },
      port: { type: 'string', default: '8000' },
      host: { type: 'string', default: 'localhost' },
      cert: { type: 'string' },
      key: { type: 'string' },
      out: { type: 'string' },
    },
  })
  const { loop, host, out } = values
  const [port, https] = [portOf(values.port), httpsOf(values.cert, values.key)]
  const bundles = [values.bundle, ...positionals]
  if (out !== undefined) {
    await exportSite(new Site(bundles, loop).files(), out, HEADERS)
    return console.log(
      `wrote ${out}; the page is its demo/. The host must send the headers that js/demo/README.md lists`,
    )
  }
  const { url, close } = await serve({ bundles, loop, port, host, https })
  process.once('SIGINT', close).once('SIGTERM', close)
  console.log(`${url}\nCtrl+C stops the server`)
}

if (process.argv[1] && realpathSync(process.argv[1]) === realpathSync(fileURLToPath(import.meta.url))) {
  await main().catch((error) => {
    console.error(printable(error.message))
    process.exitCode = 1
  })
}
