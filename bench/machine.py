"""The machine: what it is, and how fast it reads memory."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

SETS = {"AVX2": "avx2", "AVX512": "avx512f", "VNNI": "avx512_vnni", "AVX-VNNI": "avx_vnni", "AMX": "amx_int8"}
PACKAGES = ("onnxruntime", "openvino", "torch", "transformers", "audiocraft", "numpy")


def describe() -> dict[str, Any]:
    """Processor, memory, system and versions; None for what the system does not say."""
    cpu, memory = _fields("/proc/cpuinfo"), _fields("/proc/meminfo")
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name") or platform.processor() or None,
        "cores": os.cpu_count(),
        "instruction_sets": [name for name, flag in SETS.items() if flag in flags] if flags else None,
        "memory_bytes": _bytes(memory.get("MemTotal")),
        "caches": caches(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str | None:
    """An installed package's version; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def available() -> int | None:
    """Bytes of memory that are free."""
    return _bytes(_fields("/proc/meminfo").get("MemAvailable"))


def resident() -> dict[str, int | None]:
    """Bytes of memory that this process takes, and the most that it ever took."""
    fields = _fields("/proc/self/status")
    return {"resident": _bytes(fields.get("VmRSS")), "peak": _bytes(fields.get("VmHWM"))}


def forget_peak() -> None:
    """Count the peak from now on, where the system can."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5", encoding="ascii")


def caches() -> dict[str, str]:
    """The caches that one core uses: {"L3": "32768K"}."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind = ((folder / name).read_text().strip() for name in ("level", "type"))
        found[f"L{level}{'' if kind == 'Unified' else kind[0].lower()}"] = (folder / "size").read_text().strip()
    return found


class Others:
    """How much of the machine other programs take while this process measures."""

    def __init__(self):
        self.start = self._now()

    def share(self) -> float | None:
        """Their share of all cores' time since this was made, 0 to 1; None where the system does not say."""
        (wall, own, busy), (wall_0, own_0, busy_0) = self._now(), self.start
        if busy is None or busy_0 is None:
            return None
        return max(0.0, (busy - busy_0) - (own - own_0)) / ((wall - wall_0) * (os.cpu_count() or 1))

    def _now(self) -> tuple[float, float, float | None]:
        """Seconds: on the clock, of this process on all threads, of all cores busy or stolen by other machines."""
        path = Path("/proc/stat")
        if not path.exists():
            return time.perf_counter(), time.process_time(), None
        user, nice, system, _, _, irq, softirq, steal = map(int, path.read_text(encoding="utf-8").split()[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), time.process_time(), busy


class Reader:
    """Measures how fast all cores together read memory: they sum an array far larger than the caches.

    The array is of integers: a sum of floats is bound by its additions, and reads slower than models do.
    """

    def __init__(self, size: int):
        import torch  # imported here: memory is measured in processes that do without it

        self.array = torch.ones(size // 8, dtype=torch.int64)

    def __call__(self, count: int) -> tuple[float, ...]:
        """Bytes a second of `count` consecutive sums, after one that is not counted."""
        seconds = []
        for _ in range(count + 1):
            start = time.perf_counter()
            self.array.sum()
            seconds.append(time.perf_counter() - start)
        return tuple(self.array.nbytes / t for t in seconds[1:])


def _fields(path: str) -> dict[str, str]:
    """The first of each `name: value` of a file of /proc; nothing on other systems."""
    if not Path(path).exists():
        return {}
    pairs = [line.partition(":") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return {name.strip(): value.strip() for name, _, value in reversed(pairs)}


def _bytes(field: str | None) -> int | None:
    return int(field.split()[0]) * 1024 if field else None
