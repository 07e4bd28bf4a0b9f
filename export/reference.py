"""The PyTorch modules as a reference: logits of whole generations, one layer's weights in memory at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clean_lm.conditioning import PerRow
from clean_lm.generation import Sampling
from clean_lm.models.chroma import Melody
from clean_lm.models.config import LMConfig, MelodyConfig
from clean_lm.models.lm import LM, guide
from clean_lm.models.transformer import Cache, Layer, StandardAttention
from export.lm_graphs import text_module
from export.quality import CFG_COEF
from weights.mapping import Model, fill

GUIDED = Sampling(use_sampling=False, cfg_coef=CFG_COEF)
DOUBLE = replace(GUIDED, cfg_coef_beta=5.0)


@dataclass(frozen=True)
class Request:
    """What is asked of a model for each row of the batch."""

    texts: PerRow  # the text encoder's states [N, E], or None for null text
    self_wav: PerRow | None = None  # melody and style models: the first part of the prefix [F, dim]
    sampling: Sampling = GUIDED


@torch.inference_mode()
def reference_logits(
    model: Model[LMConfig],
    columns: np.ndarray,
    prefill: int,
    request: Request,
    null_wav: np.ndarray | None,
    dtype: torch.dtype,
) -> np.ndarray:
    """The PyTorch modules in `dtype` on given columns int64 [B, K, S]: a prefill, then one by one.

    null_wav: what stands for no melody [F, dim], or None for zeros. Returns guided logits [calls, B, K, card].
    All calls of a layer are made before the next layer is read, so that one layer's weights are in memory at a time.
    """
    passes = passes_of(request)
    cross, prefix = conditioning(model, passes, null_wav, dtype)
    codes = torch.from_numpy(np.concatenate([columns] * len(passes)))
    ends = without_layers(model, dtype)
    spans = calls(prefill, columns.shape[2])
    places = cache_places(spans, 0 if prefix is None else prefix.shape[1])
    xs = [
        ends.embed(codes[:, :, start:end], torch.tensor([place]), prefix if start == 0 else None)
        for (start, end), (place, _) in zip(spans, places, strict=True)
    ]
    for i in range(model.config.layers):
        xs = run_layer(model, i, xs, places, cross[i] if cross else None, dtype)
    return np.stack([guided_logits(ends, x, len(columns), request.sampling, dtype) for x in xs])


def calls(prefill: int, length: int) -> list[tuple[int, int]]:
    """Which columns each call reads: the prefill, then one a step."""
    return [(0, prefill), *((s, s + 1) for s in range(prefill, length))]


def cache_places(spans: Sequence[tuple[int, int]], prefix: int) -> list[tuple[int, int]]:
    """Where each call's columns lie in the cache: the first call reads the prefix too, before its columns."""
    return [(start + prefix * (start > 0), end + prefix) for start, end in spans]


def without_layers(model: Model[LMConfig], dtype: torch.dtype) -> LM:
    """The language model's embeddings, last norm and heads."""
    weights = model.weights("lm", dtype)
    ends = {name: weights[name] for name in weights if not name.startswith("layers.")}
    return fill(LM(replace(model.config, layers=0), StandardAttention()), ends)


def run_layer(
    model: Model[LMConfig],
    i: int,
    xs: Sequence[Tensor],
    places: Sequence[tuple[int, int]],
    cross: Cache | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Layer i in every call, its cache filled from one to the next: xs, each [R, S, dim] -> the same."""
    c, attention = model.config, StandardAttention()
    layer = fill(Layer(c.dim, c.heads, c.hidden, attention, bool(c.cross)), model.weights(f"lm.layers.{i}", dtype))
    rows, capacity = len(xs[0]), places[-1][1]
    cache = [torch.zeros(rows, c.heads, capacity, c.head_dim, dtype=dtype) for _ in range(2)]
    found = []
    for x, (start, end) in zip(xs, places, strict=True):
        shared = attention.columns(torch.tensor([start]), rows, end - start, capacity)
        out, present = layer(x, (cache[0], cache[1]), cross, shared, rows)
        for buffer, new in zip(cache, present, strict=True):
            buffer[:, :, start:end] = new
        found.append(out)
    return found


def guided_logits(ends: LM, x: Tensor, batch: int, sampling: Sampling, dtype: torch.dtype) -> np.ndarray:
    """The last column of a call, heads and guidance: x [R, S, dim] -> [B, K, card]."""
    logits = ends.logits(x[:, -1]).to(torch.promote_types(dtype, torch.float32))
    beta = None if sampling.cfg_coef_beta is None else torch.tensor(sampling.cfg_coef_beta)
    return guide(logits, batch, torch.tensor(sampling.cfg_coef), beta).numpy()


def passes_of(request: Request) -> list[tuple[PerRow, PerRow]]:
    """Texts and melodies or styles of every pass: conditioned; with double guidance null text beside the melody or
    style; unconditional."""
    unconditional: PerRow = [None] * len(request.texts)
    self_wav = request.self_wav or unconditional
    middle = [] if request.sampling.cfg_coef_beta is None else [(unconditional, self_wav)]
    return [(request.texts, self_wav), *middle, (unconditional, unconditional)]


def conditioning(
    model: Model[LMConfig], passes: Sequence[tuple[PerRow, PerRow]], null_wav: np.ndarray | None, dtype: torch.dtype
) -> tuple[list[Cache], Tensor | None]:
    """For the rows of all passes, what every layer attends to, or the prefix before the first column."""
    texts, wavs = ([row for one in passes for row in one[part]] for part in (0, 1))
    states = torch.from_numpy(stacked(texts, model.config.text_dim)).to(dtype)
    mask = torch.tensor([[t < (0 if text is None else len(text)) for t in range(states.shape[1])] for text in texts])
    module = fill(text_module(model.config), model.weights("condition", dtype))
    texts_read = module(states, mask.long())
    if model.config.cross:
        return texts_read, None
    if model.config.self_wav is None:
        return [], texts_read
    before = stacked([null_wav if wav is None else wav for wav in wavs], model.config.dim)
    return [], torch.cat([torch.from_numpy(before).to(dtype), texts_read], dim=1)


def stacked(rows: PerRow, width: int) -> np.ndarray:
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
