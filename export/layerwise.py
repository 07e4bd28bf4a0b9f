"""The float32 model on whole sequences, a layer at a time: what each matrix reads, and how much what it gives matters.

One layer's weights are read at a time, so that a memory-mapped model takes no memory of its size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from clean_lm.conditioning import Conditioning
from clean_lm.delay_pattern import delay
from clean_lm.models.lm import LM, guide
from clean_lm.models.transformer import Cache, GroupQueryAttention, Layer

CFG_COEF = 3.0  # of the guided logits that are compared
MATRICES = ("qkv", "out", "cross_q", "cross_out", "linear1", "linear2")


class Sequences:
    """Codes that the model reads at once, each column predicting the next (teacher forcing)."""

    def __init__(self, lm: LM, codes: np.ndarray, conditioning: Conditioning):
        """codes: int64 [B, K, T]; conditioning: of the B rows."""
        c = lm.config
        columns = delay(codes, c.delays, codes.shape[2], c.special_token)
        self.lm, self.batch = lm, len(codes)
        self.columns = torch.from_numpy(np.tile(columns[:, :, :-1], (conditioning.passes, 1, 1)))
        self.targets = rearrange(torch.from_numpy(columns[:, :, 1:]), "b k s -> b s k")
        self.known = self.targets != c.special_token
        self.prefix = None if conditioning.prefix is None else torch.from_numpy(conditioning.prefix)
        self.cross = cross_of(conditioning, c.layers)
        self.texts = self.cross[0][0].shape[0] if self.cross[0] else 0
        self.shared = lm.attention.columns(
            torch.tensor([0]), len(self.columns), self.columns.shape[2] + conditioning.places, 0
        )

    def embed(self) -> Tensor:
        """The first layer's input [R, M + S, dim]."""
        return self.lm.embed(self.columns, torch.tensor([0]), self.prefix)

    def layer(self, i: int, x: Tensor) -> Tensor:
        """Layer i: x [R, M + S, dim] -> [R, M + S, dim]."""
        layer = cast(Layer, self.lm.layers[i])
        empty = x.new_zeros(x.shape[0], layer.heads, 0, x.shape[2] // layer.heads)
        return layer(x, (empty, empty), self.cross[i], self.shared, self.texts)[0]

    def logits(self, x: Tensor) -> Tensor:
        """The last layer's output -> guided logits [B, S, K, card] of the column after each."""
        return guide(self.lm.logits(x[:, -self.columns.shape[2] :]), self.batch, torch.tensor(CFG_COEF))

    def log_probabilities(self, x: Tensor) -> Tensor:
        """The last layer's output -> guided log-probabilities [n, card] of the n known targets."""
        return self.logits(x)[self.known].log_softmax(dim=-1)


class MatrixCalls(TorchFunctionMode):
    """While it is entered, keeps what some matrices are multiplied with, and the products."""

    def __init__(self, matrices: Mapping[str, Tensor]):
        super().__init__()
        self.names = {id(matrix): name for name, matrix in matrices.items()}
        self.found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in matrices}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if len(args) == 2 and (name := self.names.get(id(args[1]))):
            self.found[name].append((args[0], result))
        return result


def matrices_of(lm: LM, i: int | None) -> dict[str, nn.Parameter]:
    """The matrices of layer i by their names in the graph; None: what comes after the layers."""
    if i is None:
        return {"heads": lm.heads}
    return {f"layers.{i}.{name}": getattr(lm.layers[i], name) for name in MATRICES if hasattr(lm.layers[i], name)}


@torch.no_grad()
def hessians(lm: LM, sequences: Sequence[Sequences]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each matrix: its name, itself [K, N], and the sum of x^T x [K, K] over what it reads."""
    xs = [s.embed() for s in sequences]
    for i in [*tqdm(range(len(lm.layers)), "rounding layers", disable=None), None]:
        matrices = matrices_of(lm, i)
        with MatrixCalls(matrices) as calls:
            run = [s.log_probabilities(x) if i is None else s.layer(i, x) for s, x in zip(sequences, xs, strict=True)]
        for name, matrix in matrices.items():
            yield name, matrix, sum_of_squares(calls.found[name], matrix.shape[0])
        xs = run


@torch.no_grad()
def read_all(lm: LM, sequences: Sequence[Sequences]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The last layer's output for each of some sequences, and the largest values [H * D] of every channel that the
    caches hold, by the names of their inputs; heads padded as ONNX Runtime's kernel wants them."""
    xs, peaks = [s.embed() for s in sequences], {}
    for i in tqdm(range(len(lm.layers)), "float32 layers", disable=None):
        qkv = matrices_of(lm, i)[f"layers.{i}.qkv"]
        with MatrixCalls({"qkv": qkv}) as calls:
            xs = [s.layer(i, x) for s, x in zip(sequences, xs, strict=True)]
        largest = torch.stack([y.abs().amax(dim=(0, 1)) for _, y in calls.found["qkv"]]).amax(dim=0)
        _, keys, values = rearrange(largest, "(three h d) -> three h d", three=3, h=lm.config.heads)
        padding = GroupQueryAttention.cache_dim(lm.config.head_dim) - lm.config.head_dim
        for name, part in (("key", keys), ("value", values)):
            peaks[f"past_key_values.{i}.{name}"] = F.pad(part, (0, padding)).flatten()
    return xs, peaks


def sum_of_squares(calls: Sequence[tuple[Tensor, Tensor]], size: int) -> Tensor:
    """The sum of x^T x [size, size] over all x that some calls read."""
    found = torch.zeros(size, size)
    for x, _ in calls:
        x = x.reshape(-1, size)
        found += x.T @ x
    return found


def cross_of(conditioning: Conditioning, layers: int) -> Sequence[Cache | None]:
    """What every layer's cross-attention reads, if anything."""
    if not conditioning.cross:
        return [None] * layers
    arrays = {name: torch.from_numpy(array) for name, array in conditioning.cross.items()}
    return [(arrays[f"cross_key_values.{i}.key"], arrays[f"cross_key_values.{i}.value"]) for i in range(layers)]
