"""Takes samples: in which order contenders are measured, what each sample is, and its seconds."""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.workload import Coder, Contender, Mode, Model, Step, Workload

ROOT = Path(__file__).parents[1]
STEP, PREFILL, WHOLE, ENCODE, DECODE, BANDWIDTH = "step", "prefill", "whole", "encode", "decode", "bandwidth"
MACHINE = "machine"  # the name in samples of bandwidth
WARM_STEPS = 2
SHARE = 0.8  # of the free memory, for contenders that are open together


@dataclass(frozen=True)
class Point:
    """What is measured. columns: of a prefill; of a step, those in the cache before it."""

    what: str
    mode: str = ""
    columns: int = 0


@dataclass(frozen=True)
class Sample:
    """One measurement: the seconds of consecutive calls, or for bandwidth bytes a second."""

    group: int
    round: int
    contender: str
    what: str
    mode: str
    columns: int
    values: tuple[float, ...]

    def tree(self) -> dict[str, Any]:
        return asdict(self)


def in_turn(names: Sequence[str], points: Sequence[Point], turn: int) -> Iterator[tuple[Point, str]]:
    """One round: for every point every contender in turn; each round begins with another contender."""
    for point in points:
        for i in range(len(names)):
            yield point, names[(i + turn) % len(names)]


def groups(sizes: Mapping[str, int], budget: int | None, yardstick: str) -> list[list[str]]:
    """Groups of contenders that fit into memory together, the yardstick in each. sizes: bytes by name."""
    if budget is None or sum(sizes.values()) <= budget:
        return [list(sizes)]
    found: list[list[str]] = []
    for name in sizes:
        if name == yardstick:
            continue
        if not found or sum(sizes[n] for n in found[-1]) + sizes[name] > budget:
            found.append([yardstick])
        found[-1].append(name)
    return found


def budget() -> int | None:
    """Bytes that contenders may take together."""
    free = machine.available()
    return None if free is None else int(SHARE * free)


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def steps(step: Step, count: int) -> tuple[float, ...]:
    """Seconds of consecutive steps, after some that are not counted."""
    for _ in range(WARM_STEPS):
        step()
    return tuple(timed(step) for _ in range(count))


def measure(
    contender: Contender, mode: Mode, point: Point, count: int, workload: Workload, model: Model
) -> tuple[float, ...]:
    """One sample of a contender. count: how many steps."""
    gc.collect()
    if point.what == STEP:
        return steps(contender.seek(mode, point.columns), count)
    if point.what == PREFILL:
        return (timed(lambda: contender.prefill(mode, point.columns)),)
    audio = np.repeat(model.prompt(workload.prompt), mode.takes, axis=0)
    return (timed(lambda: contender.continue_audio(mode, audio, workload)),)


def measure_coder(coder: Coder, point: Point, workload: Workload, model: Model) -> tuple[float, ...]:
    """One sample of a codec: the prompt in, everything out."""
    gc.collect()
    if point.what == ENCODE:
        audio = model.prompt(workload.prompt)
        return (timed(lambda: coder.encode(audio)),)
    codes = model.codes(1, workload.frames(model)[1])
    return (timed(lambda: coder.decode(codes)),)


def child(job: str, *arguments: str) -> dict[str, Any]:
    """Run bench/process.py and return what it measured. Raises RuntimeError with its stderr."""
    command = [sys.executable, "-m", "bench.process", job, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def warm(paths: Sequence[Path]) -> None:
    """Read files once, so that opening them later reads the system's cache and not the disk."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))
