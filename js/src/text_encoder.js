/** Encodes descriptions: text to the states that the language model is conditioned on. */

import { BundleError } from './files.js'
import { text as validateText, validateTokens } from './options.js'
import { floatsOf } from './session.js'
import { requireGrowth } from './tokenizer_bounds.js'
import { printable } from './typed_json.js'

const TOKENIZER = 'tokenizer.json'

/**
 * @typedef {{ encode: (text: string) => { ids: number[] } }} Tokenizer
 * @typedef {(tokenizerJson: object) => Tokenizer | Promise<Tokenizer>} TokenizerFactory
 */

/** A bundle's T5 encoder with its tokenizer. It is not called TextEncoder, as every JavaScript runtime has one. */
export class TextConditioner {
  /**
   * @param {import('./manifest.js').Manifest} manifest
   * @param {TokenizerFactory} [factory] makes the tokenizer; default: @huggingface/tokenizers
   */
  constructor(manifest, factory = huggingface) {
    if (!manifest.tree.files[TOKENIZER]) {
      throw new BundleError(`${manifest.path}: the bundle lacks ${TOKENIZER}; export the text encoder again`)
    }
    this.manifest = manifest
    this.factory = factory
    this.graph = manifest.graph('text_encoder')
    /** @type {Promise<Tokenizer> | undefined} */
    this.opening = undefined
  }

  /** The tokenizer, read with its first use. */
  tokenizer() {
    const open = async () => {
      const bytes = await this.manifest.read(TOKENIZER)
      return this._named('not readable', async () => {
        const json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
        requireGrowth(json)
        return this.factory(json)
      })
    }
    this.opening ??= open()
    return this.opening
  }

  /**
   * Token ids of a text, the last one T5's end of sequence.
   *
   * @param {string} text
   */
  async tokens(text) {
    validateText('text', text, 0)
    const tokenizer = await this.tokenizer()
    const { ids } = await this._named('cannot read a text', async () => tokenizer.encode(text))
    validateTokens('text', ids.length)
    return ids
  }

  /**
   * What tokenizers throw, as a BundleError of one line.
   *
   * @template T
   * @param {string} what
   * @param {() => Promise<T>} body
   */
  async _named(what, body) {
    return body().catch((error) => {
      const [path, why] = [this.manifest.files.label(TOKENIZER), printable(String(error?.message ?? error))]
      throw new BundleError(`${path}: ${what}: ${why.slice(0, 300)}; export the text encoder again`)
    })
  }

  /**
   * Text -> T5's last hidden state [N x E]; null for no text: undefined, null or "", but not " ".
   *
   * Long texts are not truncated, as in audiocraft, although T5 was trained on 512 tokens.
   *
   * @param {string | null | undefined} text
   * @returns {Promise<Float32Array | null>}
   */
  async encode(text) {
    return text ? this.states(await this.tokens(text)) : null
  }

  /**
   * Token ids -> states [N x E]. One text at a time, so that nothing is padded: the mask is all ones.
   *
   * @param {number[]} ids
   * @returns {Promise<Float32Array>}
   */
  async states(ids) {
    validateTokens('ids', ids.length)
    const sizes = { rows: 1, text: ids.length }
    const { last_hidden_state: states } = await this.graph.run({
      input_ids: this.graph.tensor('input_ids', ids, sizes),
      attention_mask: this.graph.tensor('attention_mask', Array(ids.length).fill(1), sizes),
    })
    return floatsOf(states)
  }
}

/** @type {TokenizerFactory} */
async function huggingface(json) {
  const { Tokenizer } = await import('@huggingface/tokenizers')
  return new Tokenizer(json, {})
}
