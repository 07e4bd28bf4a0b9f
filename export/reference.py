"""The PyTorch modules as a reference: logits of whole generations, one layer's weights in memory at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clean_lm.models.chroma import Melody
from clean_lm.models.config import LMConfig, MelodyConfig
from clean_lm.models.lm import LM, guide
from clean_lm.models.transformer import Cache, Layer, StandardAttention
from clean_lm.runtime import Rows, Sampling
from export.lm_graphs import text_module
from export.quality import CFG_COEF
from weights.mapping import Model, fill

GUIDED = Sampling(use_sampling=False, cfg_coef=CFG_COEF)
DOUBLE = replace(GUIDED, cfg_coef_beta=5.0)


@dataclass(frozen=True)
class Told:
    """What a generation is told, per row of the batch."""

    texts: Rows  # the text encoder's states [N, E], or None for null text
    wavs: Rows | None = None  # melody and style models: what stands before the text [F, dim]
    sampling: Sampling = GUIDED


@torch.inference_mode()
def reference_logits(
    model: Model[LMConfig],
    columns: np.ndarray,
    prefill: int,
    told: Told,
    null_wav: np.ndarray | None,
    dtype: torch.dtype,
) -> np.ndarray:
    """The PyTorch modules in `dtype` on given columns int64 [B, K, S]: a prefill, then one by one.

    null_wav: what stands for no melody [F, dim], or None for zeros. Returns guided logits [calls, B, K, card].
    Layer by layer, every call of a layer before the next layer, so that one layer's weights are in memory at a time.
    """
    c = model.config
    batch, _, length = columns.shape
    groups = guided_rows(told)
    cross, prefix = reference_conditions(model, groups, null_wav, dtype)
    rows, before = len(groups) * batch, 0 if prefix is None else prefix.shape[1]
    codes = torch.from_numpy(np.concatenate([columns] * len(groups)))

    attention = StandardAttention()
    weights = model.weights("lm", dtype)
    ends = {name: weights[name] for name in weights if not name.startswith("layers.")}
    shell = fill(LM(replace(c, layers=0), attention), ends)
    # What each call reads, by places: the prefix belongs to the first.
    places = [(start + before * (start > 0), end + before) for start, end in calls(prefill, length)]
    xs = [
        shell.embed(codes[:, :, start:end], torch.tensor([place]), prefix if start == 0 else None)
        for (start, end), (place, _) in zip(calls(prefill, length), places, strict=True)
    ]
    for i in range(c.layers):
        layer = fill(Layer(c.dim, c.heads, c.hidden, attention, bool(c.cross)), model.weights(f"lm.layers.{i}", dtype))
        cache = [torch.zeros(rows, c.heads, before + length, c.head_dim, dtype=dtype) for _ in range(2)]
        for call, (start, end) in enumerate(places):
            shared = attention.columns(torch.tensor([start]), rows, end - start, before + length)
            xs[call], present = layer(xs[call], (cache[0], cache[1]), cross[i] if cross else None, shared, rows)
            for buffer, fresh in zip(cache, present, strict=True):
                buffer[:, :, start:end] = fresh
    wide = torch.promote_types(dtype, torch.float32)
    coef, beta = torch.tensor(told.sampling.cfg_coef), told.sampling.cfg_coef_beta
    beta = None if beta is None else torch.tensor(beta)
    return np.stack([guide(shell.logits(x[:, -1]).to(wide), batch, coef, beta).numpy() for x in xs])


def guided_rows(told: Told) -> list[tuple[Rows, Rows]]:
    """Texts and wavs of every group of rows, as upstream has them: all, with double guidance wavs alone, nothing."""
    nulls: Rows = [None] * len(told.texts)
    wavs = told.wavs or nulls
    middle = [] if told.sampling.cfg_coef_beta is None else [(nulls, wavs)]
    return [(told.texts, wavs), *middle, (nulls, nulls)]


def reference_conditions(
    model: Model[LMConfig], groups: Sequence[tuple[Rows, Rows]], null_wav: np.ndarray | None, dtype: torch.dtype
) -> tuple[list[Cache], torch.Tensor | None]:
    """What every layer attends to, or what stands before the first column, of all groups' rows."""
    texts, wavs = ([row for group in groups for row in group[part]] for part in (0, 1))
    states = torch.from_numpy(stacked(texts, model.config.text_dim)).to(dtype)
    mask = torch.tensor([[t < (0 if text is None else len(text)) for t in range(states.shape[1])] for text in texts])
    module = fill(text_module(model.config), model.weights("condition", dtype))
    told = module(states, mask.long())
    if model.config.cross:
        return told, None
    if model.config.self_wav is None:
        return [], told
    before = stacked([null_wav if wav is None else wav for wav in wavs], model.config.dim)
    return [], torch.cat([torch.from_numpy(before).to(dtype), told], dim=1)


def stacked(rows: Rows, width: int) -> np.ndarray:
    """rows [N, width] -> [R, longest, width], padded with zeros; None is zeros."""
    out = np.zeros((len(rows), max((len(row) for row in rows if row is not None), default=1), width), np.float32)
    for row, filled in zip(rows, out, strict=True):
        if row is not None:
            filled[: len(row)] = row
    return out


@torch.inference_mode()
def null_wav(model: Model[LMConfig]) -> np.ndarray | None:
    """What stands for no melody [F, dim], by the PyTorch module; None where that is zeros."""
    if not isinstance(model.config.self_wav, MelodyConfig):
        return None
    return fill(Melody(model.config.self_wav), model.weights("melody"))(torch.zeros(1, 1))[0].numpy()


def calls(prefill: int, length: int) -> list[tuple[int, int]]:
    """Which columns each call reads: the prefill, then one a step."""
    return [(0, prefill), *((s, s + 1) for s in range(prefill, length))]
