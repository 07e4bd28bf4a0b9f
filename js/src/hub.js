/**
 * Bundles of the Hugging Face hub: `hf:user/repo` or `hf:user/repo@revision`.
 *
 *     GET {endpoint}/{repo}/resolve/{revision}/{file}       redirects to where the file is stored
 *
 * All files are those of the commit that manifest.json came from. They are kept by their SHA-256: in a browser in a Cache,
 * in Node in the user's cache folder (hub_store.js).
 */

import { BundleError, Files } from './files.js'
import { Store } from './hub_store.js'
import { createSha256 } from './sha256.js'
import { shown } from './typed_json.js'

/**
 * @typedef {import('./manifest.js').FileEntry} FileEntry
 * @typedef {import('./manifest.js').ManifestTree} ManifestTree
 * @typedef {(bytes: number) => void} Progress called with the bytes since the last call
 */

const ENDPOINT = 'https://huggingface.co'
const BROWSER_CACHE = 'clean-lm'
const SOURCE = /^hf:([A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+(?:\/[\w.-]+)*))?$/
const FILE = /^\w[\w.-]*(\/\w[\w.-]*)*$/ // no way out of the repository: no "..", no leading slash or dot, no drive
const COMMIT = /^[0-9a-f]{40}$/

/**
 * Whether a source is a repository of the hub.
 *
 * @param {import('./files.js').Source} source
 * @returns {source is string}
 */
export const isHub = (source) => typeof source === 'string' && source.startsWith('hf:')

/**
 * @param {string} source
 * @returns {{ repo: string, revision: string }}
 */
function parse(source) {
  const [, repo, revision = 'main'] = SOURCE.exec(source) ?? []
  if (!repo || `${repo}/${revision}`.split('/').some((part) => part.includes('..'))) {
    throw new BundleError(`${source}: expected hf:user/repo or hf:user/repo@revision`)
  }
  return { repo, revision }
}

/** A bundle's files in a repository of the hub. */
export class HubFiles extends Files {
  /**
   * @param {string} source hf:user/repo@revision
   * @param {import('./manifest.js').LoadOptions} options
   */
  constructor(source, options) {
    super(source, { ...options, confine: undefined })
    const { repo, revision } = parse(source)
    const { HF_ENDPOINT, HF_TOKEN } = globalThis.process?.env ?? {}
    this.repo = repo
    this.revision = revision
    this.endpoint = (options.endpoint ?? HF_ENDPOINT ?? ENDPOINT).replace(/\/+$/, '')
    this.token = options.token ?? HF_TOKEN
    /** what files are read from: the commit of manifest.json */
    this.commit = revision
    this.folder = null // until manifest.json is read, and outside Node
    this.store = globalThis.process?.versions?.node ? new Store(options.cacheFolder) : null
    /** names that are in `folder`, and were compared with the manifest @type {Set<string>} */
    this.verified = new Set()
  }

  /**
   * Take the manifest, which is checked, for that of the revision, and confine the bundle to its part of the cache.
   *
   * @param {ManifestTree} tree
   * @param {Uint8Array} bytes of its JSON
   */
  async adopt(tree, bytes) {
    const { store, repo, revision } = this
    this._requireOwnFiles(tree)
    if (store) this.folder = this.confine = await store.openBundle(repo, revision, bytes)
    else await this.cache?.put(this._manifestKey(), new Response(/** @type {BodyInit} */ (bytes)))
  }

  /** Throw BundleError where a manifest names a file outside of the repository. @param {ManifestTree} tree */
  _requireOwnFiles(tree) {
    const graphs = [tree, ...Object.values(tree.variants ?? {})].flatMap((part) => Object.values(part.graphs))
    const named = graphs.flatMap(({ file, data }) => [file, data ?? file])
    const wrong = [...Object.keys(tree.files), ...named].find((name) => !FILE.test(name))
    if (wrong === undefined) return
    throw new BundleError(`${this.label('manifest.json')}: names ${shown(wrong)}, expected files of ${this.repo}`)
  }

  /** @override @param {string} name @param {FileEntry} [expected] @param {Progress} [onProgress] */
  async read(name, expected, onProgress) {
    if (!expected) return this._readManifest(name)
    if (this.store) {
      await this.verify(name, expected, onProgress)
      return this._readDisk(/** @type {string} */ (await this.path(name)), name, expected)
    }
    this.cache ??= await browserCache()
    return super.read(name, expected, onProgress)
  }

  /**
   * In Node, download a file where it is missing, and compare it with the manifest where it is not.
   *
   * @override
   * @param {string} name
   * @param {FileEntry} expected
   * @param {Progress} [onProgress]
   */
  async verify(name, expected, onProgress) {
    if (this.verified.has(name)) return
    const path = /** @type {string} */ (await this.path(name))
    const store = /** @type {Store} */ (this.store)
    if (await store.link(expected.sha256, path)) {
      try {
        await super.verify(name, expected, onProgress)
        this.verified.add(name)
        return
      } catch (error) {
        if (!(error instanceof BundleError)) throw error
        await store.remove(expected.sha256, path) // damaged: downloaded again
      }
    }
    await store.add(expected.sha256, (write) => this._save(name, expected, write, onProgress))
    await store.link(expected.sha256, path)
    this.verified.add(name)
  }

  /**
   * Download a file in parts; throws BundleError where it differs from the manifest.
   *
   * @param {string} name
   * @param {FileEntry} expected
   * @param {(part: Uint8Array) => Promise<unknown>} write
   * @param {Progress} [onProgress]
   */
  async _save(name, expected, write, onProgress) {
    const hash = createSha256()
    let bytes = 0
    for await (const part of this._parts(await this._find(name), name, expected)) {
      bytes += part.length
      hash.update(part)
      await write(part)
      onProgress?.(part.length)
    }
    this._compareSize(name, bytes, expected)
    this._compareHash(name, hash.digest(), expected.sha256)
  }

  /**
   * manifest.json, from the hub, or as it was last read where the hub cannot be reached.
   *
   * @param {string} name
   */
  async _readManifest(name) {
    const { store, repo, revision } = this
    this.cache ??= store ? undefined : await browserCache()
    try {
      const response = await this._find(name)
      const commit = response.headers.get('x-repo-commit') ?? ''
      if (COMMIT.test(commit)) this.commit = commit
      return await this._collect(response, name)
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error
      const kept = store ? await store.manifest(repo, revision) : await this._keptManifest(name)
      if (!kept) throw new BundleError(error.message)
      return kept
    }
  }

  /** @param {string} name */
  async _keptManifest(name) {
    const kept = await this.cache?.match(this._manifestKey())
    return kept && this._collect(kept, name)
  }

  /** What the browser's cache knows the last manifest.json of a revision by. */
  _manifestKey() {
    return `${this.endpoint}/${this.repo}/resolve/${encodeURIComponent(this.revision)}/manifest.json`
  }

  /** @override @param {string} name @returns {Promise<Response>} */
  async _find(name) {
    const { repo, commit, token, signal } = this
    const url = `${this.endpoint}/${repo}/resolve/${encodeURIComponent(commit)}/${name}`
    const headers = token ? { authorization: `Bearer ${token}` } : undefined // not sent on to other hosts
    const response = await fetch(url, { headers, signal }).catch((error) => {
      signal?.throwIfAborted()
      throw new Unreachable(`${url}: cannot be reached: ${error.cause?.message ?? error.message}`)
    })
    if (response.ok) return response
    await response.body?.cancel()
    const message = `${this.label(name)}: ${this._explain(response)} (HTTP ${response.status})`
    throw new (response.status >= 500 ? Unreachable : BundleError)(message)
  }

  /** Why the hub did not give a file, and what to do. @param {Response} response */
  _explain({ status, headers }) {
    const { repo, revision, token, endpoint } = this
    const code = headers.get('x-error-code')
    if (code === 'GatedRepo') return `access is gated; accept the terms on ${endpoint}/${repo}, and pass a token`
    if (status === 401 || status === 403 || code === 'RepoNotFound') {
      const advice = token ? 'the token gives no access to it' : 'check its name, or pass a token'
      return `the repository does not exist or is private; ${advice}`
    }
    if (code === 'RevisionNotFound') return `the repository has no revision ${revision}`
    if (status === 404) return 'not in the repository; expected a bundle that export/hub.py --push uploaded'
    return status === 429 ? 'too many requests; try again later' : 'the hub failed; try again later'
  }

  /** @override @param {string} _name @param {string} sha256 */
  _key(_name, sha256) {
    return `${this.endpoint}/sha256/${sha256}`
  }
}

/** The hub gives no answer. */
class Unreachable extends BundleError {}

/** A cache of the browser that does without room; undefined where there is none. @returns {Promise<Cache | undefined>} */
async function browserCache() {
  const cache = await globalThis.caches?.open(BROWSER_CACHE).catch(() => undefined) // not in every context
  if (!cache) return undefined
  const put = (/** @type {any} */ key, /** @type {Response} */ response) => cache.put(key, response).catch(() => {})
  return /** @type {any} */ ({ match: (/** @type {any} */ key) => cache.match(key), put })
}
