"""Measure what `clean-lm batch` does for each row in the driver, the process that plans a job and keeps its results.

  python -m bench.driver plan --rows 1000000      reads a list, plans it, makes groups and packs them
  python -m bench.driver results --rows 1000000   adds and writes result lines, reads them for --resume, merges them
  python -m bench.driver ray --rows 64000         sends groups through Ray Data to one worker that draws nothing

Needs the extra `batch`. Draws nothing: of a bundle only the manifest is read. Prints the processor time of this process
(user and system), and the highest memory that it has had until then. Ray's other processes are not in it: there,
seconds of a clock count.
"""

import argparse
import hashlib
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import ray.data

from bench.ours import ROOT
from clean_lm.batch import run
from clean_lm.batch.command import require_no_input
from clean_lm.batch.plan import Settings, Task, groups, plan
from clean_lm.batch.rows import read_rows
from clean_lm.batch.store import Folder, Result, Results
from clean_lm.batch.worker import common

BUNDLE = ROOT / "tests" / "golden" / "conformance" / "bundles" / "text"
TRACKS = 10  # rows of one track
GROUP = 8  # takes


class Idle:
    """A worker that draws nothing."""

    def __init__(self, output: str, threads: int, board: Any):
        pass

    def __call__(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        results = [result_of(Task.unpacked(text)) for text in json.loads(item["tasks"])]
        return [{"group": item["group"], "results": json.dumps(results)}]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.driver", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = {"plan": planned, "results": kept, "ray": sent}
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--rows", type=int, default=100_000)
    args = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="driver-"))
    try:
        stages[args.stage](folder, args.rows)
    finally:
        shutil.rmtree(folder)


def planned(folder: Path, rows: int) -> None:
    """All that the driver does before Ray starts."""
    source = listed(folder, rows)
    with timed("read_rows", rows):
        found = read_rows(str(source))
    with timed("plan", rows):
        tasks = plan(found, Settings(str(BUNDLE)))
    with timed("require_no_input", rows):
        require_no_input(Folder(str(folder / "out")), tasks)
    with timed("groups", rows):
        made = list(groups(tasks, GROUP))
    with timed("packed", rows):
        size = sum(len(json.dumps([task.packed() for task in group])) for group in made)
    print(f"{len(made)} groups, {size / rows:.0f} bytes a row")


def kept(folder: Path, rows: int) -> None:
    """All that the driver does with results."""
    tasks = list(numbered(rows))
    results = Results(Folder(str(folder / "out")))
    results.begin(False, [])
    places = {task.id: task.place for task in tasks}
    shuffled = random.Random(1).sample(tasks, rows)
    memory("at the start")
    with timed("add and flush", rows):
        for task in shuffled:
            results.add(result_of(task))
        results.flush()
    size = sum(path.stat().st_size for path in (folder / "out" / "parts").iterdir())
    print(f"{len(results.folder.parts())} parts, {size / rows:.0f} bytes a line")
    with timed("done", rows):
        assert len(results.done()) == rows
    with timed("finish", rows):
        results.finish(places)
    print(f"results.parquet: {(folder / 'out' / 'results.parquet').stat().st_size / rows:.0f} bytes a line")


def sent(folder: Path, rows: int) -> None:
    """Ray Data's part, on this machine alone."""
    tasks, count = list(numbered(rows)), -(-rows // GROUP)
    with ExitStack() as stack, mock.patch.object(run, "Actor", Idle):
        with timed("start of Ray", 1):
            stack.enter_context(run.connected(None, 2))
        real = ray.data.from_items
        with mock.patch.object(ray.data, "from_items", timed("put groups", count)(real)):
            start, first, received = time.perf_counter(), 0.0, 0
            with timed("groups through Ray", count):
                for _ in run.arrived(tasks, str(folder / "out"), run.Pool(1, 1, rows=GROUP), run.Stop()):
                    first = first or time.perf_counter()
                    received += 1
                ended = time.perf_counter()
    seconds = ended - first
    print(f"{received} of {rows} rows; {first - start:.1f} s to the first, then {1000 * seconds / count:.2f} ms each")


def numbered(rows: int) -> Iterator[Task]:
    """Tasks as a plan's, made faster."""
    for n in range(rows):
        name = f"set-{n % 97}/row-{n:07}"
        model, parameters = (hashlib.sha256(text.encode()).hexdigest() for text in ("model", name))
        files, options = {"input": (f"tracks/track-{n // TRACKS:06}.flac",)}, {"seed": n * 2654435761 % 2**32}
        yield Task(name, n, str(BUNDLE), None, None, files, options, (f"{name}.wav",), None, model, parameters)


def listed(folder: Path, rows: int) -> Path:
    """A list of rows as JSON lines."""
    source = folder / "rows.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for n in range(rows):
            row = {"id": f"set-{n % 97}/row-{n:07}", "input": f"tracks/track-{n // TRACKS:06}.flac"}
            file.write(json.dumps({**row, "text": f"slow house number {n % 31}", "duration": 30.0}) + "\n")
    return source


def result_of(task: Task) -> Result:
    """A result as a worker's, of numbers that do not repeat."""
    noise = (int(task.parameters[:6], 16) % 9973) / 100
    facts = {"seed": task.options["seed"], "seam": 6.0, "level_db": noise / 9, "sample_rate": 32000, "channels": 1}
    take = {"file": task.outputs[0], "seed": task.options["seed"], "duration": 30.0, "temperature": 1.0}
    take |= {"peak_db": -noise / 50, "rms_db": -noise / 7, "first_beat_db": noise / 31, "silent": False}
    spent = {"clipped": 0, "seconds": 31 + noise, "real_time_factor": round(24 / (31 + noise), 3), "together": 8}
    return {**common(task), **facts, **spent, "state": "done", "warnings": [], "takes": [take]}


@contextmanager
def timed(name: str, count: int) -> Iterator[None]:
    """Print the processor time of a block, of each of so many."""
    wall, start = time.perf_counter(), time.process_time()
    yield
    used, wall = time.process_time() - start, time.perf_counter() - wall
    print(f"{name:20} {used:8.2f} s of a core, {wall:8.2f} s of a clock, {1e6 * used / count:9.1f} us each", flush=True)
    memory(name)


def memory(name: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{name:20} {peak / 1e9:8.2f} GB at most", flush=True)


if __name__ == "__main__":
    main()
