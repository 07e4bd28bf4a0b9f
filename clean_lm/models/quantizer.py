"""Residual vector quantization, which EnCodec and the style conditioner share.

Each codebook quantizes what the codebooks before it left: x = table 0 [code 0] + table 1 [code 1] + ... + a remainder.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def quantize(x: Tensor, tables: Iterable[Tensor]) -> Tensor:
    """x [B, T, D], tables K x [card, D] -> the code of the nearest vector in each table, int64 [B, K, T]."""
    codes = []
    for table in tables:
        codes.append(negative_distance(x, table).argmax(dim=-1))
        x = x - F.embedding(codes[-1], table)
    return torch.stack(codes, dim=1)


def negative_distance(x: Tensor, table: Tensor) -> Tensor:
    """x [B, T, D], vectors e of a table [card, D] -> 2 x.e - |e|^2 [B, T, card].

    That is -|x - e|^2 but for |x|^2, which is the same for every e: the largest is the nearest.
    """
    return 2 * x @ table.T - table.pow(2).sum(dim=1)
