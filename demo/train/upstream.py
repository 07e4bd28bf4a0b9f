"""Writes trained modules as audiocraft's checkpoints, by the tables that read such checkpoints, in reverse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from clean_lm.models.config import CodecConfig, LMConfig
from clean_lm.models.encodec import torch_gates
from demo.checkpoint import codec_table, codec_xp_cfg, xp_cfg
from weights.codec import AUDIOCRAFT, fold_gates
from weights.lm import audiocraft
from weights.mapping import Source, fold_weight_norm


def theirs(rows: Mapping[str, Source], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under audiocraft's names; those of the table that `ours` lacks are left out."""
    found: dict[str, Tensor] = {}
    for name, source in rows.items():
        if name not in ours:
            continue
        tensor = ours[name].detach().T if source.transpose else ours[name].detach()
        for piece, part in zip(source.pieces, parts(source, tensor), strict=True):
            whole = found.setdefault(piece.name, torch.zeros(piece.shape))
            whole[piece.rows if piece.rows else slice(None)] = part
    return found


def parts(source: Source, tensor: Tensor) -> list[Tensor]:
    """What each piece of a source holds of it."""
    if source.fold is fold_weight_norm:  # any length of v would do
        return [tensor.norm(dim=(1, 2), keepdim=True), tensor]
    if source.fold is fold_gates:
        return [torch_gates(part) for part in tensor[0].chunk(len(source.pieces))]
    return list(tensor.split([len(torch.empty(p.shape[0])[p.rows or slice(None)]) for p in source.pieces]))


def write_codec(path: Path, config: CodecConfig, ours: Mapping[str, Tensor]) -> None:
    """compression_state_dict.bin, float16; with the codebooks' training state, as upstream's loader wants all keys."""
    tensors = theirs(codec_table(config), ours)
    for k in range(config.codebooks):
        at = AUDIOCRAFT.codebook.format(k)
        tensors |= {f"{at}.inited": torch.ones(1), f"{at}.cluster_size": torch.ones(config.card)}
        tensors[f"{at}.embed_avg"] = tensors[f"{at}.embed"].clone()
    save(path, tensors, codec_xp_cfg(config))


def write_lm(path: Path, config: LMConfig, ours: Mapping[str, Tensor]) -> None:
    """state_dict.bin, float16; ours: by the table's names, "lm." and "condition." before the modules' own."""
    save(path, theirs(audiocraft(config), ours), xp_cfg(config))


def save(path: Path, tensors: Mapping[str, Tensor], tree: Mapping[str, Any]) -> None:
    state = {name: tensor.half() for name, tensor in tensors.items()}
    torch.save({"best_state": state, "xp.cfg": yaml.safe_dump(tree), "version": "1.3.0", "exported": True}, path)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
