"""What wrappers of a module leave in the names of its tensors, and taking it off.

DistributedDataParallel puts `module.` before every name, torch.compile `_orig_mod.`, FSDP `_fsdp_wrapped_module.`,
activation checkpointing `_checkpoint_wrapped_module.` (the last three before the names of any inner module, too), and a
class that keeps the model in a field the name of that field: `model.`, `lm.`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from weights.errors import CheckpointError

ANYWHERE = r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
BEFORE = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
          "model", "lm", "compression_model")  # fmt: skip

# A tensor that every model of a kind has: its name with and without wrappers.
ANCHORS = (
    "emb.0.weight",
    "quantizer.vq.layers.0._codebook.embed",
    "decoder.model.decoder.embed_tokens.0.weight",
    "model.decoder.embed_tokens.0.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "quantizer.layers.0.codebook.embed",
)

Value = TypeVar("Value")


def unwrapped(path: Path, names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Names without what wrappers put there -> the names in the file; and a note of what was taken off, if anything.

    Raises CheckpointError where two tensors would get the same name.
    """
    names = list(names)
    clean = {name: re.sub(ANYWHERE, "", name) for name in names}
    prefix = _prefix(clean.values())
    clean = {name: inner.removeprefix(prefix) for name, inner in clean.items()}
    twice = [name for name, count in Counter(clean.values()).items() if count > 1]
    if twice:
        both = " and ".join(name for name in names if clean[name] == twice[0])
        raise CheckpointError(f"{path}: {both} are the same tensor to two wrappers; save one of the two models alone")
    taken = {name.removesuffix(inner) if name.endswith(inner) else "_orig_mod. and the like within"
             for name, inner in clean.items() if name != inner}  # fmt: skip
    notes = (f"names of tensors: took off what a wrapper left, {', '.join(sorted(taken))}",) if taken else ()
    return {inner: name for name, inner in clean.items()}, notes


def renamed(values: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    """Values by the names of `unwrapped`."""
    return {inner: values[name] for inner, name in names.items()}


def _prefix(names: Iterable[str]) -> str:
    """What stands before an anchor's name and consists of wrappers' words alone; "" where the anchor stands bare."""
    names = set(names)
    for anchor in ANCHORS:
        if anchor in names:
            return ""
    for anchor in ANCHORS:
        for name in sorted(names):
            prefix = name.removesuffix(anchor)
            if prefix != name and prefix.endswith(".") and set(prefix[:-1].split(".")) <= set(BEFORE):
                return prefix
    return ""
