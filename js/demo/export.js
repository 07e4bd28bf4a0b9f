/** Writes the demo's files into a folder for a static host: as a whole, or not at all. */

import { existsSync, renameSync, rmSync } from 'node:fs'
import { copyFile, mkdir, mkdtemp, readdir, realpath, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'

import { realFile } from './site.js'

const MARK = '.clean-lm-site' // says that this program wrote the folder

/**
 * Write all files into a folder, in place of what an earlier call wrote there.
 *
 * @param {import('./site.js').Files} files
 * @param {string} folder new, empty, or written by an earlier call; throws an Error where it is another
 * @param {Record<string, string>} headers that the host must send
 */
export async function exportSite(files, folder, headers) {
  const missing = [...files].filter(([, file]) => !Buffer.isBuffer(file) && !realFile(file)).map(([path]) => path)
  if (missing.length) throw new Error(`${missing[0]}: the file is missing, so nothing was written; export it again`)
  const target = await freeFolder(folder)
  await mkdir(dirname(target), { recursive: true })
  const work = await mkdtemp(join(dirname(target), `.${basename(target)}-`)) // beside it, so that renaming is enough
  const interrupted = () => (rmSync(work, { recursive: true, force: true }), process.exit(130))
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted)
  try {
    await writeAll(files, join(work, 'new'), headers)
    replace(target, work)
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted)
    await rm(work, { recursive: true, force: true })
  }
}

/**
 * The folder's real path; throws where it has files that this program did not write.
 *
 * @param {string} folder
 */
async function freeFolder(folder) {
  const path = await realpath(folder).catch(() => resolve(folder))
  const names = await readdir(path).catch((error) => {
    if (error.code === 'ENOENT') return /** @type {string[]} */ ([])
    throw new Error(`--out ${folder}: ${error.code}, expected a folder that is new or empty`)
  })
  if (!names.length || names.includes(MARK)) return path
  throw new Error(
    `--out ${folder}: the folder has files that this program did not write, ${names[0]} for one; ` +
      'give a new or an empty folder',
  )
}

/**
 * @param {import('./site.js').Files} files
 * @param {string} folder
 * @param {Record<string, string>} headers
 */
async function writeAll(files, folder, headers) {
  for (const [path, file] of files) {
    const to = join(folder, path)
    await mkdir(dirname(to), { recursive: true })
    if (Buffer.isBuffer(file)) await writeFile(to, file)
    else await copyFile(/** @type {string} */ (realFile(file)), to)
  }
  const lines = Object.entries(headers).map(([name, value]) => `  ${name}: ${value}\n`)
  await writeFile(join(folder, '_headers'), `/*\n${lines.join('')}`) // the format of Netlify and Cloudflare Pages
  await writeFile(join(folder, MARK), 'Written by js/demo/serve.js --out, which may replace this folder.\n')
}

/**
 * Move work/new to the target, and what was there into `work`, or back where that fails. Nothing can interrupt it.
 *
 * @param {string} target
 * @param {string} work
 */
function replace(target, work) {
  const [old, existed] = [join(work, 'old'), existsSync(target)]
  if (existed) renameSync(target, old)
  try {
    renameSync(join(work, 'new'), target)
  } catch (error) {
    if (existed) renameSync(old, target)
    throw error
  }
}
