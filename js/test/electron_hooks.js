/**
 * Lets js/electron/ run in Node, in a checkout: `electron` is electron.js, `clean-lm` is src/, and a process that it starts
 * has Electron's port to its parent.
 */

import { register } from 'node:module'

const MODULES = {
  electron: new URL('./electron.js', import.meta.url).href,
  'clean-lm': new URL('../src/index.js', import.meta.url).href,
}
const hooks = `
const MODULES = ${JSON.stringify(MODULES)}
export const resolve = (name, context, next) => next(MODULES[name] ?? name, context)`
register(`data:text/javascript,${encodeURIComponent(hooks)}`)

if (process.send && process.execArgv.includes(import.meta.url)) {
  const on = (/** @type {string} */ event, /** @type {(event: { data: any }) => void} */ listener) =>
    process.on(event, (data) => listener({ data }))
  Reflect.set(process, 'parentPort', { on, postMessage: (/** @type {any} */ message) => process.send?.(message) })
}
