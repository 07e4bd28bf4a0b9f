"""The contenders: how much memory each takes, and how it is opened."""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import ours
from bench.workload import Contender, Workload

OURS, OPENVINO, OPTIMUM = "clean_lm", "openvino", "optimum-style"
TRANSFORMERS, AUDIOCRAFT = "transformers", "audiocraft"
NAMES = (OURS, OPENVINO, OPTIMUM, TRANSFORMERS, AUDIOCRAFT)
LIBRARIES = (OPENVINO, TRANSFORMERS, AUDIOCRAFT)  # that may not be installed
BUILT = (TRANSFORMERS, AUDIOCRAFT)  # from a checkpoint, and not loaded from files of their own
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Files:
    """The folders that contenders are opened from."""

    checkpoint: Path
    bundle: Path
    growing: Path
    openvino: Path


@dataclass(frozen=True)
class Entry:
    """A contender that is not open yet."""

    name: str
    bytes: int  # of memory, about, once it is open
    open: Callable[[], Contender]


def entries(
    files: Files, names: Sequence[str], variants: Mapping[str, Sequence[str]], workload: Workload
) -> list[Entry]:
    """The installed ones of `names`; clean_lm and OpenVINO once for each of their variants."""
    codec = sum(path.stat().st_size for path in files.bundle.glob("compression_*.data"))
    full = (files.checkpoint / "state_dict.bin").stat().st_size * 2  # float16 there, float32 in memory
    found = []
    if OURS in names:
        for variant in variants[OURS]:
            graph = ours.graph_file(files.bundle, variant)
            size = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
            found.append(Entry(f"{OURS} {variant}", size, lambda v=variant: open_ours(files, v, workload)))
    if OPENVINO in names and not missing(OPENVINO):
        for variant in variants[OPENVINO]:
            size = sum(path.stat().st_size for path in (files.openvino / variant).iterdir())
            found.append(Entry(f"{OPENVINO} {variant}", size, lambda v=variant: open_openvino(files, v)))
    if OPTIMUM in names:
        found.append(Entry(OPTIMUM, full, lambda: open_optimum(files)))
    if TRANSFORMERS in names and not missing(TRANSFORMERS):
        found.append(Entry(TRANSFORMERS, full + codec, lambda: open_transformers(files)))
    if AUDIOCRAFT in names and not missing(AUDIOCRAFT):
        cache = 4 * full  # it keeps a cache of every length
        found.append(Entry(AUDIOCRAFT, full + cache, lambda: open_audiocraft(files)))
    return found


def missing(name: str) -> bool:
    """Whether a contender's library is not installed."""
    return name in LIBRARIES and importlib.util.find_spec(name) is None


@functools.cache
def coder(bundle: Path) -> ours.OurCoder:
    """The bundle's codec, which several contenders share."""
    return ours.OurCoder(bundle)


# Each library is imported when its contender is opened: memory is measured in processes with only one of them.
def open_ours(files: Files, variant: str, workload: Workload) -> Contender:
    return ours.Ours(files.bundle, variant, coder(files.bundle), workload)


def open_openvino(files: Files, weights: str) -> Contender:
    from bench.openvino_contender import OpenVINO

    return OpenVINO(files.openvino, weights, files.bundle, coder(files.bundle))


def open_optimum(files: Files) -> Contender:
    from bench.optimum import Optimum

    return Optimum(files.growing, files.bundle, coder(files.bundle))


def open_transformers(files: Files) -> Contender:
    from bench.huggingface import Transformers

    return Transformers(files.checkpoint)


def open_audiocraft(files: Files) -> Contender:
    from bench.upstream import Audiocraft

    return Audiocraft(files.checkpoint, coder(files.bundle))
