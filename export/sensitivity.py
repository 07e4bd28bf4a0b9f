"""Which weights need more bits: what each matrix costs when it alone is quantized, the mixed variant's measurement."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from clean_lm.conditioning import Conditioning
from clean_lm.models.lm import LM, guide
from clean_lm.models.transformer import Cache, Layer
from export.quality import CFG_COEF
from export.rewrite import quantize_blocks

COLUMNS = 32  # that the distributions are compared on
MATRICES = ("qkv", "out", "cross_q", "cross_out", "linear1", "linear2")


def rounded(weight: Tensor, bits: int, block: int) -> Tensor:
    """weight [K, N] as it is read back from its codes and scales."""
    codes, scales = quantize_blocks(weight, bits, block)
    values = (codes.float() - 2 ** (bits - 1)) * scales[..., None]
    return rearrange(values, "n k b -> (k b) n")[: weight.shape[0]]


@torch.inference_mode()
def sensitivities(lm: LM, columns: np.ndarray, conditioning: Conditioning, bits: int, block: int) -> dict[str, float]:
    """KL divergence in nats, mean over codes, of the float32 next-token distribution from that with one matrix
    quantized, for every matrix by its name in the graph.

    columns int64 [B, K, S] in the delay pattern. The layers before a changed matrix are not computed again.
    """
    batch, layers = len(columns), [cast(Layer, layer) for layer in lm.layers]
    codes = torch.from_numpy(np.tile(columns, (conditioning.passes, 1, 1)))
    cross = cross_of(conditioning, len(layers))
    texts = cross[0][0].shape[0] if cross[0] else 0
    prefix = None if conditioning.prefix is None else torch.from_numpy(conditioning.prefix)
    x = lm.embed(codes, torch.tensor([0]), prefix)
    shared = lm.attention.columns(torch.tensor([0]), len(codes), x.shape[1], 0)

    def run(x: Tensor, first: int) -> Tensor:
        """The layers from `first` on, heads and guidance: x [R, M + S, dim] -> log-probabilities [B, S, K, card]."""
        for layer, text in zip(layers[first:], cross[first:], strict=True):
            x, _ = layer(x, empty(layer, x), text, shared, texts)
        return guide(lm.logits(x[:, -codes.shape[2] :]), batch, torch.tensor(CFG_COEF)).log_softmax(dim=-1)

    def cost(owner: nn.Module, name: str, x: Tensor, first: int) -> float:
        """Of one matrix quantized; x: the input of layer `first`, the first that it changes."""
        exact = getattr(owner, name)
        setattr(owner, name, nn.Parameter(rounded(exact, bits, block), requires_grad=False))
        moved = run(x, first)
        setattr(owner, name, exact)
        return float((reference.exp() * (reference - moved)).sum(dim=-1).mean())

    inputs = [x]
    for layer, text in zip(layers, cross, strict=True):
        inputs.append(layer(inputs[-1], empty(layer, x), text, shared, texts)[0])
    reference = run(inputs[-1], len(layers))
    found = {}
    for i, layer in enumerate(tqdm(layers, "sensitivity of layers", disable=None)):
        matrices = [name for name in MATRICES if hasattr(layer, name)]
        found |= {f"layers.{i}.{name}": cost(layer, name, inputs[i], i) for name in matrices}
    return found | {"heads": cost(lm, "heads", inputs[-1], len(layers))}


def cross_of(conditioning: Conditioning, layers: int) -> Sequence[Cache | None]:
    """What every layer's cross-attention reads, if anything."""
    if not conditioning.cross:
        return [None] * layers
    arrays = {name: torch.from_numpy(array) for name, array in conditioning.cross.items()}
    return [(arrays[f"cross_key_values.{i}.key"], arrays[f"cross_key_values.{i}.value"]) for i in range(layers)]


def empty(layer: Layer, x: Tensor) -> Cache:
    """A cache without columns."""
    cache = x.new_zeros(x.shape[0], layer.heads, 0, x.shape[2] // layer.heads)
    return cache, cache


def most_sensitive(costs: Mapping[str, float], sizes: Mapping[str, int], bound: float) -> list[str]:
    """The fewest weights to keep so that the costs of all others add up to at most `bound`, or half of the whole cost
    if that is less. Those that cost most for their size go first.
    """
    left, chosen = sum(costs.values()), []
    bound = min(bound, left / 2)
    for name in sorted(costs, key=lambda name: costs[name] / sizes[name], reverse=True):
        if left <= bound:
            break
        chosen.append(name)
        left -= costs[name]
    return chosen
