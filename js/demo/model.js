/** The model: chooses bundle, backend and weights, and loads them when they are needed. */

import { openServed, sizeOf } from './bundles.js'
import { Engine } from './engine.js'
import { backendFor, inspect, memoryNote, paceNote, variantFor } from './machine.js'
import { $, complain, complainUnlessStopped, field, megabytes, say, select, url, working } from './page.js'

/**
 * @typedef {import('./bundles.js').Bundle} Bundle
 * @typedef {import('./worker.js').Loaded} Loaded
 */

const SMALL = 64e6 // bytes: smaller models are loaded at once

const machine = await inspect()
/** @type {{ name: string, open: () => Promise<Bundle> }[]} the list of models */
const offers = []
/** @type {Bundle | null} the chosen one */
export let bundle = null
/** @type {{ engine: Engine, key: string, loaded: Promise<Loaded> } | null} */
let model = null

/** The worker of the model that is loaded or loading. */
export const engine = () => model?.engine

/** The backend and variant that the form and the browser allow now. */
export function choice() {
  const { backend, note } = backendFor(select('backend').value, machine)
  const threads = Number(url.get('threads')) || machine.threads
  const variant = bundle ? variantFor(bundle.tree, backend, machine, select('variant').value) : undefined
  return { backend, threads, variant, note }
}

function showChoice() {
  const { backend, threads, variant, note } = choice()
  const lacks = select('backend').value === 'webgpu' && !machine.gpu
  const size = bundle ? sizeOf(bundle.tree, variant) : 0
  $('note').textContent = [note, memoryNote(size, backend, machine)].filter(Boolean).join(' ')
  $('note').hidden = !$('note').textContent
  const name = backend === 'webgpu' ? 'WebGPU' : `WebAssembly, ${threads} thread${threads > 1 ? 's' : ''}`
  $('chip-backend').textContent = name
  $('n-backend').textContent = backend === 'webgpu' && machine.gpu?.name ? `${name}, ${machine.gpu.name}` : name
  $('n-size').textContent = bundle ? [variant, megabytes(size)].filter(Boolean).join(', ') : '–'
  if (lacks)
    complain(
      new Error(
        'This browser has no WebGPU, or does not support this graphics card. The page uses WebAssembly instead.',
      ),
    )
  dispatchEvent(new Event('choice'))
}

/** @param {Bundle} chosen */
function useBundle(chosen) {
  bundle = chosen
  const { tree } = chosen
  const names = Object.keys(tree.variants ?? {})
  const options = names.map((name) => new Option(`${name}, ${megabytes(sizeOf(tree, name))}`, name))
  select('variant').replaceChildren(new Option('Automatic', ''), ...options)
  select('variant').disabled = names.length < 2
  if (names.includes(url.get('variant') ?? '')) select('variant').value = url.get('variant') ?? ''
  const takesText = 'text_encoder' in tree.graphs
  field('text').disabled = !takesText
  $('text-hint').textContent = takesText
    ? 'Optional, for example “warm pads, slow house”.'
    : 'This model was exported without a text encoder, so it takes no description.'
  field('duration').value = url.get('duration') ?? String(tree.defaults.duration)
  field('temperature').value = String(tree.defaults.temperature)
  field('topk').value = String(tree.defaults.top_k)
  field('cfg').value = String(tree.defaults.cfg_coef)
  modelChanged()
}

/** Load the chosen model at once if it is small; otherwise it is loaded with the first generation. */
export function modelChanged() {
  model?.engine.close()
  model = null
  showPace(null)
  showChoice()
  if (bundle && sizeOf(bundle.tree, choice().variant) < SMALL) load().catch(complainUnlessStopped)
}

/** Load the chosen model, unless it is loaded already. */
export function load() {
  if (!bundle) throw new Error('no bundle is open')
  const { backend, threads, variant } = choice()
  const { source, name } = bundle
  const key = [name, backend, threads, variant].join('|')
  if (model?.key === key && !model.engine.closed) return model.loaded
  const engine = new Engine()
  const loaded = engine.load({ source, backend, threads, variant, secure: machine.secure }, ({ done, total }) => {
    working(done / total, `Loading the model: ${megabytes(done)} of ${megabytes(total)}`)
  })
  model = { engine, key, loaded }
  working(0, 'Loading the model')
  return loaded.then(
    (result) => {
      working(null, '')
      say('The model is ready.')
      showPace(result.paces)
      showOffline(result)
      return result
    },
    (error) => {
      working(null, '')
      if (model?.engine === engine) model = null
      engine.close()
      throw error
    },
  )
}

/** @param {Loaded['paces']} paces */
function showPace(paces) {
  $('pace').textContent = paceNote(paces)
  $('pace').hidden = !$('pace').textContent
}

/** @param {Loaded} loaded */
function showOffline({ kept }) {
  const controlled = Boolean(navigator.serviceWorker?.controller)
  const text = !controlled
    ? ''
    : kept
      ? 'The browser has kept this page and this model: both work without a network.'
      : typeof bundle?.source === 'string'
        ? 'The browser has kept this page for offline use, but the model was too large to keep.'
        : 'The browser has kept this page for offline use; this model stays in its folder.'
  $('offline').textContent = text
  $('chip-offline').hidden = !(controlled && kept)
  $('chip-offline').textContent = 'Works offline'
}

/** @param {{ name: string, open: () => Promise<Bundle> }[]} more */
function offer(more) {
  offers.push(...more)
  for (const { name } of more) select('bundle').add(new Option(name))
}

/** Open the bundle that is chosen in the list. */
export async function openOffer() {
  const index = select('bundle').selectedIndex
  try {
    const opened = await offers[index].open()
    if (index === select('bundle').selectedIndex) useBundle(opened)
  } catch (error) {
    complain(error)
  }
}

/** @param {Promise<Bundle[]>} opening */
export async function offerFolder(opening) {
  try {
    const first = offers.length
    offer((await opening).map((found) => ({ name: found.name, open: async () => found })))
    select('bundle').selectedIndex = first
    $('alert').hidden = true
    await openOffer()
  } catch (error) {
    complain(error)
  }
}

/** @param {string[]} names of served bundles */
export async function offerServed(names) {
  offer(names.map((name) => ({ name, open: () => openServed(name) })))
  if (names.includes(url.get('bundle') ?? '')) select('bundle').value = url.get('bundle') ?? ''
  if (names.length) await openOffer()
  else say('This server has no model: open a bundle’s folder under “Runs on”.')
}

export function listenToModel() {
  if (['webgpu', 'wasm'].includes(url.get('backend') ?? '')) select('backend').value = url.get('backend') ?? ''
  select('backend').addEventListener('change', modelChanged)
  select('variant').addEventListener('change', modelChanged)
  select('bundle').addEventListener('change', openOffer)
  showChoice()
}
