"""What an export, or more variants, need of disk and memory: said before it starts, and refused where it is not there.

Memory is what the process itself has to hold. Checkpoints and float32 weights are read from memory-mapped files: the
system takes their pages back when it needs room, and reads them again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clean_lm import memory
from clean_lm.memory import size
from clean_lm.models.config import LMConfig
from export.commands import ExportError, progress, require_free, require_new
from export.quality import FRAMES, PROMPT, SAMPLER, SAMPLES
from export.variants import FP32, ONCE, VARIANTS, Variant

BASE = 900 * 10**6  # bytes that Python, PyTorch, ONNX Runtime and a traced graph take
PADDING = 200_000  # bytes of a layer in every variant's files: its nodes, and holes before weights that begin on a page
GRAPH = 10**6  # bytes of a layer's nodes while a graph is traced
COPIES = 8  # of the largest matrix, in float32: while it is quantized; a layer in float64 takes less
ROWS = 6  # of the runs that calibrate: three texts, guided
SCALE = 4  # bytes
GPTQ = 24  # bytes for each entry of the largest Hessian: itself, damped, turned, its factor and the inverse
READ = 4 * 20  # bytes for each column and channel: what a layer's matrices read and give


@dataclass(frozen=True)
class Needs:
    """Bytes."""

    disk: int  # at the same time, the float32 graphs that do not stay with them
    memory: int


def of_export(c: LMConfig, parameters: int, names: Sequence[str], others: int = 0) -> Needs:
    """What the export of a language model with some variants needs: the float32 graphs are written, then the variants.

    parameters: of the language model. others: those of codec, text encoder and MERT, where they are exported too.
    """
    made = of_variants(c, parameters, names)
    return Needs(4 * (parameters + others) + PADDING * c.layers + made.disk, made.memory + 4 * others)


def of_variants(c: LMConfig, parameters: int, names: Sequence[str]) -> Needs:
    """What variants need beside the float32 graphs, which are there."""
    once = 2 * c.layers * c.dim**2 * bool(c.cross) + c.text_dim * c.dim + c.codebooks * (c.card + 1) * c.dim
    made = [VARIANTS[name] for name in dict.fromkeys(names) if name != FP32]
    traced = [parameters * itemsize(variant) for variant in made if variant.bits and is_traced_again(variant)]
    weights = [stored(variant, parameters - once) + stored(once_of(variant), once) for variant in made]
    disk = sum(weights) + max(traced, default=0) + PADDING * c.layers * len(made)
    layer = (4 + 2 * bool(c.cross) + 2 * c.hidden_scale) * c.dim**2
    matrix = c.dim * max(c.hidden, c.codebooks * (c.card + 1))
    rounded = {variant.storage for variant in made if variant.calibrated}
    sampler = stored(SAMPLER, parameters - once) if made else 0
    disk += sampler + sum(stored(Variant(bits=8, block=storage.block), parameters - once) for storage in rounded)
    columns = max(SAMPLES) if rounded else PROMPT + FRAMES
    cache = 2 * c.layers * c.dim * columns * ROWS * 4
    drawing = sampler + cache if made else 0
    rounding = GPTQ * c.hidden**2 + READ * c.dim * sum(SAMPLES[:-1]) * ROWS if rounded else 0
    measuring = max((held(variant, parameters - once) for variant in made), default=0) + cache // 4
    working = max(8 * (layer + 2 * matrix), COPIES * 4 * matrix, drawing, rounding, measuring)
    return Needs(disk, BASE + GRAPH * c.layers + working)


def require(out: Path, needs: Needs) -> None:
    """Say what an export to the new folder `out` needs. Raises ExportError where disk or memory is too small."""
    _say(needs)
    require_new(out, needs.disk)
    _require_memory(needs)


def require_beside(folder: Path, needs: Needs) -> None:
    """Say what is needed to add to a folder. Raises ExportError where disk or memory is too small."""
    _say(needs)
    require_free(folder, needs.disk, "make room")
    _require_memory(needs)


def _say(needs: Needs) -> None:
    progress(f"needs {size(needs.disk)} of disk and {size(needs.memory)} of memory")


def _require_memory(needs: Needs) -> None:
    if needs.memory > (there := memory.available()):
        raise ExportError(
            f"needs {size(needs.memory)} of memory, this machine has {size(there)} available: end other programs, or "
            "export on a machine with more; fewer --variant at once need less disk, int8 needs the least memory"
        )


def is_traced_again(variant: Variant) -> bool:
    """Whether it is made from a graph of its own, and not from the one of fp32."""
    return variant.dtype != "float32" or variant.dynamic


def once_of(variant: Variant) -> Variant:
    """How a variant stores what runs once a generation, and its table."""
    return variant if variant.bits is None else ONCE["dynamic" if variant.dynamic else "int8"]


def itemsize(variant: Variant) -> int:
    return np.dtype(variant.dtype).itemsize


def stored(variant: Variant, weights: int) -> int:
    """Bytes of some weights in a file: codes, and a scale for each block."""
    if variant.bits is None:
        return weights * itemsize(variant)
    return round(weights * (variant.bits / 8 + (0 if variant.dynamic else SCALE / variant.block)))


def held(variant: Variant, weights: int) -> int:
    """Bytes of a session's own copy of some weights: packed; those of float16 are widened on a CPU."""
    return 4 * weights if variant.bits is None else stored(variant, weights)
