"""The text encoder's table: our tensors <- Hugging Face's T5."""

from pathlib import Path

import torch

from clean_lm.models.config import ConfigError, TextConfig
from weights.checkpoint import Checkpoint, open_text
from weights.huggingface_config import text_config
from weights.mapping import Dropped, MappingError, Model, Source, match, one, stack

PREFIX = {
    "t5": "",
    "huggingface": "text_encoder.",
}  # by layout: before a T5's names
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor by two names: files have either or both


def load(path: Path) -> Model[TextConfig]:
    """Open a text encoder and match it. Raises CheckpointError, ConfigError, MappingError, FileNotFoundError."""
    checkpoint = open_text(path)
    try:
        config = read_config(checkpoint)
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from None
    model = match(checkpoint, config, table(checkpoint, config), dropped(checkpoint))
    names = embeddings(checkpoint)
    if len(names) == 2 and not torch.equal(*map(checkpoint.open(), names)):
        raise MappingError(f"{checkpoint.path}: {' and '.join(names)} differ, expected the same numbers in both")
    return model


def read_config(checkpoint: Checkpoint) -> TextConfig:
    """The text encoder that config.json describes. Raises ConfigError."""
    return text_config(checkpoint.config, PREFIX[checkpoint.layout])


def embeddings(checkpoint: Checkpoint) -> list[str]:
    """The names that the token embedding has in a checkpoint: one or two, none if it is missing."""
    names = [PREFIX[checkpoint.layout] + name for name in EMBEDDINGS]
    return [name for name in names if name in checkpoint.specs]


def table(checkpoint: Checkpoint, c: TextConfig) -> dict[str, Source]:
    """Ours <- theirs."""
    at = PREFIX[checkpoint.layout]
    embedding = next(iter(embeddings(checkpoint)), at + EMBEDDINGS[0])
    inner = c.heads * c.head_dim
    first = f"{at}encoder.block.0.layer.0.SelfAttention"
    rows = {
        "embedding": one("embeddings", embedding, (c.vocab, c.dim)),
        "relative_bias": one("relative bias", f"{first}.relative_attention_bias.weight", (c.buckets, c.heads)),
        "out_norm.weight": one("norms", f"{at}encoder.final_layer_norm.weight", (c.dim,)),
    }
    for i in range(c.layers):
        ours, attention, ff = f"layers.{i}", *(f"{at}encoder.block.{i}.layer.{part}" for part in (0, 1))
        out, linear2 = f"{attention}.SelfAttention.o.weight", f"{ff}.DenseReluDense.wo.weight"
        qkv = [f"{attention}.SelfAttention.{x}.weight" for x in "qkv"]
        linear1 = [f"{ff}.DenseReluDense.{x}.weight" for x in (("wi_0", "wi_1") if c.gated else ("wi",))]
        rows[f"{ours}.norm1.weight"] = one("norms", f"{attention}.layer_norm.weight", (c.dim,))
        rows[f"{ours}.qkv"] = stack("self-attention", qkv, (inner, c.dim), transpose=True)
        rows[f"{ours}.out"] = one("self-attention", out, (c.dim, inner), transpose=True)
        rows[f"{ours}.norm2.weight"] = one("norms", f"{ff}.layer_norm.weight", (c.dim,))
        rows[f"{ours}.linear1"] = stack("feed-forward", linear1, (c.hidden, c.dim), transpose=True)
        rows[f"{ours}.linear2"] = one("feed-forward", linear2, (c.dim, c.hidden), transpose=True)
    return {f"text_encoder.{name}": source for name, source in rows.items()}


def dropped(checkpoint: Checkpoint) -> list[Dropped]:
    """What is left out on purpose, and why."""
    drop = [Dropped(name, f"the same tensor as {EMBEDDINGS[0]}") for name in embeddings(checkpoint)[1:]]
    return drop + _DROPPED[checkpoint.layout]


_DROPPED = {
    "t5": [
        Dropped("decoder.*", "of T5's decoder: only the encoder is used"),
        Dropped("lm_head.weight", "of T5's decoder: only the encoder is used"),
    ],
    "huggingface": [
        Dropped("decoder.*", "the language model is exported by export/lm.py"),
        Dropped("enc_to_dec_proj.*", "the language model is exported by export/lm.py"),
        Dropped("audio_encoder.*", "the codec is exported by export/codec.py"),
    ],
}
