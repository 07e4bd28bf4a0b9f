"""What a request needs of memory beside the weights, and whether this machine has it."""

import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clean_lm.manifest import Manifest
from clean_lm.manifest_fields import TensorInfo
from clean_lm.options import INT64
from clean_lm.windows import Window, end, longest

MEMINFO = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # a container's
PASSES = {"none": 1, "single": 2, "double": 3}
AUDIO_COPIES = 3  # the codec's pieces, the whole, and the whole at another rate
DRAW_BYTES = 160  # that four draws take while they are computed, of one row at a time


@dataclass(frozen=True)
class Need:
    """Bytes of one generation."""

    caches: int
    codes: int  # and draws
    audio: int

    @property
    def total(self) -> int:
        return self.caches + self.codes + self.audio

    def words(self) -> str:
        """Its parts for print, the largest first."""
        parts = {"caches": self.caches, "codes and draws": self.codes, "audio": self.audio}
        ranked = sorted(parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{size(count)} for {name}" for name, count in ranked if count)


def of_generation(
    manifest: Manifest, rows: int, windows: Iterable[Window], guidance: str, text: int = 0, whole: bool = True
) -> Need:
    """What `rows` rows (prompts x takes) need at the same time.

    guidance: Sampling.guidance, "none" where nothing is conditioned. text: tokens of the longest description.
    whole: all of the audio is kept, as by everything but a stream.
    """
    model = manifest.language_model
    most, frames, delay = longest(windows), end(windows), max(model.delays)
    sizes = {"rows": rows * PASSES[guidance], "texts": rows, "text": text, "capacity": most + delay}
    graph = manifest.graphs["lm_inference"].inputs.values()
    caches = sum(tensor_bytes(t, sizes) for t in graph if t.name.startswith(("past_key_values.", "cross_key_values.")))
    columns = frames + sum(delay + 1 for _ in windows)
    codes = rows * model.codebooks * (16 * frames + 8 * columns) + DRAW_BYTES * columns * math.ceil(model.codebooks / 4)
    seconds = frames / model.frame_rate if model.frame_rate and whole else 0
    return Need(caches, codes, round(rows * model.channels * seconds * model.sample_rate * 4 * AUDIO_COPIES))


def tensor_bytes(tensor: TensorInfo, sizes: dict[str, int]) -> int:
    """Bytes of a graph's tensor whose symbolic sizes are these; a size that is not among them counts as 1."""
    shape = [sizes.get(length, 1) if isinstance(length, str) else length for length in tensor.shape]
    return math.prod(shape) * np.dtype(tensor.dtype).itemsize


def require(name: str, need: Need, request: str) -> None:
    """Raise ValueError if this machine has not enough memory for a generation; `request` says of what."""
    if need.total > (there := available()):
        raise ValueError(
            f"{name}: {request}: needs {size(need.total)} of memory ({need.words()}), this machine has {size(there)} "
            "available: fewer takes, fewer rows or a shorter duration"
        )


def available() -> int:
    """Bytes that this process can still have without swapping; more than there can be where it is not known."""
    return min((found for read in (_free, *map(_limit, LIMITS)) if (found := read()) is not None), default=INT64)


def _free() -> int | None:
    """What Linux calls available, or else all memory of the machine."""
    with suppress(OSError, ValueError, KeyError, IndexError):
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    with suppress(AttributeError, OSError, ValueError):  # AttributeError: Windows
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _limit(path: Path) -> Callable[[], int | None]:
    """Reads the limit of a container; None where there is none."""

    def read() -> int | None:
        with suppress(OSError, ValueError):  # ValueError: "max"
            return int(path.read_text(encoding="ascii"))
        return None

    return read


def size(count: float) -> str:
    """Bytes in a unit that has digits: 41.2 GB, 3.5 MB, 812 bytes."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"
