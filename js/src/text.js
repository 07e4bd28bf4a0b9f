/** Descriptions to text states: what generateCodes takes for `texts`. */

import { floats } from './manifest.js'
import { BundleError } from './source.js'

const TOKENIZER = 'tokenizer.json'

/**
 * @typedef {{ encode: (text: string) => { ids: number[] } }} Tokenizer
 * @typedef {(tokenizerJson: object) => Tokenizer | Promise<Tokenizer>} TokenizerFactory
 */

/** text_encoder and tokenizer.json of a bundle. */
export class TextConditioner {
  /**
   * @param {import('./manifest.js').Manifest} manifest
   * @param {TokenizerFactory} [factory] in place of @huggingface/tokenizers
   */
  constructor(manifest, factory = huggingface) {
    if (!manifest.tree.files[TOKENIZER]) {
      const path = manifest.files.label('manifest.json')
      throw new BundleError(`${path}: holds no ${TOKENIZER}; export the text encoder again`)
    }
    this.manifest = manifest
    this.factory = factory
    this.graph = manifest.graph('text_encoder')
    /** @type {Promise<Tokenizer> | undefined} */
    this.opening = undefined
  }

  /** The tokenizer, read when first asked for. */
  tokenizer() {
    const open = async () => {
      const json = new TextDecoder().decode(await this.manifest.content(TOKENIZER))
      return this.factory(JSON.parse(json))
    }
    this.opening ??= open()
    return this.opening
  }

  /**
   * A text's tokens, the eos token last.
   *
   * @param {string} text
   */
  async tokens(text) {
    return (await this.tokenizer()).encode(text).ids
  }

  /**
   * The text encoder's last hidden state [N x E]; null for null text: nothing, null or "". " " is a text like any other.
   *
   * Nothing is cut off, however long a text is: audiocraft does not either, though T5 was trained on 512 tokens.
   *
   * @param {string | null | undefined} text
   * @returns {Promise<Float32Array | null>}
   */
  async encode(text) {
    return text ? this.states(await this.tokens(text)) : null
  }

  /**
   * Tokens -> states [N x E]. One text at a time: nothing is padded, and so nothing needs a mask.
   *
   * @param {number[]} ids
   * @returns {Promise<Float32Array>}
   */
  async states(ids) {
    const sizes = { rows: 1, text: ids.length }
    const { last_hidden_state: states } = await this.graph.run({
      input_ids: this.graph.tensor('input_ids', ids, sizes),
      attention_mask: this.graph.tensor('attention_mask', Array(ids.length).fill(1), sizes),
    })
    return floats(states)
  }
}

/** @type {TokenizerFactory} */
async function huggingface(json) {
  const { Tokenizer } = await import('@huggingface/tokenizers')
  return new Tokenizer(json, {})
}
