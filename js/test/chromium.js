/** Where Chromium is, and how the tests start it. */

import { existsSync } from 'node:fs'

const places = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome']
export const executablePath = places.find((path) => path && existsSync(path))

/** Why tests of pages are skipped; false where they run. */
export const skip = executablePath
  ? false
  : `no Chromium in ${places.filter(Boolean).join(', ')}: install one, or set CHROMIUM`

export const FLAGS = [
  '--no-sandbox',
  '--no-first-run',
  '--disable-quic',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--use-fake-device-for-media-stream', // a microphone that beeps
  '--use-fake-ui-for-media-stream',
]
