"""A job as a Ray Data pipeline: groups of tasks -> a pool of workers -> results, which the driver alone writes down.

A worker that ends in the middle of a group is replaced, and the group runs again: its audio comes out the same, and its
results come back once. A group that ends its workers again and again is taken apart: its tasks run one by one, and the
one that does it is a failed result.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clean_lm.batch.job import Ended, Pool, Report
from clean_lm.batch.plan import Task, groups, size
from clean_lm.batch.store import Result, Results
from clean_lm.batch.worker import Worker, failed
from clean_lm.console import message

ATTEMPTS = 3  # at a group whose workers end, before it is taken apart, and at each of its tasks then
SHARES = 3  # groups for each worker at least: smaller ones before fewer, as some take longer than others
LOOK = 0.2  # seconds between two looks for a signal
STORE_BYTES = 200_000_000  # of Ray's objects on one machine: plans and results, no audio


class Board:
    """What driver and workers tell each other: which groups are being drawn, and whether to begin no more."""

    def __init__(self) -> None:
        self.stopped, self.running, self.ended = False, set(), set()
        self.begun: dict[int, int] = {}  # how often

    def begin(self, group: int) -> bool:
        """Whether a worker may draw a group. Ray itself would run one again without end whose workers end."""
        self.running.discard(group)  # where the worker that had it ended
        self.begun[group] = self.begun.get(group, 0) + 1
        if self.stopped or self.begun[group] > ATTEMPTS:
            return False
        self.running.add(group)
        return True

    def end(self, group: int) -> None:
        self.running.discard(group)
        self.ended.add(group)

    def stop(self) -> None:
        self.stopped = True

    def outstanding(self, received: set[int]) -> int:
        """How many groups are being drawn, or were and have not arrived."""
        return len(self.running | (self.ended - received))


class Actor:
    """A worker of the pool: one group in, its results out."""

    def __init__(self, output: str, threads: int, board: Any):
        self.worker, self.board = Worker(output, threads), board

    def __call__(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        if not ray.get(self.board.begin.remote(item["group"])):
            return []
        results = self.worker.run([Task.unpacked(text) for text in json.loads(item["tasks"])])
        ray.get(self.board.end.remote(item["group"]))
        return [{"group": item["group"], "results": json.dumps(results)}]


def run(tasks: Sequence[Task], results: Results, output: str, pool: Pool, most: int | None, report: Report) -> Ended:
    """Draw all tasks, connected to Ray. The first signal ends it when the groups that are being drawn are done, the
    second at once.

    most: failures before the job ends. Raises OSError where results cannot be written or Ray gives up, and
    KeyboardInterrupt.
    """
    ended, waiting = Ended(left=len(tasks)), {task.place: task for task in tasks}

    def keep(result: Result) -> None:
        """Write down a task's result, the first one alone."""
        if waiting.pop(result["place"], None) is None:
            return
        results.add(result)
        ended.left -= 1
        ended.done += result["state"] == "done"
        ended.failed += result["state"] != "done"
        report(ended, result)

    with stoppable() as stop:
        for rows in (pool.rows, 1):
            for result in arrived(list(waiting.values()), output, replace(pool, rows=rows), stop):
                if result is None:
                    results.flush_late()
                    continue
                keep(result)
                if most is not None and ended.failed > most:
                    ended.too_many = True
                    return ended
            if stop.number:
                ended.interrupted = stop.number
                return ended
        for task in list(waiting.values()):
            keep(failed(task, "the worker that drew it ended each time (killed, or out of memory)"))
    return ended


def arrived(tasks: Sequence[Task], output: str, pool: Pool, stop: "Stop") -> Iterator[Result | None]:
    """Yields each task's result when it arrives, and None while it waits.

    After a signal no further group begins; it ends when the results of the groups under way have arrived.
    """
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    rows = max(1, min(pool.rows, size(tasks) // (pool.actors * SHARES)))
    items = [
        {"group": number, "tasks": json.dumps([task.packed() for task in group])}
        for number, group in enumerate(groups(tasks, rows))
    ]
    if not items:
        return
    actors = min(pool.actors, len(items))
    drawn = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(
        Actor,
        fn_constructor_args=(output, pool.threads, board),
        compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        num_cpus=pool.threads,
        num_gpus=pool.gpus or None,
        memory=pool.memory or None,
    )
    received: set[int] = set()
    stopping = False
    blocks = drawn.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for block in pumped(blocks, LOOK):
        if block is None:
            yield None
        for item in [] if block is None else block.to_pylist():
            received.add(item["group"])
            yield from json.loads(item["results"])
        if stop.number and not stopping:
            ray.get(board.stop.remote())
            stopping = True
        if stopping and not ray.get(board.outstanding.remote(received)):
            return


def pumped(source: Iterable[Any], seconds: float) -> Iterator[Any]:
    """What an iterable gives, and None each time that it gives nothing for so many seconds."""
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue()

    def pump() -> None:
        try:
            for item in source:
                waiting.put(("item", item))
            waiting.put(("end", None))
        except BaseException as error:
            waiting.put(("error", error))

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            kind, value = waiting.get(timeout=seconds)
        except queue.Empty:
            yield None
            continue
        if kind == "error":
            raise OSError(f"Ray ended the job: {message(value)[:1000]}; --resume goes on with it") from value
        if kind == "end":
            return
        yield value


@contextlib.contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Mapping[str, float]]:
    """Ray's resources: a cluster's, or `cpus` of this machine in a Ray that ends with the block.

    Raises OSError where there is no cluster at the address, or none can be started here.
    """
    own = {"include_dashboard": False, "num_cpus": cpus, "object_store_memory": STORE_BYTES} if address is None else {}
    try:
        require_listening(address)
        with silenced():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        place = "this machine" if address is None else address
        raise OSError(f"--address: no Ray at {place}: {message(error)[:500]}") from None
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a group without results is looked for at the end
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def require_listening(address: str | None) -> None:
    """Raise OSError where nothing answers at host:port, for which Ray itself waits for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """A context in which nothing comes out of stderr: Ray says there how much it is going to say."""
    held = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(held, 2)
        os.close(held)
        os.close(nothing)


class Stop:
    """Whether a signal came, and which."""

    number = 0


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Note the first Ctrl-C or SIGTERM in place of being interrupted by it; the next one interrupts."""
    stop, before = Stop(), {}

    def note(number: int, frame: FrameType | None) -> None:
        stop.number = number
        for other, handler in before.items():
            signal.signal(other, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.getsignal(number)
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
