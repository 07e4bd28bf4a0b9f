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

import { createReadStream, readdirSync, readFileSync, statSync } from 'node:fs'
import { cp, mkdir, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { createServer as createSecureServer } from 'node:https'
import { createRequire } from 'node:module'
import { basename, dirname, extname, join, posix, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'

const here = dirname(fileURLToPath(import.meta.url))
const modules = createRequire(import.meta.url)

const TYPES = /** @type {Record<string, string>} */ ({
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.mjs': 'text/javascript; charset=utf-8',
  '.json': 'application/json',
  '.webmanifest': 'application/manifest+json',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
  '.wav': 'audio/wav',
})

/** WASM threads need the first two; another host must send them too. */
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-cache', // browsers ask again, and get 304 where nothing changed
}

const ORT = /^ort\.(wasm|webgpu)\.min\.mjs$|^ort-wasm-simd-threaded(\.asyncify)?\.(mjs|wasm)$/
const NOT_SERVED = /^(serve\.js|sw\.js|tsconfig\.json|README\.md)$/

/**
 * All served files: a path under the root -> the path of a file, or its content.
 *
 *     demo/  src/  vendor/  bundles/NAME/  loop.wav  sw.js      sw.js is at the root, so that it handles all requests
 *
 * @param {string[]} bundles folders
 * @param {string} [loop] a WAV file
 * @returns {Map<string, string | Buffer>}
 */
export function site(bundles, loop) {
  const ort = dirname(modules.resolve('onnxruntime-web'))
  const tokenizers = dirname(modules.resolve('@huggingface/tokenizers'))
  /** @type {Map<string, string | Buffer>} */
  const files = new Map([
    ...listed('demo', here, (name) => !NOT_SERVED.test(name)),
    ...listed('src', resolve(here, '../src'), (name) => name.endsWith('.js')),
    ...listed('vendor/ort', ort, (name) => ORT.test(name)),
    ['vendor/tokenizers.mjs', join(tokenizers, 'tokenizers.min.mjs')],
    ['sw.js', join(here, 'sw.js')],
    ...bundles.flatMap(bundleFiles),
  ])
  files.set('bundles/index.json', Buffer.from(JSON.stringify({ bundles: bundles.map(nameOf), loop: Boolean(loop) })))
  if (loop) files.set('loop.wav', resolve(loop))
  return files
}

/**
 * The files of a folder, not of those in it.
 *
 * @param {string} prefix
 * @param {string} folder
 * @param {(name: string) => boolean} wanted
 * @returns {[string, string][]}
 */
function listed(prefix, folder, wanted) {
  const names = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isFile() && wanted(entry.name))
  return names.map(({ name }) => [`${prefix}/${name}`, join(folder, name)])
}

/** @param {string} folder */
const nameOf = (folder) => basename(resolve(folder))

/**
 * The files that a bundle's manifest lists, with those it shares with another bundle ("../first/text_encoder.onnx").
 *
 * @param {string} folder
 * @returns {[string, string][]}
 */
function bundleFiles(folder) {
  const path = join(folder, 'manifest.json')
  /** @type {{ files: Record<string, unknown> }} */
  let manifest
  try {
    manifest = JSON.parse(readFileSync(path, 'utf8'))
  } catch (error) {
    throw new Error(
      `${path}: ${/** @type {Error} */ (error).message}; expected a bundle: a folder that export/bundle.py wrote`,
    )
  }
  const names = ['manifest.json', ...Object.keys(manifest.files)]
  return names.map((name) => [posix.join('bundles', nameOf(folder), name), resolve(folder, name)])
}

/**
 * Start the server.
 *
 * @param {{ bundles: string[], loop?: string, port?: number, host?: string, https?: { cert: string, key: string } }} options
 *   port: 0 for a free one; https: files of a certificate and its key
 * @returns {Promise<{ url: string, close: () => void }>}
 */
export async function serve({ bundles, loop, port = 8000, host = 'localhost', https }) {
  /** @type {import('node:http').RequestListener} */
  const listener = (request, response) => answer(site(bundles, loop), request, response)
  const server = https
    ? createSecureServer({ cert: readFileSync(https.cert), key: readFileSync(https.key) }, listener)
    : createServer(listener)
  site(bundles, loop) // throws now if a file is missing
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, host, () => resolve(undefined)))
  const address = /** @type {import('node:net').AddressInfo} */ (server.address())
  const close = () => {
    server.close()
    server.closeAllConnections()
  }
  return { url: `${https ? 'https' : 'http'}://${host}:${address.port}/demo/`, close }
}

/**
 * @param {Map<string, string | Buffer>} files
 * @param {import('node:http').IncomingMessage} request
 * @param {import('node:http').ServerResponse} response
 */
function answer(files, request, response) {
  /** @type {(status: number, headers?: Record<string, string | number>) => void} */
  const end = (status, headers) => response.writeHead(status, { ...HEADERS, ...headers }).end()
  if (request.method !== 'GET' && request.method !== 'HEAD') return end(405, { Allow: 'GET, HEAD' })
  const path = new URL(request.url ?? '/', 'http://host').pathname.slice(1)
  if (path === '' || path === 'demo') return end(302, { Location: '/demo/' })
  const name = path === 'demo/' ? 'demo/index.html' : path
  const file = files.get(name)
  const type = { 'Content-Type': TYPES[extname(name)] ?? 'application/octet-stream' }
  if (file instanceof Buffer) return void response.writeHead(200, { ...HEADERS, ...type }).end(file)
  const found = file && statSync(file, { throwIfNoEntry: false })
  if (!file || !found) return end(404)
  const tag = `"${found.size}-${Math.trunc(found.mtimeMs)}"`
  if (request.headers['if-none-match'] === tag) return end(304, { ETag: tag })
  const headers = { ...type, ETag: tag, 'Content-Length': found.size }
  if (request.method === 'HEAD') return end(200, headers)
  response.writeHead(200, { ...HEADERS, ...headers })
  createReadStream(file)
    .on('error', () => response.destroy())
    .pipe(response)
}

/**
 * Write all served files into a folder.
 *
 * @param {Map<string, string | Buffer>} files
 * @param {string} folder
 */
async function copy(files, folder) {
  const headers = Object.entries(HEADERS).map(([name, value]) => `  ${name}: ${value}\n`)
  files.set('_headers', Buffer.from(`/*\n${headers.join('')}`)) // the format of Netlify and Cloudflare Pages
  for (const [path, file] of files) {
    const to = join(folder, path)
    await mkdir(dirname(to), { recursive: true })
    await (typeof file === 'string' ? cp(file, to) : writeFile(to, file))
  }
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
  const { cert, key } = values
  const https = cert && key ? { cert, key } : undefined
  const bundles = [values.bundle, ...positionals]
  if (values.out) {
    await copy(site(bundles, values.loop), values.out)
    return console.log(
      `wrote ${values.out}; the page is its demo/. The host must send the headers that js/demo/README.md lists`,
    )
  }
  const { url } = await serve({ bundles, loop: values.loop, port: Number(values.port), host: values.host, https })
  console.log(`${url}\nCtrl+C stops the server`)
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  await main().catch((error) => {
    console.error(error.message)
    process.exitCode = 1
  })
}
