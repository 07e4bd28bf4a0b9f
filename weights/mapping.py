"""The generic half of reading a checkpoint: a table of our tensors <- theirs, checked by names, then by shapes.

A table is a dict {our name: Source}; lm.py, codec.py, text.py and mert.py each build one out of `one`, `stack`,
`norm`, `linear` and `weight_norm`. `match` compares it with what a checkpoint holds: every tensor must be in the table
or among the Dropped, each with its reason. `Model.weights` then reads one component's tensors by our names.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from clean_lm.models.config import ConfigError
from weights.checkpoint import Checkpoint, Spec

# Weight norm's two tensors, g and v, by torch.nn.utils.weight_norm and by torch.nn.utils.parametrizations.weight_norm.
WEIGHT_NORM = ("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")

LISTED = 100  # lines of differences in an error

Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Piece:
    """Rows of one of their tensors, whose whole shape is `shape`."""

    name: str
    shape: tuple[int, ...]
    rows: slice | None = None  # None: all of them


@dataclass(frozen=True)
class Source:
    """One of our tensors: their pieces stacked along the first axis, then transposed ([out, in] -> [in, out])."""

    component: str
    pieces: tuple[Piece, ...]
    transpose: bool = False
    fold: Callable[..., Tensor] = field(default=lambda *pieces: pieces[0] if len(pieces) == 1 else torch.cat(pieces))


@dataclass(frozen=True)
class Dropped:
    """Tensors that are left out on purpose, by a pattern of their names (`*` matches anything), and why."""

    pattern: str
    reason: str


class MappingError(ValueError):
    """A checkpoint whose tensors are not those of its configuration: lists every difference."""


@dataclass(frozen=True)
class Model(Generic[Config]):
    """A checkpoint whose tensors are exactly those that its configuration asks for."""

    checkpoint: Checkpoint
    config: Config
    rows: Mapping[str, Source]

    @property
    def parameters(self) -> int:
        """How many numbers the checkpoint's tensors hold, those that are left out not counted."""
        names = {piece.name for source in self.rows.values() for piece in source.pieces}
        return sum(math.prod(self.checkpoint.specs[name].shape) for name in names)

    def weights(self, component: str, dtype: torch.dtype = torch.float32) -> "Weights":
        """The tensors of one component ("lm", "condition"), by the names that its module has for them."""
        return Weights(self.checkpoint, self.rows, f"{component}.", dtype)


class Weights(Mapping[str, Tensor]):
    """One component's tensors, read and converted when asked for and not kept.

    The file stays memory-mapped while this lives, or a tensor that it gave without a copy.
    """

    def __init__(self, checkpoint: Checkpoint, rows: Mapping[str, Source], prefix: str, dtype: torch.dtype):
        self.read = checkpoint.open()
        self.rows = {name.removeprefix(prefix): row for name, row in rows.items() if name.startswith(prefix)}
        self.dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        source = self.rows[name]
        tensor = source.fold(*(self._read(piece) for piece in source.pieces)).to(self.dtype)
        return tensor.T if source.transpose else tensor

    def _read(self, piece: Piece) -> Tensor:
        tensor = self.read(piece.name)
        return tensor if piece.rows is None else tensor[piece.rows]

    def __contains__(self, name: object) -> bool:  # Mapping's own reads the tensor
        return name in self.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def require_tensors(specs: Mapping[str, Spec], **counts: int) -> None:
    """Raise ConfigError where a model has more parts of a kind than the file has tensors: no table is made of it."""
    for name, count in counts.items():
        if count > len(specs):
            raise ConfigError(f"{name} {count}: the file has {len(specs)} tensors in all")


def match(checkpoint: Checkpoint, config: Config, rows: Mapping[str, Source], drop: list[Dropped]) -> Model[Config]:
    """A checkpoint as the model that its table makes of it. Raises MappingError with every difference."""
    problems = differences(rows, drop, checkpoint.specs)
    if problems:
        listing = "\n  ".join(shortened(problems))
        raise MappingError(f"{checkpoint.path}: its tensors are not those of its configuration:\n  {listing}")
    return Model(checkpoint, config, rows)


def shortened(problems: list[str]) -> list[str]:
    """The first LISTED lines, and how many there are beyond them."""
    more = len(problems) - LISTED
    return problems if more <= 0 else [*problems[:LISTED], f"... and {more:,} more"]


def require_finite(model: Model[Config]) -> None:
    """Read every tensor that becomes part of a model. Raises MappingError for the first with NaN or infinity, and
    CheckpointError where the file's own checksums say that it is damaged."""
    model.checkpoint.verify()
    read = model.checkpoint.open()
    for name in {piece.name: None for source in model.rows.values() for piece in source.pieces}:
        if line := not_finite(name, read(name)):
            raise MappingError(
                f"{model.checkpoint.path}: {line}; training diverged, or left float16's range: take an earlier one"
            )


def not_finite(name: str, tensor: Tensor) -> str | None:
    """What to say of a tensor with NaN or infinity in it; None for all others."""
    if tensor.numel() == 0 or torch.isfinite(torch.stack(tensor.aminmax())).all():
        return None
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    return f"not finite  {name}: {bad:,} of {tensor.numel():,} values"


def fill(module: Module, weights: Mapping[str, Tensor]) -> Module:
    """Give a module its weights, without a copy where they are memory-mapped."""
    module.load_state_dict(dict(weights), strict=True, assign=True)
    return module.eval()


def differences(rows: Mapping[str, Source], drop: list[Dropped], specs: Mapping[str, Spec]) -> list[str]:
    """Every missing, unexpected and misshapen tensor, a line each: none where names (as sets) and shapes agree."""
    expected = {piece.name: piece.shape for source in rows.values() for piece in source.pieces}
    kept = {name for name in specs if reason(name, drop) is None}
    unexpected = kept - expected.keys()
    lines = [f"missing     {name} {list(shape)}" for name, shape in expected.items() if name not in kept]
    lines += [f"unexpected  {name} {list(specs[name].shape)}" for name in specs if name in unexpected]
    for name, shape in expected.items():
        if name in kept and specs[name].shape != shape:
            lines.append(f"misshapen   {name}: found {list(specs[name].shape)}, expected {list(shape)}")
        elif name in kept and not specs[name].dtype.is_floating_point:
            lines.append(f"not floats  {name}: found {specs[name].dtype}")
    return lines


def reason(name: str, drop: list[Dropped]) -> str | None:
    """Why a tensor is left out, or None where it is not."""
    return next((d.reason for d in drop if fnmatchcase(name, d.pattern)), None)


# Rows of a table


def one(
    component: str, name: str, shape: tuple[int, ...], rows: slice | None = None, transpose: bool = False
) -> Source:
    """One of their tensors, or `rows` of it."""
    return Source(component, (Piece(name, shape, rows),), transpose)


def stack(component: str, names: Iterable[str], shape: tuple[int, ...], transpose: bool = False) -> Source:
    """Several of their tensors of the same shape, one after the other along the first axis."""
    return Source(component, tuple(Piece(name, shape) for name in names), transpose)


def norm(ours: str, theirs: str, dim: int, component: str = "norms") -> dict[str, Source]:
    """A norm's weight and bias."""
    return {f"{ours}.{part}": one(component, f"{theirs}.{part}", (dim,)) for part in ("weight", "bias")}


def linear(component: str, ours: str, theirs: list[str], shape: tuple[int, int]) -> dict[str, Source]:
    """Linear maps [out, in] with biases, stacked -> weight [in, outs], bias [outs]."""
    return {
        f"{ours}.weight": stack(component, [f"{name}.weight" for name in theirs], shape, transpose=True),
        f"{ours}.bias": stack(component, [f"{name}.bias" for name in theirs], shape[:1]),
    }


def weight_norm(component: str, theirs: str, names: tuple[str, str], g: tuple[int, ...], v: tuple[int, ...]) -> Source:
    """The weight of a convolution with weight norm, from its tensors g and v, which are called `names`."""
    pieces = Piece(f"{theirs}.{names[0]}", g), Piece(f"{theirs}.{names[1]}", v)
    return Source(component, pieces, fold=fold_weight_norm)


def weight_norm_names(specs: Iterable[str]) -> tuple[str, str]:
    """Which of the WEIGHT_NORM names a checkpoint's tensors have."""
    return WEIGHT_NORM[any(name.endswith(WEIGHT_NORM[1]) for name in specs)]


def fold_weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """g v / |v|, with the norm over the axes along which g has length 1.

    Source: Salimans and Kingma 2016, "Weight Normalization", equation 2; g's other axis is `dim` of PyTorch's
    weight_norm: 0 in the codec (outputs, in a transposed convolution inputs), 2 in MERT (places of the kernel).
    """
    g, v = g.float(), v.float()
    axes = [axis for axis, length in enumerate(g.shape) if length == 1]
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))


def codebook_training_state(codebook: str) -> list[Dropped]:
    """What audiocraft's and EnCodec's codebooks keep beside their vectors."""
    return [
        Dropped(f"{codebook}.{name}", "state of the codebook's training")
        for name in ("inited", "cluster_size", "embed_avg")
    ]
