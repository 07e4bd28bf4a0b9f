"""The text encoder's table: our tensors <- Hugging Face's T5, or the T5 that audiocraft trained with its model."""

from pathlib import Path

import torch

from clean_lm.models.config import ConfigError, TextConfig
from weights.checkpoint import Checkpoint, open_text
from weights.containers import Read
from weights.fields import Fields
from weights.huggingface_config import text_config
from weights.lm import T5
from weights.mapping import Dropped, MappingError, Model, Source, match, one, require_tensors, stack

PREFIX = {
    "t5": "",
    "huggingface": "text_encoder.",
}  # by layout: before a T5's names
FINETUNE = "conditioners.description.t5.finetune"  # xp.cfg's field
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor by two names: files have either or both


def load(path: Path, base: Path | None = None) -> Model[TextConfig]:
    """Open a text encoder and match it; `base`: of an adapter, the model that it belongs to.

    Raises CheckpointError, ConfigError, MappingError, FileNotFoundError.
    """
    return matched(open_text(path, base))


def load_finetuned(lm: Checkpoint, path: Path) -> Model[TextConfig]:
    """The T5 among the tensors of audiocraft's model. Its sizes and its tokenizer are those of the T5 at `path`.

    Raises CheckpointError, ConfigError, MappingError, FileNotFoundError.
    """
    at = f"{T5}."
    stock = open_text(path)
    config = stock.config.get("text_encoder", {}) if stock.layout == "huggingface" else stock.config
    specs = {name.removeprefix(at): spec for name, spec in lm.specs.items() if name.startswith(at)}

    def mapped() -> Read:
        read = lm.open()
        return lambda name: read(at + name)

    notes = (f"text encoder: the fine-tuned T5 of {lm.path}, with the tokenizer of {path}",)
    folder = stock.tokenizer or stock.path
    return matched(Checkpoint(lm.path, "t5", config, specs, mapped, notes, folder, lm.verify))


def is_finetuned(lm: Checkpoint) -> bool:
    """Whether the language model was trained together with its text encoder, by audiocraft's field."""
    return lm.layout == "audiocraft" and Fields(lm.config).get(FINETUNE) is True


def holds_text_encoder(lm: Checkpoint) -> bool:
    """Whether audiocraft's file holds that text encoder."""
    return any(name.startswith(f"{T5}.") for name in lm.specs)


def matched(checkpoint: Checkpoint) -> Model[TextConfig]:
    """A text encoder's checkpoint as a model. Raises ConfigError, MappingError."""
    try:
        config = read_config(checkpoint)
        require_tensors(checkpoint.specs, num_layers=config.layers)
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
        Dropped("audio_enc_to_dec_proj.*", "the language model is exported by export/lm.py"),
        Dropped("audio_encoder.*", "the codec is exported by export/codec.py"),
    ],
}
