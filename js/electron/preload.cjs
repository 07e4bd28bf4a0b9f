/** Gives the window these four functions of the main process, and nothing else. */

const { contextBridge, ipcRenderer } = require('electron')

const EVENTS = ['chunk', 'progress']

contextBridge.exposeInMainWorld('musicgen', {
  ready: () => ipcRenderer.invoke('ready'),
  continue: (audio, sampleRate, options) => ipcRenderer.invoke('continue', audio, sampleRate, options),
  cancel: () => ipcRenderer.invoke('cancel'),
  on: (channel, listener) => {
    if (!EVENTS.includes(channel)) throw new TypeError(`expected an event: ${EVENTS.join(', ')}`)
    ipcRenderer.on(channel, (_, ...values) => listener(...values))
  },
})
