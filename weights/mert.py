"""MERT's table: our tensors <- Hugging Face's MERT or HuBERT."""

from pathlib import Path

from clean_lm.models.config import ConfigError, MertConfig
from weights.checkpoint import Checkpoint, open_mert
from weights.huggingface_config import mert_config
from weights.mapping import (
    Dropped,
    Model,
    Source,
    linear,
    match,
    norm,
    one,
    require_tensors,
    weight_norm,
    weight_norm_names,
)

PREFIXES = ("hubert.", "mert_model.")  # before a MERT's names in a file that also has a head; else none


def load(path: Path, base: Path | None = None) -> Model[MertConfig]:
    """Open a MERT and match it; `base`: the model of an adapter.

    Raises CheckpointError, ConfigError, MappingError, FileNotFoundError.
    """
    checkpoint = open_mert(path, base)
    try:
        config = mert_config(checkpoint.config)
        require_tensors(checkpoint.specs, num_hidden_layers=config.layers, conv_dim=len(config.channels))
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from None
    return match(checkpoint, config, table(checkpoint, config), dropped(checkpoint))


def prefix(checkpoint: Checkpoint) -> str:
    """What the names of a MERT's tensors begin with in a checkpoint."""
    return next((at for at in PREFIXES if any(name.startswith(at) for name in checkpoint.specs)), "")


def table(checkpoint: Checkpoint, c: MertConfig) -> dict[str, Source]:
    """Ours <- theirs, weight norm in either of its spellings."""
    at, last = prefix(checkpoint), c.channels[-1]
    rows = {
        **norm("conv_norm", f"{at}feature_extractor.conv_layers.0.layer_norm", c.channels[0]),
        **norm("feature_norm", f"{at}feature_projection.layer_norm", last),
        **linear("projection", "projection", [f"{at}feature_projection.projection"], (c.dim, last)),
        **_positions(checkpoint, f"{at}encoder.pos_conv_embed.conv", c),
        **norm("norm", f"{at}encoder.layer_norm", c.dim),
    }
    for i, shape in enumerate(zip(c.channels, (1, *c.channels[:-1]), c.kernels, strict=True)):
        rows[f"convs.{i}"] = one("convolutions", f"{at}feature_extractor.conv_layers.{i}.conv.weight", shape)
    for i in range(c.layers):
        ours, theirs = f"layers.{i}", f"{at}encoder.layers.{i}"
        attention, ff = f"{theirs}.attention", f"{theirs}.feed_forward"
        qkv = [f"{attention}.{x}_proj" for x in "qkv"]
        rows |= linear("self-attention", f"{ours}.qkv", qkv, (c.dim, c.dim))
        rows |= linear("self-attention", f"{ours}.out", [f"{attention}.out_proj"], (c.dim, c.dim))
        rows |= norm(f"{ours}.norm1", f"{theirs}.layer_norm", c.dim)
        rows |= linear("feed-forward", f"{ours}.linear1", [f"{ff}.intermediate_dense"], (c.hidden, c.dim))
        rows |= linear("feed-forward", f"{ours}.linear2", [f"{ff}.output_dense"], (c.dim, c.hidden))
        rows |= norm(f"{ours}.norm2", f"{theirs}.final_layer_norm", c.dim)
    return {f"mert.{name}": source for name, source in rows.items()}


def dropped(checkpoint: Checkpoint) -> list[Dropped]:
    """What is left out on purpose, and why."""
    masked = Dropped(f"{prefix(checkpoint)}masked_spec_embed", "the embedding of masked frames, for training")
    heads = ("lm_head.*", "projector.*", "classifier.*", "layer_weights")
    return [masked, *(Dropped(name, "of a head on the features, which is not used") for name in heads)]


def _positions(checkpoint: Checkpoint, theirs: str, c: MertConfig) -> dict[str, Source]:
    shapes = (1, 1, c.position_kernel), (c.dim, c.dim // c.position_groups, c.position_kernel)
    return {
        "positions.weight": weight_norm("positions", theirs, weight_norm_names(checkpoint.specs), *shapes),
        "positions.bias": one("positions", f"{theirs}.bias", (c.dim,)),
    }
