"""The language model's table: our tensors <- audiocraft's or Hugging Face's, and the conditioner's of audio."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from clean_lm.models.config import ConfigError, LMConfig, MelodyConfig, StyleConfig
from weights import audiocraft_config, huggingface_config
from weights.checkpoint import Checkpoint, Spec, is_codec, open_lm
from weights.mapping import Dropped, Model, Source, codebook_training_state, match, norm, one, require_tensors, stack

TEXT = "condition_provider.conditioners.description.output_proj"
T5 = "condition_provider.conditioners.description.t5"  # where a text encoder is that was trained with the model
SELF_WAV = "condition_provider.conditioners.self_wav"


def load(path: Path, base: Path | None = None, max_duration: float | None = None) -> Model[LMConfig]:
    """Open a checkpoint and match it; `base`: see open_lm; `max_duration`: seconds of a window, None for the file's.

    Raises CheckpointError, ConfigError, MappingError, FileNotFoundError.
    """
    checkpoint = open_lm(path, base)
    config, rows = describe(checkpoint)
    notes = list(checkpoint.notes)
    if max_duration is not None:
        config = replace(config, max_duration=max_duration)
        config.validate()
    elif note := window_note(checkpoint):
        notes.append(f"{note}; --max-duration SECONDS sets others")
    return match(replace(checkpoint, notes=tuple(notes)), config, rows, dropped(checkpoint))


def window_note(checkpoint: Checkpoint) -> str | None:
    """What to tell of a model's windows where its files do not say them."""
    return huggingface_config.window_note(checkpoint.config) if checkpoint.layout == "huggingface" else None


def describe(checkpoint: Checkpoint) -> tuple[LMConfig, dict[str, Source]]:
    """The model that a checkpoint's configuration describes, and its table. Raises ConfigError, naming the file."""
    try:
        config = read_config(checkpoint)
        require_tensors(checkpoint.specs, layers=config.layers, codebooks=config.codebooks)
        if isinstance(config.self_wav, StyleConfig):
            require_tensors(checkpoint.specs, n_q_out=config.self_wav.levels)
        return config, table(checkpoint, config)
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from None


def read_config(checkpoint: Checkpoint) -> LMConfig:
    """The model that a checkpoint's configuration describes. Raises ConfigError."""
    if is_codec(checkpoint):
        raise ConfigError(
            "names or configuration of a codec, not of a language model; `python export/codec.py --codec FILE` "
            "checks and exports a codec"
        )
    if checkpoint.layout == "huggingface":
        return huggingface_config.lm_config(checkpoint.config)
    projection = checkpoint.specs.get(f"{TEXT}.weight")
    if projection is None or len(projection.shape) != 2:
        raise ConfigError(f"no {TEXT}.weight of two axes: the width of its text encoder is unknown")
    return audiocraft_config.lm_config(checkpoint.config, text_dim=projection.shape[1])


def table(checkpoint: Checkpoint, config: LMConfig) -> dict[str, Source]:
    """Ours <- theirs, for the layout of `checkpoint`."""
    if checkpoint.layout == "huggingface":
        return _huggingface(config, checkpoint.specs)
    return audiocraft(config) | self_wav(config)


def dropped(checkpoint: Checkpoint) -> list[Dropped]:
    """What is left out on purpose, and why."""
    return _DROPPED[checkpoint.layout]


def audiocraft(c: LMConfig) -> dict[str, Source]:
    d, hidden = c.dim, c.hidden
    q, kv = slice(0, d), slice(d, 3 * d)
    rows: dict[str, Source] = {
        "lm.embedding": stack("embeddings", _numbered("emb.{}.weight", c.codebooks), (c.card + 1, d)),
        "lm.heads": stack("heads", _numbered("linears.{}.weight", c.codebooks), (c.card, d), transpose=True),
        **norm("lm.out_norm", "out_norm", d),
        "condition.output_proj": one("text projection", f"{TEXT}.weight", (d, c.text_dim), transpose=True),
        "condition.output_bias": one("text projection", f"{TEXT}.bias", (d,)),
    }
    for i in range(c.layers):
        ours, theirs = f"lm.layers.{i}", f"transformer.layers.{i}"
        self_in, self_out = f"{theirs}.self_attn.in_proj_weight", f"{theirs}.self_attn.out_proj.weight"
        rows |= norm(f"{ours}.norm1", f"{theirs}.norm1", d)
        rows[f"{ours}.qkv"] = one("self-attention", self_in, (3 * d, d), transpose=True)
        rows[f"{ours}.out"] = one("self-attention", self_out, (d, d), transpose=True)
        rows |= norm(f"{ours}.norm2", f"{theirs}.norm2", d)
        rows[f"{ours}.linear1"] = one("feed-forward", f"{theirs}.linear1.weight", (hidden, d), transpose=True)
        rows[f"{ours}.linear2"] = one("feed-forward", f"{theirs}.linear2.weight", (d, hidden), transpose=True)
        if c.cross:
            # q, k and v are stacked. Keys and values depend on the text alone: they are computed by lm_condition
            cross_in = f"{theirs}.cross_attention.in_proj_weight"
            cross_out = f"{theirs}.cross_attention.out_proj.weight"
            rows |= norm(f"{ours}.norm_cross", f"{theirs}.norm_cross", d)
            rows[f"{ours}.cross_q"] = one("cross-attention", cross_in, (3 * d, d), q, transpose=True)
            rows[f"{ours}.cross_out"] = one("cross-attention", cross_out, (d, d), transpose=True)
            rows[f"condition.key_values.{i}"] = one("cross-attention", cross_in, (3 * d, d), kv, transpose=True)
    return rows


def _huggingface(c: LMConfig, specs: Mapping[str, Spec]) -> dict[str, Source]:
    d, hidden = c.dim, c.hidden
    decoder = "decoder.model.decoder"
    embeddings = _numbered(f"{decoder}.embed_tokens.{{}}.weight", c.codebooks)
    heads = _numbered("decoder.lm_heads.{}.weight", c.codebooks)
    rows: dict[str, Source] = {
        "lm.embedding": stack("embeddings", embeddings, (c.card + 1, d)),
        "lm.heads": stack("heads", heads, (c.card, d), transpose=True),
        **norm("lm.out_norm", f"{decoder}.layer_norm", d),
        **_projection("text projection", "condition", "enc_to_dec_proj", c.text_dim, d, specs),
    }
    if isinstance(c.self_wav, MelodyConfig):
        window = Source("melody", (), fold=lambda n=c.self_wav.n_fft: torch.hann_window(n))
        rows |= {"melody.window": window}
        rows |= _projection("melody", "melody", "audio_enc_to_dec_proj", c.self_wav.chroma, d, specs)
    for i in range(c.layers):
        ours, theirs = f"lm.layers.{i}", f"{decoder}.layers.{i}"
        qkv = [f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv"]
        rows |= norm(f"{ours}.norm1", f"{theirs}.self_attn_layer_norm", d)
        rows[f"{ours}.qkv"] = stack("self-attention", qkv, (d, d), transpose=True)
        rows[f"{ours}.out"] = one("self-attention", f"{theirs}.self_attn.out_proj.weight", (d, d), transpose=True)
        rows |= norm(f"{ours}.norm2", f"{theirs}.final_layer_norm", d)
        rows[f"{ours}.linear1"] = one("feed-forward", f"{theirs}.fc1.weight", (hidden, d), transpose=True)
        rows[f"{ours}.linear2"] = one("feed-forward", f"{theirs}.fc2.weight", (d, hidden), transpose=True)
        if c.cross:
            rows |= _huggingface_cross(ours, f"{theirs}.encoder_attn", d)
            rows[f"condition.key_values.{i}"] = stack(
                "cross-attention", [f"{theirs}.encoder_attn.{x}_proj.weight" for x in "kv"], (d, d), transpose=True
            )
    return rows


def _huggingface_cross(ours: str, theirs: str, d: int) -> dict[str, Source]:
    """What of cross-attention is a layer's own: its keys and values are computed by lm_condition."""
    return {
        **norm(f"{ours}.norm_cross", f"{theirs}_layer_norm", d),
        f"{ours}.cross_q": one("cross-attention", f"{theirs}.q_proj.weight", (d, d), transpose=True),
        f"{ours}.cross_out": one("cross-attention", f"{theirs}.out_proj.weight", (d, d), transpose=True),
    }


def _projection(
    component: str, ours: str, theirs: str, width: int, dim: int, specs: Mapping[str, Spec]
) -> dict[str, Source]:
    """A linear map to the model's width; transformers has none where the widths are equal: the identity."""
    if width == dim and f"{theirs}.weight" not in specs:
        return {
            f"{ours}.output_proj": Source(component, (), fold=lambda: torch.eye(dim)),
            f"{ours}.output_bias": Source(component, (), fold=lambda: torch.zeros(dim)),
        }
    return {
        f"{ours}.output_proj": one(component, f"{theirs}.weight", (dim, width), transpose=True),
        f"{ours}.output_bias": one(component, f"{theirs}.bias", (dim,)),
    }


def self_wav(c: LMConfig) -> dict[str, Source]:
    """The conditioner of melody and style models that takes audio."""
    if isinstance(c.self_wav, MelodyConfig):
        return _melody(c.self_wav)
    return {} if c.self_wav is None else _style(c.self_wav)


def _melody(c: MelodyConfig) -> dict[str, Source]:
    return {
        "melody.window": one("melody", f"{SELF_WAV}.chroma.spec.window", (c.n_fft,)),
        **_output("melody", c.chroma, c.output_dim),
    }


def _style(c: StyleConfig) -> dict[str, Source]:
    d, hidden = c.dim, c.hidden
    rows = {
        "style.embed": one("style", f"{SELF_WAV}.embed.weight", (d, c.features), transpose=True),
        "style.embed_bias": one("style", f"{SELF_WAV}.embed.bias", (d,)),
        "style.mean": one("style", f"{SELF_WAV}.batch_norm.running_mean", (d,)),
        "style.variance": one("style", f"{SELF_WAV}.batch_norm.running_var", (d,)),
        **_output("style", d, c.output_dim),
    }
    for i in range(c.layers):
        ours, theirs = f"style.layers.{i}", f"{SELF_WAV}.transformer.layers.{i}"
        rows |= norm(f"{ours}.norm1", f"{theirs}.norm1", d, "style")
        rows |= norm(f"{ours}.norm2", f"{theirs}.norm2", d, "style")
        for name, key, shape in (
            ("qkv", "self_attn.in_proj_weight", (3 * d, d)),
            ("out", "self_attn.out_proj.weight", (d, d)),
            ("linear1", "linear1.weight", (hidden, d)),
            ("linear2", "linear2.weight", (d, hidden)),
        ):
            rows[f"{ours}.{name}"] = one("style", f"{theirs}.{key}", shape, transpose=True)
    for i in range(c.levels):
        rows[f"style.codebooks.{i}"] = one("style", f"{SELF_WAV}.rvq.vq.layers.{i}._codebook.embed", (c.bins, d))
    return rows


def _numbered(name: str, count: int) -> list[str]:
    return [name.format(i) for i in range(count)]


def _output(component: str, width: int, dim: int) -> dict[str, Source]:
    return {
        f"{component}.output_proj": one(component, f"{SELF_WAV}.output_proj.weight", (dim, width), transpose=True),
        f"{component}.output_bias": one(component, f"{SELF_WAV}.output_proj.bias", (dim,)),
    }


_DROPPED = {
    "audiocraft": [
        Dropped(f"{SELF_WAV}.batch_norm.num_batches_tracked", "counts training steps"),
        *codebook_training_state(f"{SELF_WAV}.rvq.vq.layers.*._codebook"),
        Dropped(f"{T5}.*", "the fine-tuned text encoder is exported by export/bundle.py with --text"),
        Dropped("compression_model.*", "the codec is exported by export/codec.py"),
        Dropped("*.compression_model.*", "the codec is exported by export/codec.py"),
    ],
    "huggingface": [
        Dropped("text_encoder.*", "the text encoder is exported by export/text.py"),
        Dropped("audio_encoder.*", "the codec is exported by export/codec.py"),
        Dropped("decoder.model.decoder.embed_positions.weights", "the sinusoid is computed"),
    ],
}
