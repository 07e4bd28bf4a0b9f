"""The parts of MusicGen's transformer: weights, positions, norms and attention with an explicit cache.

Weights of linear maps are stored [in, out], as `x @ w` and ONNX MatMul want them.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

Cache = tuple[Tensor, Tensor]  # keys and values, each [R, H, C, D]


class Attention(Protocol):
    """How causal self-attention reads and extends its cache: a choice made when the model is built."""

    def columns(self, position: Tensor, rows: int, new: int, capacity: int) -> tuple[Tensor, ...]:
        """What all layers need to know of the `new` columns from `position` [1] on: computed once a step."""
        ...

    def __call__(self, qkv: Tensor, cache: Cache, columns: tuple[Tensor, ...], heads: int) -> tuple[Tensor, Cache]:
        """qkv [R, S, 3HD], cache 2 x [R, H, C, D] -> the new columns' attention [R, S, HD], present cache."""
        ...

    def cross(self, q: Tensor, cross: Cache, heads: int) -> Tensor:
        """q [X, S, HD], the text's keys and values 2 x [X, H, N, D] -> the columns' attention [X, S, HD].

        Nothing is masked: the padding of a text has zero keys, which take their share of the softmax, as upstream.
        """
        ...


class StandardAttention:
    """ai.onnx operators only, and plain PyTorch. The present cache is the new columns alone: 2 x [R, H, S, D].

       cache: only :position is read      new: causal
    0  o o o o . . . . . . . . . . . .    o . .
    1  o o o o . . . . . . . . . . . .    o o .        position 4, S = 3, C = 16
    2  o o o o . . . . . . . . . . . .    o o o

    Only scores are concatenated, one number a column; keys and values, D numbers a column, are not copied.
    """

    def columns(self, position: Tensor, rows: int, new: int, capacity: int) -> tuple[Tensor, ...]:
        past = repeat(torch.arange(capacity) < position, "c -> s c", s=new)
        steps = torch.arange(new)
        causal = steps[None, :] <= steps[:, None]
        return (torch.cat([past, causal], dim=1),)  # [S, C + S]

    def __call__(self, qkv: Tensor, cache: Cache, columns: tuple[Tensor, ...], heads: int) -> tuple[Tensor, Cache]:
        q, k, v = rearrange(qkv, "r s (three h d) -> three r h s d", three=3, h=heads)
        capacity = cache[0].shape[2]
        scores = torch.cat([scaled(q, cache[0]), scaled(q, k)], dim=-1)
        weights = torch.where(columns[0], scores, float("-inf")).softmax(dim=-1)
        past, new = weights.split([capacity, k.shape[2]], dim=-1)
        return rearrange(past @ cache[1] + new @ v, "r h s d -> r s (h d)"), (k, v)

    def cross(self, q: Tensor, cross: Cache, heads: int) -> Tensor:
        return attend(rearrange(q, "x s (h d) -> x h s d", h=heads), *cross)


class GroupQueryAttention:
    """ONNX Runtime's own attention operators, the cache one buffer that is extended in place. Export only.

    The CPU kernel of com.microsoft.GroupQueryAttention wants a head size that is a multiple of 8: smaller heads are
    padded with zeros, which is exact because the scale is given. The present cache is the whole buffer:
    2 x [R, H, C, D].
    """

    @staticmethod
    def cache_dim(head_dim: int) -> int:
        """The head size that the cache holds."""
        return head_dim + -head_dim % 8

    def columns(self, position: Tensor, rows: int, new: int, capacity: int) -> tuple[Tensor, ...]:
        total = (position + new).to(torch.int32)
        return repeat(total - 1, "1 -> r", r=rows), rearrange(total, "1 ->")

    def __call__(self, qkv: Tensor, cache: Cache, columns: tuple[Tensor, ...], heads: int) -> tuple[Tensor, Cache]:
        head_dim = qkv.shape[-1] // (3 * heads)
        pad = self.cache_dim(head_dim) - head_dim
        if pad:
            qkv = rearrange(qkv, "r s (n d) -> r s n d", d=head_dim)
            qkv = rearrange(F.pad(qkv, (0, pad)), "r s n d -> r s (n d)")
        out, keys, values = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [qkv, None, None, *cache, *columns],
            attrs={"num_heads": heads, "kv_num_heads": heads, "scale": head_dim**-0.5},
            dtypes=[qkv.dtype] * 3,
            shapes=[(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3), cache[0].shape, cache[1].shape],
            version=1,
        )
        if pad:
            out = rearrange(out, "r s (h d) -> r s h d", h=heads)
            out = rearrange(out[..., :head_dim], "r s h d -> r s (h d)")
        return out, (keys, values)

    def cross(self, q: Tensor, cross: Cache, heads: int) -> Tensor:
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            [q, *cross],
            attrs={"num_heads": heads},
            dtype=q.dtype,
            shape=q.shape,
            version=1,
        )


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention: q [R, H, S, D], k and v [R, H, N, D] -> [R, S, HD]."""
    return rearrange(scaled(q, k).softmax(dim=-1) @ v, "r h s d -> r s (h d)")


def scaled(q: Tensor, k: Tensor) -> Tensor:
    """q [R, H, S, D], k [R, H, N, D] -> scores [R, H, S, N]."""
    return (q * q.shape[-1] ** -0.5) @ rearrange(k, "r h n d -> r h d n")


def weight(*shape: int) -> nn.Parameter:
    """A weight without storage, to be filled from a checkpoint: `load_state_dict(..., assign=True)`."""
    return nn.Parameter(torch.empty(*shape, device="meta"), requires_grad=False)


def periods(dim: int) -> Tensor:
    """10000^(i / (dim/2 - 1)) for i = 0 .. dim/2 - 1: the sinusoid's periods over 2 pi, in columns [dim/2].

    A constant by torch's own float32 power, as upstream's: at column 1500 a last bit moves the phase by 1e-4.
    """
    half = dim // 2
    return 10_000 ** (torch.arange(half, dtype=torch.float32) / (half - 1))


def sinusoid(positions: Tensor, period: Tensor) -> Tensor:
    """positions int64 [S], period [dim/2] -> [S, dim] = [cos | sin] of position / period."""
    phase = positions[:, None].float() / period
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class Norm(nn.Module):
    """Layer norm over the last axis, eps 1e-5."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = weight(dim), weight(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class Layer(nn.Module):
    """One pre-norm layer: self-attention, cross-attention to the text where the model has it, feed-forward."""

    def __init__(self, dim: int, heads: int, hidden: int, attention: Attention, cross: bool):
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.norm1 = Norm(dim)
        self.qkv = weight(dim, 3 * dim)
        self.out = weight(dim, dim)
        if cross:
            self.norm_cross = Norm(dim)
            self.cross_q = weight(dim, dim)
            self.cross_out = weight(dim, dim)
        self.norm2 = Norm(dim)
        self.linear1 = weight(dim, hidden)
        self.linear2 = weight(hidden, dim)

    def forward(
        self, x: Tensor, cache: Cache, cross: Cache | None, columns: tuple[Tensor, ...], texts: int
    ) -> tuple[Tensor, Cache]:
        """x [R, S, dim], cache 2 x [R, H, C, D], cross 2 x [X, H, N, D], texts = X <= R -> x, present cache."""
        read, present = self.attention(self.norm1(x) @ self.qkv, cache, columns, self.heads)
        x = x + read @ self.out
        if cross is not None:
            # Rows without text would attend to zeros, which adds exactly zero: those after the first X skip it.
            conditioned, unconditional = x.split([texts, x.shape[0] - texts])
            read = self.attention.cross(self.norm_cross(conditioned) @ self.cross_q, cross, self.heads)
            x = torch.cat([conditioned + read @ self.cross_out, unconditional])
        x = x + F.gelu(self.norm2(x) @ self.linear1) @ self.linear2
        return x, present
