"""Hugging Face transformers' MusicGen, with the checkpoint's weights and its own cache, guidance and sampling.

With a text it computes two rows; without one, one row with guidance 1 and one column of zeros to attend to, as its
get_unconditional_inputs has it. PyTorch's scaled dot-product attention, inference mode, one thread a core.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation.logits_process import ClassifierFreeGuidanceLogitsProcessor, TopKLogitsWarper
from transformers.modeling_outputs import BaseModelOutput

from bench.workload import CFG_COEF, TOP_K, Coder, Mode, Model, Step, Workload, fill_random
from clean_lm.models.config import CodecConfig, LMConfig
from weights import codec
from weights.lm import load, table
from weights.mapping import Model as Checkpoint


class Transformers:
    """MusicgenForConditionalGeneration, given text states in place of texts."""

    name = "transformers"

    def __init__(self, checkpoint: Path):
        lm, codec_model = load(checkpoint), codec.load(checkpoint / "compression_state_dict.bin")
        self.config = lm.config
        self.module = build(lm, codec_model.config)
        c, hop = lm.config, int(np.prod(codec_model.config.ratios))
        rate = codec_model.config.sample_rate
        sizes = (c.layers, c.heads, c.head_dim, c.codebooks, c.card, c.delays, c.text_dim, rate, rate / hop)
        self.model = Model(*sizes)
        self.coder: Coder = TransformersCoder(self.module)

    def rows(self, mode: Mode) -> int:
        return mode.takes * (2 if mode.text else 1)

    def prefill(self, mode: Mode, columns: int) -> Step:
        return Run(self, mode, 0).after(self.model.codes(mode.takes, columns))

    def seek(self, mode: Mode, at: int) -> Step:
        return Run(self, mode, at).after(self.model.codes(mode.takes, 1))

    def step_bytes(self, mode: Mode, at: int) -> int:
        unread = ("embed", "encoder_attn.k_proj", "encoder_attn.v_proj")
        named = self.module.decoder.named_parameters()
        weights = sum(p.nbytes for name, p in named if not any(part in name for part in unread))
        return weights + at * self.rows(mode) * self.config.layers * 2 * self.config.dim * 4

    @torch.inference_mode()
    def continue_audio(self, mode: Mode, audio: np.ndarray, workload: Workload) -> np.ndarray:
        states, mask = self.states(mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wave = self.module.generate(
                input_ids=torch.zeros(mode.takes, states.shape[1], dtype=torch.int64),
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                input_values=torch.from_numpy(audio),
                do_sample=True,
                top_k=TOP_K,
                guidance_scale=CFG_COEF if mode.text else 1.0,
                max_length=workload.capacity(self.model) + 1,
                decoder_start_token_id=self.config.card,
            )
        assert isinstance(wave, Tensor)
        return wave.numpy()

    def states(self, mode: Mode) -> tuple[Tensor, Tensor]:
        """Text states [R, N, E] and their mask [R, N]."""
        tokens = len(self.model.text()) if mode.text else 1
        states, mask = torch.zeros(self.rows(mode), tokens, self.model.text_dim), torch.zeros(self.rows(mode), tokens)
        if mode.text:
            states[: mode.takes], mask[: mode.takes] = torch.from_numpy(self.model.text()), 1
        return states, mask.long()


class Run:
    """One generation: its cache, and what transformers' own loop does in each step."""

    def __init__(self, contender: Transformers, mode: Mode, at: int):
        self.contender, self.mode = contender, mode
        config, c, rows = contender.module.decoder.config, contender.config, contender.rows(mode)
        self.cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        if at:
            past = np.empty((rows, c.heads, at, c.head_dim), dtype=np.float32)
            fill_random(past)
            for layer in range(c.layers):
                self.cache.self_attention_cache.update(torch.tensor(past), torch.tensor(past), layer)
        states, self.mask = contender.states(mode)
        self.states = BaseModelOutput(last_hidden_state=states)
        self.guide, self.top_k = ClassifierFreeGuidanceLogitsProcessor(CFG_COEF), TopKLogitsWarper(TOP_K)
        self.logits = torch.zeros(0)

    def after(self, codes: np.ndarray) -> Step:
        """Read columns int64 [B, K, S]. Returns the step that reads the column after them, and so on."""
        ids = self(torch.from_numpy(codes).flatten(0, 1))

        def step() -> None:
            nonlocal ids
            ids = self(ids)

        return step

    @torch.inference_mode()
    def __call__(self, ids: Any) -> Any:
        """Read columns int64 [BK, S], draw the one after the last [BK, 1]."""
        doubled = ids.repeat(2, 1) if self.mode.text else ids
        out = self.contender.module(
            encoder_outputs=self.states,
            attention_mask=self.mask,
            decoder_input_ids=doubled,
            past_key_values=self.cache,
            use_cache=True,
        )
        scores = out.logits[:, -1].float()
        self.logits = self.guide(ids, scores) if self.mode.text else scores
        return torch.multinomial(self.top_k(ids, self.logits).softmax(dim=-1), num_samples=1)


class TransformersCoder:
    """Its EnCodec, with random weights of the checkpoint's sizes."""

    name = "transformers"

    def __init__(self, module: MusicgenForConditionalGeneration):
        self.codec: Any = module.audio_encoder

    @torch.inference_mode()
    def encode(self, audio: np.ndarray) -> np.ndarray:
        return self.codec.encode(torch.from_numpy(audio)).audio_codes[0].numpy()

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.codec.decode(torch.from_numpy(codes)[None], [None]).audio_values.numpy()


def build(lm: Checkpoint[LMConfig], coder: CodecConfig) -> MusicgenForConditionalGeneration:
    """The model with the checkpoint's sizes; its language model has the checkpoint's weights, its codec random ones."""
    c = lm.config
    decoder = MusicgenDecoderConfig(
        vocab_size=c.card, num_hidden_layers=c.layers, ffn_dim=c.hidden, num_attention_heads=c.heads,
        hidden_size=c.dim, num_codebooks=c.codebooks, audio_channels=c.channels, dropout=0.0, pad_token_id=c.card,
        bos_token_id=c.card, activation_function="gelu",
    )  # fmt: skip
    encoder = EncodecConfig(
        sampling_rate=coder.sample_rate, audio_channels=coder.channels, num_filters=coder.filters,
        upsampling_ratios=list(coder.ratios), codebook_size=coder.card, codebook_dim=coder.dimension,
        hidden_size=coder.dimension, num_lstm_layers=coder.lstm_layers, norm_type="weight_norm",
        use_causal_conv=False, pad_mode=coder.pad_mode, normalize=False, chunk_length_s=None,
        target_bandwidths=[coder.codebooks * bits(coder) * coder.sample_rate / int(np.prod(coder.ratios)) / 1000],
    )  # fmt: skip
    text = T5Config(d_model=c.text_dim, num_layers=1, num_heads=1, d_kv=8, d_ff=8, vocab_size=8)
    config = MusicgenConfig(text_encoder=text, audio_encoder=encoder, decoder=decoder)
    module = MusicgenForConditionalGeneration(config)
    assert module.decoder.config._attn_implementation == "sdpa"
    tensors = named(lm)
    left = module.load_state_dict(tensors, strict=False, assign=True)
    assert not left.unexpected_keys
    assert not [name for name in left.missing_keys if name.startswith("decoder.") and "embed_positions" not in name]
    return module.eval()


def named(lm: Checkpoint[LMConfig]) -> dict[str, Tensor]:
    """The checkpoint's tensors under transformers' names, by the table that reads its checkpoints, in reverse."""
    rows = table(replace(lm.checkpoint, layout="huggingface"), lm.config)
    weights = {part: lm.weights(part) for part in ("lm", "condition")}
    tensors = {}
    for name, source in rows.items():
        part, _, own = name.partition(".")
        whole = weights[part][own].T if source.transpose else weights[part][own]
        pieces = whole.split([piece.shape[0] for piece in source.pieces])
        tensors |= {piece.name: tensor.contiguous() for piece, tensor in zip(source.pieces, pieces, strict=True)}
    return tensors


def bits(c: CodecConfig) -> int:
    """How many bits a code takes."""
    return (c.card - 1).bit_length()
