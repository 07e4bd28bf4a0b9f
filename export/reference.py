"""The PyTorch modules as a reference: logits of whole generations, one layer's weights in memory at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from clean_lm.conditioning import PerRow
from clean_lm.generation import Sampling
from clean_lm.models.chroma import Melody
from clean_lm.models.config import LMConfig, MelodyConfig
from clean_lm.models.lm import LM, Condition, Description, guide
from clean_lm.models.transformer import Cache, Layer, StandardAttention
from export.layerwise import CFG_COEF
from export.lm_graphs import Source
from weights.mapping import Model, fill

GUIDED = Sampling(use_sampling=False, cfg_coef=CFG_COEF)
DOUBLE = replace(GUIDED, cfg_coef_beta=5.0)


@dataclass(frozen=True)
class Request:
    """What is asked of a model for each row of the batch."""

    texts: PerRow  # the text encoder's states [N, E], or None for null text
    self_wav: PerRow | None = None  # melody and style models: the first part of the prefix [F, dim]
    sampling: Sampling = GUIDED


@dataclass
class Pass:
    """One request on its way through the layers."""

    x: Tensor  # [R, M + S, dim]
    texts: Tensor | None  # the text encoder's states [R, N, E], for the keys and values of every layer
    mask: Tensor  # int64 [R, N]
    sampling: Sampling


# A layer's number, and the keys and values that it adds to the cache [R, H, M + S, D], of one request by its name.
Visit = Callable[[int, str, Cache], None]


@torch.inference_mode()
def reference_logits(
    source: Source,
    columns: np.ndarray,
    requests: Mapping[str, Request],
    null_wav: np.ndarray | None,
    dtype: torch.dtype,
    visit: Visit = lambda *_: None,
) -> dict[str, np.ndarray]:
    """The PyTorch modules in `dtype` on given columns int64 [B, K, S], all of them in one call of each layer.

    null_wav: what stands for no melody [F, dim], or None for zeros. visit: is shown what the caches would hold.
    Returns guided logits [S, B, K, card] by request: what is predicted after each column. A layer is read for all
    requests at once, and one layer's weights are in memory at a time.
    """
    c, lm = source.config, source.weights("lm", dtype)
    condition = source.weights("condition", dtype)
    ends = fill(LM(replace(c, layers=0), StandardAttention()), {name: lm[name] for name in lm if "layers." not in name})
    passes = {name: begin(c, ends, condition, columns, request, null_wav, dtype) for name, request in requests.items()}
    for i in range(c.layers):
        layer = fill(Layer(c.dim, c.heads, c.hidden, StandardAttention(), bool(c.cross)), part(lm, f"layers.{i}."))
        keys_values = text_layer(c, condition, i) if c.cross else None
        for name, one in passes.items():
            cross = None if keys_values is None else keys_values(one.texts, one.mask)[0]
            one.x, present = read_columns(layer, one.x, cross)
            visit(i, name, present)
    batch, _, length = columns.shape
    return {name: guided_logits(ends, one.x[:, -length:], batch, one.sampling) for name, one in passes.items()}


def begin(
    c: LMConfig,
    ends: LM,
    condition: Mapping[str, Tensor],
    columns: np.ndarray,
    request: Request,
    null_wav: np.ndarray | None,
    dtype: torch.dtype,
) -> Pass:
    """The rows of all passes of a request: their columns embedded after the prefix, and their texts."""
    passes = passes_of(request)
    texts, wavs = ([row for one in passes for row in one[kind]] for kind in (0, 1))
    states = torch.from_numpy(stacked(texts, c.text_dim)).to(dtype)
    mask = torch.tensor([[t < (0 if text is None else len(text)) for t in range(states.shape[1])] for text in texts])
    prefix = None
    if not c.cross:
        prefix = fill(Description(c), condition)(states, mask.long())
        if c.self_wav is not None:
            before = stacked([null_wav if wav is None else wav for wav in wavs], c.dim)
            prefix = torch.cat([torch.from_numpy(before).to(dtype), prefix], dim=1)
    codes = torch.from_numpy(np.concatenate([columns] * len(passes)))
    return Pass(ends.embed(codes, torch.tensor([0]), prefix), states, mask.long(), request.sampling)


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def text_layer(c: LMConfig, condition: Mapping[str, Tensor], i: int) -> Condition:
    """The module that makes one layer's keys and values of a text."""
    names = {"output_proj": "output_proj", "output_bias": "output_bias", "key_values.0": f"key_values.{i}"}
    return fill(Condition(replace(c, layers=1)), {ours: condition[theirs] for ours, theirs in names.items()})


def read_columns(layer: Layer, x: Tensor, cross: Cache | None) -> tuple[Tensor, Cache]:
    """One layer on all columns at once: x [R, M + S, dim] -> the same, and what it adds to an empty cache."""
    rows, length, dim = x.shape
    none = x.new_zeros(rows, layer.heads, 0, dim // layer.heads)
    shared = layer.attention.columns(torch.tensor([0]), rows, length, 0)
    return layer(x, (none, none), cross, shared, rows)


def guided_logits(ends: LM, x: Tensor, batch: int, sampling: Sampling) -> np.ndarray:
    """Heads and guidance: x [R, S, dim] -> [S, B, K, card]."""
    beta = None if sampling.cfg_coef_beta is None else torch.tensor(sampling.cfg_coef_beta)
    logits = ends.logits(x).to(torch.promote_types(x.dtype, torch.float32))
    return rearrange(guide(logits, batch, torch.tensor(sampling.cfg_coef), beta), "b s k c -> s b k c").numpy()


def passes_of(request: Request) -> list[tuple[PerRow, PerRow]]:
    """Texts and melodies or styles of every pass: conditioned; with double guidance null text beside the melody or
    style; unconditional."""
    unconditional: PerRow = [None] * len(request.texts)
    self_wav = request.self_wav or unconditional
    middle = [] if request.sampling.cfg_coef_beta is None else [(unconditional, self_wav)]
    return [(request.texts, self_wav), *middle, (unconditional, unconditional)]


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
