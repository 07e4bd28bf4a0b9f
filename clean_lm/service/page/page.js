/**
 * The page of `clean-lm serve`: sends a loop, shows its jobs, plays their takes and offers them as files.
 *
 * @typedef {{ name: string, error: string | null, defaults?: { duration: number }, takes_text?: boolean,
 *     takes_melody?: boolean, takes_style?: boolean }} Model
 * @typedef {{ takes: { take: number, seed: number }[], duration: number, seam?: number, seconds: number,
 *     real_time_factor: number, warnings: string[] }} Result times in seconds
 * @typedef {{ id: string, status: 'queued' | 'loading' | 'running' | 'done' | 'failed' | 'cancelled', model: string,
 *     request: { text: string | null, duration: number, takes: number, loop: boolean }, progress: number, position: number | null,
 *     seconds_left: number | null, error: { detail: string } | null, result: Result | null }} Job
 * @typedef {{ name: string, row: HTMLElement, job: Job, fresh: boolean }} Entry name: of its loop; fresh: not heard yet
 */

const LOOK = 500 // ms between two looks at the jobs that are not finished
const PATIENCE = 2000 // ms until a service that does not answer is asked again
const KEPT = 30 // jobs that are found again when the page is loaded anew
const LEAD = 2 // seconds that are played before the seam

class Refused extends Error {} // the user gives no token
class Gone extends Error {} // not found

/** @template {HTMLElement} [T=HTMLElement] @param {string} id @returns {T} */
const $ = (id) => /** @type {T} */ (document.getElementById(id))
/** @param {string} id */
const field = (id) => /** @type {HTMLInputElement} */ ($(id))
/** @template {HTMLElement} [T=HTMLElement] @param {ParentNode} root @param {string} selector @returns {T} */
const find = (root, selector) => /** @type {T} */ (root.querySelector(selector))
/** The item of a template. @param {string} id */
const copyOf = (id) => find(document.importNode(/** @type {HTMLTemplateElement} */ ($(id)).content, true), 'li')
const form = /** @type {HTMLFormElement} */ ($('settings'))
const dialog = /** @type {HTMLDialogElement} */ ($('token-dialog'))

/** @type {Model[]} */
let models = []
let mostBytes = Infinity // of a request
/** @type {File | null} */
let loop = null
/** @type {Map<string, Entry>} */
const entries = new Map()
let [sending, watching] = [false, false]

// ---- the service

/** @type {Promise<void> | null} */
let asking = null

/** Ask for the token, once for all requests that need it. Raises Refused if it is not given. @param {boolean} wrong */
function askToken(wrong) {
  asking ??= new Promise((resolve, reject) => {
    $('token-wrong').hidden = !wrong
    dialog.returnValue = field('token').value = ''
    dialog.onclose = () => {
      asking = null
      if (dialog.returnValue) resolve(sessionStorage.setItem('token', dialog.returnValue))
      else reject(new Refused('The service needs its token: load the page again to enter it.'))
    }
    dialog.showModal()
  })
  return asking
}

/**
 * Ask the service for a path below v1/. Raises an error with the problem's own words.
 *
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<any>}
 */
async function ask(path, init) {
  const token = sessionStorage.getItem('token')
  const headers = new Headers(token ? { Authorization: `Bearer ${token}` } : {})
  if (typeof init?.body === 'string') headers.set('Content-Type', 'application/json')
  const response = await fetch(`v1/${path}`, { ...init, headers }).catch(() => {
    throw new Error('The service does not answer: is clean-lm serve still running?')
  })
  if (response.status === 401) return askToken(token !== null).then(() => ask(path, init))
  if (response.ok) return response.status === 204 ? null : response.json()
  const problem = await response.json().catch(() => null)
  throw new (response.status === 404 ? Gone : Error)(problem?.detail ?? `The service answers ${response.status}.`)
}

/** The URL of sound for a player or a link, which cannot send headers. @param {string} path @param {object} [query] */
function urlOf(path, query) {
  const token = sessionStorage.getItem('token')
  return `v1/jobs/${path}?${new URLSearchParams({ ...query, ...(token && { token }) })}`
}

/** @param {unknown} error */
function complain(error) {
  $('alert-text').textContent = error instanceof Error ? error.message : String(error)
  $('alert').hidden = false
  $('alert').scrollIntoView({ block: 'nearest' })
}

/** @param {string} text */
const say = (text) => void ($('status').textContent = text)

/** What a job that is not finished does. @param {Job} job */
function progressOf({ status, position, progress, seconds_left }) {
  const left = seconds_left === null ? '' : `, about ${Math.ceil(seconds_left)} s left`
  const turn = position ? `Waits for ${position} ${position > 1 ? 'jobs' : 'job'} before it` : 'Next in the queue'
  const doing = status === 'loading' ? 'Loading the model' : `${Math.round(100 * progress)} %`
  return (status === 'queued' ? turn : doing) + left
}

/** What became of a job. @param {Job} job */
function outcomeOf({ status, error, result }) {
  if (error) return error.detail
  if (!result) return status === 'cancelled' ? 'Cancelled.' : ''
  const { duration, seam, seconds, real_time_factor: pace, warnings } = result
  const join = seam === undefined ? '' : ` The new part begins at ${seam.toFixed(1)} s.`
  const made = `${duration.toFixed(1)} s, made in ${seconds.toFixed(1)} s: ${pace.toFixed(1)}× real time.`
  return [made + join, ...warnings].join(' ')
}

// ---- the list of jobs

/** @param {Job} job */
const isFinal = ({ status }) => ['done', 'failed', 'cancelled'].includes(status)
/** @param {Entry} entry @param {string} name */
const part = ({ row }, name) => find(row, `[data-part=${name}]`)

/** Put a job at the top of the list. @param {Job} job @param {string} name of its loop @param {boolean} fresh */
function enter(job, name, fresh) {
  const entry = { name, row: copyOf('job'), job, fresh }
  entries.set(job.id, entry)
  const { text, duration, takes } = job.request
  const about = [job.model, text && `“${text}”`, `${duration} s`, takes > 1 && `${takes} takes`]
  part(entry, 'title').textContent = name
  part(entry, 'about').textContent = about.filter(Boolean).join(' · ')
  find(entry.row, 'progress').setAttribute('aria-label', `Progress of ${name}`)
  for (const [what, act] of Object.entries(actions)) {
    const button = find(entry.row, `[data-do=${what}]`)
    button.setAttribute('aria-label', `${button.textContent}: ${name}`)
    button.addEventListener('click', () => act(entry).catch(complain))
  }
  $('jobs').prepend(entry.row)
  show(entry, job)
  keep()
  return entry
}

/** Show a job as it is now. @param {Entry} entry @param {Job} job */
function show(entry, job) {
  const [final, hadFocus] = [isFinal(job), document.activeElement === find(entry.row, '[data-do=cancel]')]
  entry.job = job
  find(entry.row, 'progress').setAttribute('value', String(job.progress))
  part(entry, 'progress').textContent = progressOf(job)
  part(entry, 'outcome').textContent = outcomeOf(job)
  part(entry, 'outcome').classList.toggle('problem', job.status === 'failed')
  entry.row.classList.toggle('final', final)
  if (final && hadFocus) find(entry.row, '[data-do=retry]').focus()
  if (job.result && !part(entry, 'takes').childElementCount) showTakes(entry, job.result)
  if (entry.fresh && job.status === 'running') listen(entry)
  if (final && find(entry.row, '.live audio')?.matches(':paused')) part(entry, 'live').replaceChildren()
}

/** @param {Entry} entry @param {Result} result */
function showTakes(entry, { takes, seam }) {
  for (const { take, seed } of takes) {
    const item = copyOf('take')
    const audio = /** @type {HTMLAudioElement} */ (find(item, 'audio'))
    find(item, 'p').textContent = `Take ${take}, seed ${seed}`
    audio.src = urlOf(`${entry.job.id}/takes/${take}.wav`)
    audio.ariaLabel = `Take ${take} of ${entry.name}`
    audio.loop = entry.job.request.loop
    find(item, 'button').hidden = seam === undefined
    find(item, 'button').addEventListener('click', () => {
      audio.currentTime = Math.max(0, (seam ?? 0) - LEAD)
      audio.play().catch(complain)
    })
    for (const link of item.querySelectorAll('a')) {
      const format = link.textContent.toLowerCase()
      link.href = urlOf(`${entry.job.id}/takes/${take}.${format}`)
      link.download = `${entry.name.replace(/\.[^.]*$/, '')}-${entry.job.model}-${seed}.${format}`
      link.ariaLabel = `Download take ${take} as ${link.textContent}`
    }
    part(entry, 'takes').append(item)
  }
}

/** What the buttons of a job do. @type {Record<string, (entry: Entry) => Promise<void>>} */
const actions = {
  cancel: async (entry) => {
    silence(part(entry, 'live'))
    show(entry, await ask(`jobs/${entry.job.id}/cancel`, { method: 'POST' }))
  },
  retry: async ({ job, name }) => begin(await ask(`jobs/${job.id}/retry`, { method: 'POST', body: '{}' }), name),
  remove: async (entry) => {
    await ask(`jobs/${entry.job.id}`, { method: 'DELETE' })
    forget(entry)
    $('takes-title').focus() // the button that had it is gone
  },
}

/** @param {Entry} entry */
function forget({ row, job }) {
  silence(row)
  row.remove()
  entries.delete(job.id)
  keep()
}

/** End the downloads of all players in a part of the page. @param {HTMLElement} place */
function silence(place) {
  for (const audio of place.querySelectorAll('audio')) {
    audio.removeAttribute('src')
    audio.load()
  }
}

/** Play a job's first take while it is made, unless something else is played. @param {Entry} entry */
function listen(entry) {
  entry.fresh = false
  const place = part(entry, 'live')
  const audio = new Audio(urlOf(`${entry.job.id}/stream`, { take: 1, from: 'start' }))
  audio.controls = true
  audio.ariaLabel = `Take 1 of ${entry.name}, while it is made`
  audio.addEventListener('pause', () => isFinal(entry.job) && place.replaceChildren()) // paused, or at its end
  audio.addEventListener('error', () => place.replaceChildren())
  place.append('Take 1, while it is made', audio)
  if ([...document.querySelectorAll('audio')].some(({ paused }) => !paused)) return
  audio.play().catch(() => {}) // where a browser wants a click first, the player has its button
}

/** Show a new job. @param {Job} job @param {string} name of its loop */
function begin(job, name) {
  enter(job, name, true).row.scrollIntoView({ block: 'nearest' })
  watch()
}

const unfinished = () => [...entries.values()].filter(({ job }) => !isFinal(job))

/** Look at the unfinished jobs until there are none: one connection at a time, of which browsers have six. */
async function watch() {
  if (watching) return
  watching = true
  try {
    while (unfinished().length) {
      for (const entry of unfinished()) await look(entry)
      await new Promise((resolve) => setTimeout(resolve, LOOK))
    }
  } catch (error) {
    for (const entry of unfinished()) part(entry, 'progress').textContent = /** @type {Error} */ (error).message
    if (!(error instanceof Refused)) setTimeout(watch, PATIENCE)
  }
  watching = false
}

/** @param {Entry} entry */
async function look(entry) {
  const job = await ask(`jobs/${entry.job.id}`).catch((error) => {
    if (!(error instanceof Gone)) throw error
  })
  if (!job) return forget(entry)
  if (isFinal(job)) say(`${entry.name}: ${job.status}.`)
  show(entry, job)
}

/** Remember which jobs there are. */
function keep() {
  const jobs = [...entries.values()].slice(-KEPT).map(({ name, job }) => ({ id: job.id, name }))
  localStorage.setItem('clean-lm-jobs', JSON.stringify(jobs))
  $('no-jobs').hidden = entries.size > 0
}

// ---- the form

/** @param {File | undefined} file */
function useLoop(file) {
  if (!file) return
  if (file.size > mostBytes) return complain(`${file.name} is too large: the service takes ${mostBytes / 1e6} MB.`)
  loop = file
  const player = /** @type {HTMLAudioElement} */ ($('loop'))
  URL.revokeObjectURL(player.src)
  player.src = URL.createObjectURL(file)
  $('loop-name').textContent = file.name
  $('choose').textContent = 'Choose another file'
  $('choose').className = 'button'
  update()
}

/** Fit the form to its model. */
function update() {
  const model = models.find(({ name }) => name === field('model').value)
  $('model-hint').textContent = model ? model.error : 'The service has no models: put bundles into its folder.'
  $('text-field').hidden = field('text').disabled = !model?.takes_text
  const reference = model?.takes_melody ? 'melody' : model?.takes_style ? 'style' : ''
  field('reference').name = reference
  field('reference').disabled = $('reference-field').hidden = !reference
  $('reference-label').textContent = reference === 'melody' ? 'Melody' : 'Style'
  $('reference-hint').textContent = `Optional: a sound file whose ${reference} the music follows.`
  if (model?.defaults && !field('duration').value) field('duration').value = String(model.defaults.duration)
  field('start').disabled = !loop || !model || model.error !== null
}

/** @param {Event} event */
async function start(event) {
  event.preventDefault()
  if (!loop || sending) return
  sending = true
  $('alert').hidden = true
  say('Sending the loop.')
  try {
    const [body, { name }] = [new FormData(form), loop] // its fields have the names of the service's options
    body.set('input', loop)
    begin(await ask('jobs', { method: 'POST', body }), name)
  } catch (error) {
    complain(error)
  }
  say('')
  sending = false
}

/** Models, and what was there when the page was last open. */
async function load() {
  const found = await ask('models')
  models = found.models
  mostBytes = found.limits.body_bytes
  field('duration').max = found.limits.duration
  field('takes').max = found.limits.takes
  for (const { name } of models) $('model').append(new Option(name))
  const draft = JSON.parse(localStorage.getItem('clean-lm-draft') ?? '{}')
  for (const [name, value] of Object.entries(draft)) {
    const control = /** @type {HTMLInputElement | null} */ (form.elements.namedItem(name))
    if (!control || (name === 'model' && !models.some((model) => model.name === value))) continue
    if (control.type === 'checkbox') control.checked = true
    else control.value = value
  }
  $('bars-more').toggleAttribute('open', Boolean(field('bpm').value))
  update()
  for (const { id, name } of JSON.parse(localStorage.getItem('clean-lm-jobs') ?? '[]')) {
    const job = await ask(`jobs/${id}`).catch((error) => error instanceof Gone || complain(error))
    if (job?.id) enter(job, name, false)
  }
  watch()
}

/** One sound at a time. @param {Event} event */
function pauseOthers({ target }) {
  for (const audio of document.querySelectorAll('audio')) if (audio !== target) audio.pause()
}

/** @param {DragEvent} event */
function drag(event) {
  event.preventDefault()
  document.body.classList.toggle('dragging', event.type === 'dragover')
  if (event.type === 'drop') useLoop(event.dataTransfer?.files[0])
}

/** A field that is asked for must be seen. @param {HTMLElement} control */
const openAround = (control) => control.closest('details')?.setAttribute('open', '')

function keepDraft() {
  const texts = [...new FormData(form)].filter(([, value]) => typeof value === 'string')
  localStorage.setItem('clean-lm-draft', JSON.stringify(Object.fromEntries(texts)))
}

function listenToPage() {
  form.addEventListener('submit', start)
  form.addEventListener('input', keepDraft)
  form.addEventListener('invalid', ({ target }) => openAround(/** @type {HTMLElement} */ (target)), true)
  $('model').addEventListener('input', update)
  $('alert-close').addEventListener('click', () => ($('alert').hidden = true))
  $('file').addEventListener('change', () => useLoop(field('file').files?.[0]))
  $('token-form').addEventListener('submit', (event) => {
    event.preventDefault()
    dialog.close(field('token').value)
  })
  $('token-cancel').addEventListener('click', () => dialog.close())
  document.addEventListener('play', pauseOthers, true)
  for (const type of /** @type {const} */ (['dragover', 'dragleave', 'drop'])) addEventListener(type, drag)
}

listenToPage()
load().catch(complain)
