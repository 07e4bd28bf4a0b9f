"""T5's encoder, which turns a text's tokens into the states that MusicGen attends to.

Formulas from Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"
(arXiv 1910.10683); norms from Zhang and Sennrich (arXiv 1910.07467); the gated feed-forward of T5 v1.1 and flan from
Shazeer (arXiv 2002.05202).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clean_lm.models.config import TextConfig
from clean_lm.models.transformer import weight


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis: no mean is subtracted, there is no bias."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = weight(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight


class TextLayer(nn.Module):
    """One pre-norm layer: self-attention to all of the text, feed-forward."""

    def __init__(self, c: TextConfig):
        super().__init__()
        self.heads, self.gated = c.heads, c.gated
        self.norm1 = RMSNorm(c.dim, c.eps)
        self.qkv = weight(c.dim, 3 * c.heads * c.head_dim)
        self.out = weight(c.heads * c.head_dim, c.dim)
        self.norm2 = RMSNorm(c.dim, c.eps)
        self.linear1 = weight(c.dim, (1 + c.gated) * c.hidden)  # the gate, then the values
        self.linear2 = weight(c.hidden, c.dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [R, N, dim], bias [R, H, N, N] -> x."""
        q, k, v = rearrange(self.norm1(x) @ self.qkv, "r n (three h d) -> three r h n d", three=3, h=self.heads)
        scores = q @ rearrange(k, "r h n d -> r h d n") + bias  # T5 does not scale by 1/sqrt(D)
        x = x + rearrange(scores.softmax(dim=-1) @ v, "r h n d -> r n (h d)") @ self.out
        return x + self.feed_forward(self.norm2(x) @ self.linear1) @ self.linear2

    def feed_forward(self, x: Tensor) -> Tensor:
        """x [R, N, hidden], or [R, N, 2 hidden] where it is gated -> [R, N, hidden]."""
        if not self.gated:
            return F.relu(x)
        gate, value = rearrange(x, "r n (two hidden) -> two r n hidden", two=2)
        return F.gelu(gate, approximate="tanh") * value


class T5Encoder(nn.Module):
    """Tokens -> states. Positions enter only through the relative bias."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.max_distance = config.max_distance
        self.buckets = buckets(config.buckets, config.max_distance)
        self.embedding = weight(config.vocab, config.dim)
        self.relative_bias = weight(config.buckets, config.heads)  # the first layer's, which all layers use
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.layers))
        self.out_norm = RMSNorm(config.dim, config.eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids int64 [R, N], attention_mask int64 [R, N], 0 where a token is padding -> states [R, N, E].

        States where the mask is 0 are meaningless. N is not limited: positions are relative.
        """
        x, bias = self.embed(input_ids), self.bias(attention_mask)
        for layer in self.layers:
            x = layer(x, bias)
        return self.out_norm(x)

    def embed(self, input_ids: Tensor) -> Tensor:
        """input_ids [R, N] -> [R, N, dim]: T5 adds no positions here and does not scale."""
        return F.embedding(input_ids, self.embedding)

    def bias(self, attention_mask: Tensor) -> Tensor:
        """attention_mask [R, N] -> what every layer adds to its scores [R, H, N, N]: query, then key."""
        n = torch.arange(attention_mask.shape[1])
        distance = (n[None, :] - n[:, None]).clamp(-self.max_distance, self.max_distance)
        bias = F.embedding(self.buckets[distance + self.max_distance], self.relative_bias)
        # The lowest number rather than -inf: a row whose tokens are all masked stays finite.
        lowest = torch.finfo(bias.dtype).min
        return torch.where(attention_mask[:, None, None, :] > 0, rearrange(bias, "q k h -> h q k"), lowest)


def buckets(count: int, max_distance: int) -> Tensor:
    """The bucket of each relative position, key - query, from -max_distance to max_distance: int64 [2 max + 1].

    Section 2.1 of the paper, in the float32 that T5 was trained with. Half of the buckets are for keys before the
    query and for itself, half for keys after it. Of each half, the first half are single distances, the rest grow as
    the logarithm. For 32 and 128:

        key - query   -128 .. -91   ...   -11 .. -8   -7  ...  -1    0    1  ...   7   8 .. 11   ...   91 .. 128
        bucket                 15   ...           8    7  ...   1    0   17  ...  23        24   ...          31
    """
    half, exact = count // 2, count // 4
    distance = torch.arange(max_distance + 1)
    share = torch.log(distance.float() / exact) / math.log(max_distance / exact)
    far = exact + (share * (half - exact)).clamp(min=0).long()
    bucket = torch.where(distance < exact, distance, far.clamp(max=half - 1))
    return torch.cat([bucket.flip(0), half + bucket[1:]])
