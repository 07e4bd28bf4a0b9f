"""clean-lm batch: its options, what it says, and its end."""

import argparse
import contextlib
import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from clean_lm import atomic, console, memory
from clean_lm.audio import AudioError
from clean_lm.batch.addresses import is_address, whole
from clean_lm.batch.job import Ended, Pool
from clean_lm.batch.plan import Settings, Task, plan
from clean_lm.batch.rows import read_rows
from clean_lm.batch.store import Folder, Result, Results
from clean_lm.manifest import Manifest
from clean_lm.options import integer, number, threads
from clean_lm.request_options import OPTIONS, Option
from clean_lm.windows import Window

MOST_ERRORS = 5  # that are printed; all are in results.parquet
RESERVED = 1.4  # times a bundle's files: the weights once more, reordered for the CPU, and what runs them
FREE = 0.8  # of the memory that is available may be taken


def batch(args: argparse.Namespace) -> None:
    """Read, plan, draw what is not done, say what became of it."""
    pool = validated(args)
    rows = read_rows(whole(args.rows))
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}
    bundle = None if args.bundle is None else whole(args.bundle)
    tasks = plan(rows, Settings(bundle, args.variant, args.device, given, args.job_seed, f".{args.format}"))
    folder = Folder(whole(args.output))
    require_no_input(folder, tasks)
    results = Results(folder)
    with alone(folder):
        there = results.begin(args.resume, [name for task in tasks for name in task.outputs])
        done = results.done()
        left = [task for task in tasks if done.get(task.id) != task.parameters or not there >= set(task.outputs)]
        places = {task.id: task.place for task in tasks}
        progress = Progress(args.json, len(left), len(tasks) - len(left))
        ended = Ended(left=len(left))
        try:
            if left:
                connected, run = ray(args.address)
                with connected(args.address, cpus(pool)) as resources:
                    pool = sized(pool, left, resources)
                    progress.begin(pool)
                    ended = run(left, results, folder.address, pool, args.max_failures, progress)
        finally:
            progress.close()
            results.finish(places)
    progress.end(ended, folder)


def ray(address: str | None) -> tuple[Any, Any]:
    """run.connected and run.run, with which Ray is imported.

    A Ray of our own listens on all addresses of the machine. It takes connections only with a token, which it reads
    when it is imported.
    """
    if address is None:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    from clean_lm.batch.run import connected, run

    return connected, run


def validated(args: argparse.Namespace) -> Pool:
    """The pool as it is asked for; 0 actors, threads: to be chosen. Raises ValueError."""
    threads("--threads", args.threads)
    actors = 0 if args.actors is None else integer("--actors", args.actors, 1, 100_000)
    rows = integer("--together", args.together, 1, 256)
    gpus = number("--gpus", args.gpus, "0 or more, for each actor", 0, 1024)
    integer("--seed", args.job_seed, 0)
    for name, option in OPTIONS.items():
        value = getattr(args, name, None)
        if option.kind in ("integer", "number") and value is not None:
            number(f"--{name.replace('_', '-')}", value, bounds(option), *limits(option))
    if args.max_failures is not None:
        integer("--max-failures", args.max_failures, 0)
    return Pool(actors, args.threads or 1, 0, float(gpus), rows, args.address)


def limits(option: Option) -> tuple[float, float]:
    """What a number may be."""
    return (
        -math.inf if option.least is None else option.least,
        math.inf if option.most is None else option.most,
    )


def bounds(option: Option) -> str:
    """The same in words."""
    least = "a number" if option.least is None else f"{option.least:g} or more"
    return least if option.most is None else f"{least}, {option.most:g} at most"


def cpus(pool: Pool) -> int:
    """Of this machine, for a Ray of our own."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(here, pool.actors * pool.threads)


def sized(pool: Pool, tasks: Sequence[Task], resources: Mapping[str, float]) -> Pool:
    """The pool with as many actors as CPUs and memory allow, if none are asked for; each needs a model of its own.

    Raises ValueError if not even one can be had, which Ray would wait for without end.
    """
    for option, name, wanted in (("--threads", "CPU", pool.threads), ("--gpus", "GPU", pool.gpus)):
        if wanted > (found := resources.get(name, 0.0)):
            raise ValueError(f"{option}: got {wanted:g} for each actor, Ray has {found:g} {name}s in all")
    if pool.actors:
        return pool
    need = max((needed(task.bundle, task.variant, pool.rows) for task in models(tasks)), default=0)
    there = resources.get("memory", 0.0) if pool.address else memory.available() * FREE
    fit = [resources.get("CPU", 1) // pool.threads, there // max(1, need)]
    if pool.gpus:
        fit.append(resources.get("GPU", 0) // pool.gpus)
    return replace(pool, actors=max(1, int(min(fit))), memory=need if pool.address else 0)


def models(tasks: Sequence[Task]) -> Iterator[Task]:
    """A task of each model."""
    yield from {task.model: task for task in tasks if task.error is None}.values()


def needed(bundle: str, variant: str | None, rows: int) -> int:
    """Bytes of memory that a worker needs for a bundle, and for so many rows of its usual length with guidance."""
    manifest = Manifest.read(bundle, variant=variant)
    model = manifest.language_model
    frames = round(manifest.defaults.duration * (model.frame_rate or 0))
    generation = memory.of_generation(manifest, rows, [Window(0, 0, frames)], "single")
    return round(manifest.used_bytes() * RESERVED) + generation.total


def require_no_input(folder: Folder, tasks: Sequence[Task]) -> None:
    """Raise AudioError if a row's output would replace one of the job's inputs."""
    inputs = {address for task in tasks for addresses in task.files.values() for address in addresses}
    if folder.local is not None:
        inputs = {os.path.realpath(path) for path in inputs if not is_address(path)}
    for task in tasks:
        for name in task.outputs:
            path = folder.path(name) if folder.local is None else os.path.realpath(folder.local / name)
            if path in inputs:
                raise AudioError(f"{path}: is an input, which is never replaced; choose another output folder")


@contextlib.contextmanager
def alone(folder: Folder) -> Iterator[None]:
    """A context in which no other job writes to a folder. Raises AudioError where one does."""
    if folder.local is None:  # objects have no locks
        yield
        return
    folder.make()
    with atomic.locked(folder.local) as ours:
        if not ours:
            raise AudioError(f"{folder.address}: another job writes to it; wait for its end, or choose another folder")
        yield


class Progress:
    """Says how a job goes: on a terminal, or as lines of JSON."""

    def __init__(self, as_json: bool, rows: int, before: int):
        """before: rows that were done already."""
        self.json, self.rows, self.before = as_json, rows, before
        layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} rows {elapsed} < {remaining}{postfix}"
        self.bar = tqdm(desc="drawing", total=rows, bar_format=layout, disable=True if as_json else None)
        self.start, self.errors = time.perf_counter(), 0

    def begin(self, pool: Pool) -> None:
        self.start = time.perf_counter()
        facts = {"rows": self.rows, "done_before": self.before, "actors": pool.actors, "threads": pool.threads}
        if self.json:
            print(json.dumps({"event": "start", **facts, "together": pool.rows}), flush=True)
            return
        before = f", {self.before} are done already" if self.before else ""
        of = f"of {pool.threads} thread{'s' * (pool.threads > 1)}"
        workers = f"{pool.actors} worker{'s' * (pool.actors > 1)} {of}, up to {pool.rows} takes at a time"
        self.bar.write(f"{self.rows} rows to draw{before}; {workers}")

    def __call__(self, ended: Ended, result: Result) -> None:
        """After each row."""
        done, seconds = ended.done + ended.failed, time.perf_counter() - self.start
        rate = 3600 * done / seconds
        if self.json:
            left = round(ended.left / done * seconds, 1)
            event = {"event": "progress", "done": ended.done, "failed": ended.failed, "total": self.rows}
            print(json.dumps({**event, "rows_per_hour": round(rate, 1), "seconds_left": left}), flush=True)
        if result["state"] == "failed":
            self.errors += 1
            if self.errors <= MOST_ERRORS:
                with self.bar.external_write_mode():
                    console.say(console.plain(f"row {result['id']}: {result['error']}"))
        self.bar.set_postfix_str(f"{rate:.0f} an hour, {ended.failed} failed", refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()

    def end(self, ended: Ended, folder: Folder) -> None:
        """The summary. Raises ValueError if rows failed, and KeyboardInterrupt after a signal."""
        seconds, done = time.perf_counter() - self.start, ended.done + ended.failed
        rate = round(3600 * done / seconds) if done else 0
        results = f"{folder.address}/results.parquet"
        facts: dict[str, Any] = {"done": ended.done, "failed": ended.failed, "left": ended.left}
        if self.json:
            facts |= {"done_before": self.before, "seconds": round(seconds, 1), "rows_per_hour": rate}
            print(json.dumps({"event": "done", "results": results, **facts}), flush=True)
        else:
            words = f"{ended.done} rows drawn" + (f", {self.before} were done already" if self.before else "")
            print(console.plain(f"{results}: {words}; {seconds:.1f} s, {rate} rows an hour"))
        if ended.interrupted:
            console.say(f"{ended.left} rows are left; --resume goes on with them")
            raise console.Interrupted(ended.interrupted)
        if ended.failed:
            stopped = f", and {ended.left} were not begun (--max-failures)" if ended.too_many else ""
            raise ValueError(
                f"{ended.failed} of {self.rows} rows failed{stopped}: {results} says why of each (error); --resume "
                "tries them again"
            )
