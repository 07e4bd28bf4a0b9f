"""The style conditioner of MusicGen-style: MERT features of an excerpt -> a few vectors of the conditioning prefix.

A transformer reads the features, 75 a second (see mert.py); every ds_factor-th frame goes through a residual quantizer,
an information bottleneck. Rouard et al., "Audio Conditioning for Music Generation via
Discrete Bottleneck Features" (arXiv 2407.12563).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clean_lm.models.config import StyleConfig
from clean_lm.models.quantizer import quantize
from clean_lm.models.transformer import Norm, attend, periods, sinusoid, weight


class StyleLayer(nn.Module):
    """One pre-norm layer: self-attention to all of the excerpt, feed-forward."""

    def __init__(self, c: StyleConfig):
        super().__init__()
        self.heads = c.heads
        self.norm1 = Norm(c.dim)
        self.qkv = weight(c.dim, 3 * c.dim)
        self.out = weight(c.dim, c.dim)
        self.norm2 = Norm(c.dim)
        self.linear1 = weight(c.dim, c.hidden)
        self.linear2 = weight(c.hidden, c.dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [M, F, dim] -> x."""
        q, k, v = rearrange(self.norm1(x) @ self.qkv, "m f (three h d) -> three m h f d", three=3, h=self.heads)
        x = x + attend(q, k, v) @ self.out
        return x + F.gelu(self.norm2(x) @ self.linear1) @ self.linear2


class Style(nn.Module):
    """Features of an excerpt -> vectors in the language model's width."""

    def __init__(self, config: StyleConfig):
        super().__init__()
        self.ds_factor = config.ds_factor
        self.period = periods(config.dim)
        self.embed, self.embed_bias = weight(config.features, config.dim), weight(config.dim)
        self.layers = nn.ModuleList(StyleLayer(config) for _ in range(config.layers))
        self.mean, self.variance = weight(config.dim), weight(config.dim)
        self.codebooks = nn.ParameterList(weight(config.bins, config.dim) for _ in range(config.levels))
        self.output_proj, self.output_bias = weight(config.dim, config.output_dim), weight(config.output_dim)

    def forward(self, features: Tensor, eval_q: Tensor) -> Tensor:
        """features [M, F, width], eval_q int64 []: how many levels to use -> [M, ceil(F / ds_factor), output_dim]."""
        return self.dequantize(self.quantize(self.encode(features)), eval_q) @ self.output_proj + self.output_bias

    def encode(self, features: Tensor) -> Tensor:
        """features [M, F, width] -> the vectors to quantize [M, ceil(F / ds_factor), dim]."""
        x = self.transform(features @ self.embed + self.embed_bias)
        # Upstream quantizes all frames and keeps these afterwards, which is the same.
        return self.normalize(x[:, :: self.ds_factor])

    def transform(self, x: Tensor) -> Tensor:
        """x [M, F, dim] -> [M, F, dim], every frame attending to the whole excerpt."""
        x = x + sinusoid(torch.arange(x.shape[1]), self.period).to(x.dtype)
        for layer in self.layers:
            x = layer(x)
        return x

    def normalize(self, x: Tensor) -> Tensor:
        """Batch norm with the running means and variances of training, eps 1e-5: x [..., dim] -> x."""
        return (x - self.mean) * torch.rsqrt(self.variance + 1e-5)

    def quantize(self, x: Tensor) -> Tensor:
        """x [M, T, dim] -> each level's code, int64 [M, levels, T]."""
        return quantize(x, self.codebooks)

    def dequantize(self, codes: Tensor, eval_q: Tensor) -> Tensor:
        """codes int64 [M, levels, T], eval_q int64 [] -> the sum of the first eval_q levels' vectors [M, T, dim]."""
        levels = zip(codes.unbind(dim=1), self.codebooks, strict=True)
        vectors = torch.stack([F.embedding(code, table) for code, table in levels])
        counts = torch.arange(len(self.codebooks)) < eval_q
        return torch.where(counts[:, None, None, None], vectors, 0).sum(dim=0)
