/** Gives the window these functions of the main process, and nothing else. Their types: messages.js, Api. */

const { contextBridge, ipcRenderer } = require('electron')

/** @param {string} channel @param {any} [value] */
async function ask(channel, value) {
  const answer = await ipcRenderer.invoke(channel, value)
  if ('error' in answer) throw new Error(answer.error)
  return answer.value
}

/** @param {string} channel @param {(value: any) => void} listener without Electron's event, which would give it more */
function listen(channel, listener) {
  ipcRenderer.on(channel, (_event, value) => listener(value))
}

/** @type {import('./messages.js').Api} */
const api = {
  ready: () => ask('ready'),
  continue: (request) => ask('continue', request),
  cancel: () => ask('cancel'),
  save: (sound) => ask('save', sound),
  onProgress: (listener) => listen('progress', listener),
  onChunk: (listener) => listen('chunk', listener),
}
contextBridge.exposeInMainWorld('musicgen', api)
