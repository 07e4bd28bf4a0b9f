/** What the window may ask for, and nothing else. */

const { contextBridge, ipcRenderer } = require('electron')

contextBridge.exposeInMainWorld('musicgen', {
  ready: () => ipcRenderer.invoke('ready'),
  continue: (audio, sampleRate, options) => ipcRenderer.invoke('continue', audio, sampleRate, options),
  cancel: () => ipcRenderer.invoke('cancel'),
  on: (what, listener) => ipcRenderer.on(what, (_, ...values) => listener(...values)),
})
