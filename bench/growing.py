"""Exports the model as optimum exports decoders: with a cache that grows, no sampling, and cross-attention always.

     in: past 2 x [R, H, P, D]            out: present 2 x [R, H, P + S, D]
every step  o o o o o o o o  +  n   ->   o o o o o o o o n     a new tensor of each layer, all of it copied
"""

from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor

from clean_lm.models.config import LMConfig
from clean_lm.models.lm import LM
from clean_lm.models.transformer import Cache, StandardAttention, scaled
from export.bundle_writer import new_folder
from export.lm_graphs import cache_specs
from export.onnx_graph import TensorSpec, write
from weights.lm import load

FILE = "decoder.onnx"


class GrowingAttention(StandardAttention):
    """ai.onnx operators on a cache of exactly the columns that were read; it returns a longer one."""

    def columns(self, position: Tensor, rows: int, new: int, capacity: int) -> tuple[Tensor, ...]:
        return (torch.arange(capacity + new) <= repeat(capacity + torch.arange(new), "s -> s 1"),)  # [S, P + S]

    def __call__(self, qkv: Tensor, cache: Cache, columns: tuple[Tensor, ...], heads: int) -> tuple[Tensor, Cache]:
        q, k, v = rearrange(qkv, "r s (three h d) -> three r h s d", three=3, h=heads)
        keys, values = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        weights = torch.where(columns[0], scaled(q, keys), float("-inf")).softmax(dim=-1)
        return rearrange(weights @ values, "r h s d -> r s (h d)"), (keys, values)


class GrowingLM(LM):
    """Logits of every row and column: guidance and sampling are the caller's."""

    def __init__(self, config: LMConfig):
        super().__init__(config, GrowingAttention())

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, codes: Tensor, position: Tensor, past: list[Cache], cross: list[Cache]
    ) -> tuple[Tensor, list[Cache]]:
        """codes [R, K, S], position [1] = P, past L x 2 x [R, H, P, D], cross L x 2 x [R, H, N, D]
        -> logits [R, S, K, card], present L x 2 x [R, H, P + S, D]."""
        x, present = self.read(codes, position, past, cross)
        return self.logits(x), present


def export(checkpoint: Path, out: Path) -> None:
    """Write the graph into a new folder. Raises ExportError, CheckpointError."""
    model, dtype = load(checkpoint), torch.float32
    c = model.config
    inputs = {
        "codes": TensorSpec("codes", torch.int64, ("rows", c.codebooks, "columns")),
        "position": TensorSpec("position", torch.int64, (1,)),
        "past": cache_specs(c, "past_key_values", "capacity", c.head_dim, dtype),
        "cross": cache_specs(c, "cross_key_values", "text", c.head_dim, dtype, rows="texts"),
    }
    presents = cache_specs(c, "present", "total", c.head_dim, dtype)
    outputs = [TensorSpec("logits", torch.float32, ("rows", "columns", c.codebooks, c.card))]
    outputs += [spec for cache in presents for spec in cache]
    with new_folder(out, model.parameters * 4) as folder:
        write(GrowingLM(c), model.weights("lm"), dtype, inputs, outputs, folder / FILE)
