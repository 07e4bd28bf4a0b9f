"""Rounds matrices to few bits: blocks of weights that share a scale, to the nearest code or by GPTQ.

GPTQ (Frantar et al. 2023, arXiv 2210.17323) rounds one row of a matrix after the other and moves the rows that are left
so that what the matrix gives on real inputs changes least. Measured on the demo's model beside it, and left out:
onnxruntime.quantization's own GPTQ and HQQ, activation order, Hessians of the already rounded model, coordinate descent
and least-squares scales afterwards, Hessians weighted with gradients. None gained more than another seed does.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

COLUMNS = 64  # that are rounded at a time: what fits in a processor's cache takes half the time
TRIANGLE = 512  # rows of a triangular matrix that is inverted at once
DAMPING = 0.1  # of the Hessian's mean diagonal, added to it: inputs that the samples did not have count a little
# Shares of the scale that puts a block's largest value on the lowest code; negative: on the side of the highest.
SHARES = {4: (1.0, 0.9, 0.8, -1.1, -1.0, -0.9), 8: (1.0, -128 / 127)}
ENDS = (1.0, 0.9, 0.8)  # with zero points: shares of a block's largest and of its smallest value, each with each


@dataclass(frozen=True)
class Storage:
    """How a matrix is stored."""

    bits: int
    block: int  # weights of a column that share a scale
    zero_points: bool = False  # whether each block says which code is zero; without, it is the middle one

    def fit(self, rows: int) -> "Storage":
        """The same with a block that a matrix of few rows does not leave mostly empty."""
        return replace(self, block=min(self.block, max(16, 2 ** math.ceil(math.log2(rows)))))


@dataclass(frozen=True)
class Blocks:
    """A rounded matrix [K, N]: a weight is (code - zero) * scale."""

    bits: int
    codes: Tensor  # uint8 [N, ceil(K / block), block]
    scales: Tensor  # float32 [N, ceil(K / block)]
    zeros: Tensor | None  # uint8 [N, ceil(K / block)]; None: 2^(bits - 1)

    def weight(self, rows: int) -> Tensor:
        """The matrix as it is read back: float32 [rows, N]."""
        zeros = 2 ** (self.bits - 1) if self.zeros is None else self.zeros[..., None].float()
        values = (self.codes.float() - zeros) * self.scales[..., None]
        return rearrange(values, "n k b -> (k b) n")[:rows]

    def save(self, path: Path) -> None:
        """Write it to a file of its own."""
        torch.save((self.bits, self.codes, self.scales, self.zeros), path)

    @classmethod
    def load(cls, path: Path) -> "Blocks":
        """What `save` wrote."""
        return cls(*torch.load(path, weights_only=True))

    def packed(self) -> tuple[Tensor, Tensor | None]:
        """Codes and zero points as MatMulNBits reads them: uint8 [N, ceil(K / block), block * bits / 8] and
        [N, ceil(ceil(K / block) * bits / 8)]."""
        if self.zeros is None:
            return pack(self.codes, self.bits), None
        return pack(self.codes, self.bits), pack(F.pad(self.zeros, (0, self.zeros.shape[1] % 2)), self.bits)


def to_nearest(weight: Tensor, storage: Storage) -> Blocks:
    """weight [K, N], every value as the code that is nearest to it."""
    with one_thread() as before, ThreadPoolExecutor(before) as pool:
        parts = list(pool.map(partial(_nearest, storage=storage), weight.split(COLUMNS, dim=1)))
    codes, scales, zeros = (torch.cat(part) for part in zip(*parts, strict=True))
    return Blocks(storage.bits, codes, scales, zeros if storage.zero_points else None)


def _nearest(weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero points of a few columns."""
    block = storage.block
    blocks = rearrange(F.pad(weight.T.float(), (0, -weight.shape[0] % block)), "n (k b) -> n k b", b=block)
    scales, zeros = scales_of(blocks, storage)
    codes = codes_of(blocks, _divisor(scales), zeros, storage.bits).to(torch.uint8)
    return codes, scales.squeeze(-1), zeros.squeeze(-1).to(torch.uint8)


def gptq(weight: Tensor, hessian: Tensor, storage: Storage) -> Blocks:
    """weight [K, N], rounded so that x @ weight changes little for the x whose sum of x^T x is `hessian` [K, K].

    A block's scales are found when it is reached, from its weights as the blocks before it have moved them.
    """
    weight, upper = weight.float().clone(), _inverse_factor(hessian)
    parts = [_gptq_block(weight, upper, start, storage) for start in range(0, weight.shape[0], storage.block)]
    codes, scales, zeros = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
    return Blocks(storage.bits, codes, scales, zeros if storage.zero_points else None)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U with U^T U the inverse of the damped Hessian."""
    mean, one = hessian.diagonal().mean(), torch.eye(len(hessian), dtype=hessian.dtype)
    damped = hessian + one * (DAMPING * mean if mean > 0 else 1)
    return _inverse(torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)).float()  # of U^-1 U^-T = the damped Hessian


def _inverse(upper: Tensor) -> Tensor:
    """The inverse of an upper triangular matrix, from those of its quarters: a third of solve_triangular's time."""
    if len(upper) <= TRIANGLE:
        return torch.linalg.solve_triangular(upper, torch.eye(len(upper), dtype=upper.dtype), upper=True)
    half, inverse = len(upper) // 2, torch.zeros_like(upper)
    above = inverse[:half, :half] = _inverse(upper[:half, :half])
    below = inverse[half:, half:] = _inverse(upper[half:, half:])
    inverse[:half, half:] = -(above @ upper[:half, half:] @ below)
    return inverse


def _gptq_block(weight: Tensor, upper: Tensor, start: int, storage: Storage) -> tuple[Tensor, Tensor, Tensor]:
    """Round the block of rows from `start` on, and move all later ones in place: codes [N, block], scales and zero
    points [N]."""
    end = min(start + storage.block, len(weight))
    block, moves = weight[start:end], upper[start:end, start:end]
    errors = torch.empty_like(block)
    with one_thread():
        scales, zeros = (x.squeeze(-1) for x in scales_of(block.T, storage))
        divisor = _divisor(scales)
        codes = zeros.repeat(storage.block, 1)  # where the matrix has no row any more, the code of zero
        for i, (row, error) in enumerate(zip(block, errors, strict=True)):
            code = codes_of(row, divisor, zeros, storage.bits, out=codes[i])
            torch.sub(code, zeros, out=error).mul_(scales).sub_(row).div_(-moves[i, i])
            block[i + 1 :].addr_(moves[i, i + 1 :], error, alpha=-1)
    weight[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return codes.T.to(torch.uint8), scales, zeros.to(torch.uint8)


@contextmanager
def one_thread() -> Iterator[int]:
    """A context for many small operations, one thread for each; gives how many PyTorch had. Several threads wait for
    each other at the end of each operation: twenty times as long, as soon as another program needs one of their cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def scales_of(blocks: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
    """Blocks [..., b] -> each one's scale and zero point [..., 1], those of several with the least squared error."""
    best, scale, zero = (torch.full_like(blocks[..., :1], value) for value in (math.inf, 1.0, 0.0))
    for scales, zeros in _candidates(blocks, storage):
        back = (codes_of(blocks, _divisor(scales), zeros, storage.bits) - zeros) * scales
        error = (blocks - back).square_().sum(dim=-1, keepdim=True)
        better = error < best
        best, scale, zero = (torch.where(better, x, y) for x, y in ((error, best), (scales, scale), (zeros, zero)))
    return scale, zero


def _candidates(blocks: Tensor, storage: Storage) -> list[tuple[Tensor, Tensor]]:
    """Scales and zero points that may suit some blocks."""
    top, half = 2**storage.bits - 1, 2.0 ** (storage.bits - 1)
    if not storage.zero_points:
        extreme = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
        middle = torch.full_like(extreme, half)
        return [(extreme * (-share / half), middle) for share in SHARES[storage.bits]]
    low, high = blocks.amin(dim=-1, keepdim=True).clamp(max=0), blocks.amax(dim=-1, keepdim=True).clamp(min=0)
    scales = [(high * above - low * below) / top for above in ENDS for below in ENDS]
    lows = [low * below for _ in ENDS for below in ENDS]
    return [(scale, (-least / _divisor(scale)).round()) for scale, least in zip(scales, lows, strict=True)]


def codes_of(values: Tensor, divisor: Tensor, zeros: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    """The code nearest to each value, as float32."""
    return torch.div(values, divisor, out=out).round_().add_(zeros).clamp_(0, 2**bits - 1)


def _divisor(scales: Tensor) -> Tensor:
    """What values are divided by: a block of zeros has the scale 0, and whatever code means it."""
    return torch.where(scales == 0, 1, scales)


def quantize_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [K, N] -> codes uint8 [K, N], scales float32 [N]: weight is about (code - 128) * scale."""
    scale = weight.abs().amax(dim=0) / 127
    return codes_of(weight, _divisor(scale), torch.tensor(128.0), 8).to(torch.uint8), scale


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes uint8 [..., n] -> [..., n * bits / 8]: of two 4-bit codes, the first lies in the lower half of the byte."""
    return codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)
