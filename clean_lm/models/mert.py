"""MERT, the feature extractor of MusicGen-style: audio -> features, the last hidden states of a HuBERT.

Sources: Li et al., "MERT: Acoustic Music Understanding Model with Large-Scale Self-supervised Training" (arXiv
2306.00107); its layers from Hsu et al., "HuBERT" (arXiv 2106.07447), and Baevski et al., "wav2vec 2.0" (arXiv
2006.11477). B rows, N samples, T features.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clean_lm.models.config import MertConfig
from clean_lm.models.transformer import Norm, attend, weight


class Linear(nn.Module):
    """x @ weight + bias."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight, self.bias = weight(inputs, outputs), weight(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class TimeNorm(nn.Module):
    """A norm of each channel over time, which is a group norm with C groups: [B, C, T], eps 1e-5."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = weight(channels), weight(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, len(self.weight), self.weight, self.bias)


class Positions(nn.Module):
    """The convolutional position embedding: [B, T, dim].

    kernel 4    0 0 | a b c | 0    an even kernel sees one feature more before than after
    """

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        self.left, self.right = kernel // 2, (kernel - 1) // 2
        self.weight, self.bias = weight(dim, dim // groups, kernel), weight(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(rearrange(x, "b t d -> b d t"), (self.left, self.right))
        return rearrange(F.gelu(F.conv1d(x, self.weight, self.bias, groups=self.groups)), "b d t -> b t d")


class MertLayer(nn.Module):
    """One post-norm layer: self-attention to all features, feed-forward."""

    def __init__(self, c: MertConfig):
        super().__init__()
        self.heads = c.heads
        self.qkv = Linear(c.dim, 3 * c.dim)
        self.out = Linear(c.dim, c.dim)
        self.norm1 = Norm(c.dim)
        self.linear1 = Linear(c.dim, c.hidden)
        self.linear2 = Linear(c.hidden, c.dim)
        self.norm2 = Norm(c.dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, dim] -> x."""
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        x = self.norm1(x + self.out(attend(q, k, v)))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class Mert(nn.Module):
    """Audio to features."""

    def __init__(self, config: MertConfig):
        super().__init__()
        c, inputs = config, (1, *config.channels[:-1])
        self.strides = c.strides
        self.convs = nn.ParameterList(map(weight, c.channels, inputs, c.kernels))
        self.conv_norm = TimeNorm(c.channels[0])
        self.feature_norm = Norm(c.channels[-1])
        self.projection = Linear(c.channels[-1], c.dim)
        self.positions = Positions(c.dim, c.position_kernel, c.position_groups)
        self.norm = Norm(c.dim)
        self.layers = nn.ModuleList(MertLayer(c) for _ in range(c.layers))

    def forward(self, audio: Tensor) -> Tensor:
        """audio [B, N], mono at `sample_rate`, not normalised -> [B, T, dim].

        T = (N - receptive_field) // hop + 1, N >= receptive_field. At MERT's 24 kHz these are 400 and 320 samples: 3 s
        have 224 features.
        """
        x = self.projection(self.feature_norm(rearrange(self.shorten(audio), "b c t -> b t c")))
        x = self.norm(x + self.positions(x))
        for layer in self.layers:
            x = layer(x)
        return x

    def shorten(self, audio: Tensor) -> Tensor:
        """audio [B, N] -> [B, C, T], each of `receptive_field` samples."""
        x = self.conv_norm(F.conv1d(rearrange(audio, "b n -> b 1 n"), self.convs[0], stride=self.strides[0]))
        for kernel, stride in zip(self.convs[1:], self.strides[1:], strict=True):
            x = F.conv1d(F.gelu(x), kernel, stride=stride)
        return F.gelu(x)
