"""A job of `clean-lm batch` on many machines, on paper: a simulation of its events, and a formula beside it.

  python -m bench.scale                                   a million rows on 100 machines
  python -m bench.scale --machines 1000 --schedule 0.03   any number of the table can be changed
  python -m bench.scale --ideal                           without failures, skew and late machines

As the code does it: the driver plans all rows and puts groups into Ray's store. One scheduler, in the driver too, sends
groups to actors, at most two to each. An actor loads its model once, draws a group, writes its audio. The driver writes
the results, a part every 1000 rows or 5 s, and at the end one file. A group whose actor ends is begun again by it, once
it is back; after three times it is taken apart, at the end, and its rows are drawn one by one. Machines come over the
first minutes, some are taken away, others come in their place.

The formula. N actors, G groups of g rows, seconds:

  before = rows x plan + start + G x put
  w      = g x (row x together x length + bytes / storage)        of a group on an actor
  d      = schedule + g x (keep + flush / 1000)                   of a group in the driver
  N'     = N x e^(spread^2 / 2) / (1 + r x (back + w / 2))        r: an actor's ends a second, back: until it is there
  draw   = max(w x (G / N' + 1/2), G x d, rows x bytes / storage)
  whole  = before + late + load + draw + rows x finish

More actors than w / d make nothing faster: the driver is the bottleneck. The formula knows nothing of the order of long
and short groups, nor of the last pass: the simulation does. Nothing is drawn and Ray is not used.
"""

import argparse
import heapq
import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

ATTEMPTS, IN_FLIGHT = 3, 2  # of clean_lm/batch/run.py
FLUSH_ROWS, FLUSH_SECONDS = 1000, 5.0  # of clean_lm/batch/store.py
BUSY = 0.9  # of the actors: with fewer at work, the tail has begun
MEASURED, ESTIMATED, ASSUMED, CHOSEN = "measured", "estimated", "assumed", "chosen"


def number(default: float, what: str, origin: str) -> Any:
    """A field of the table."""
    return field(default=default, metadata={"what": what, "origin": origin})


@dataclass(frozen=True)
class Job:
    """All numbers of the arithmetic."""

    rows: int = number(1_000_000, "rows", CHOSEN)
    machines: int = number(100, "machines", CHOSEN)
    actors: int = number(16, "actors on a machine: its cores, one thread each", CHOSEN)
    group: int = number(8, "rows of a group", CHOSEN)
    plan: float = number(190e-6, "s of the driver for a row until Ray starts", MEASURED)
    start: float = number(10.0, "s until Ray is connected", ESTIMATED)
    put: float = number(2e-3, "s of the driver to put a group into Ray's store", MEASURED)
    schedule: float = number(10e-3, "s of the driver to send a group through Ray Data", ESTIMATED)
    keep: float = number(40e-6, "s of the driver to write down a row's result", MEASURED)
    flush: float = number(0.05, "s until a part is stored", ASSUMED)
    finish: float = number(12e-6, "s of the driver for a row of results.parquet", MEASURED)
    load: float = number(8.0, "s until an actor has its model", ESTIMATED)
    row: float = number(45.0, "s of a core for a row of 30 s alone", ESTIMATED)
    together: float = number(0.7, "of that for each row of a full group", ESTIMATED)
    written: float = number(1.92e6, "bytes of a row's audio", ESTIMATED)
    read: float = number(2e6, "bytes of a track for each row", ASSUMED)
    storage: float = number(1e9, "bytes a second of the storage, all machines together", ASSUMED)
    mixed: float = number(0.25, "of the rows have half the length, and as many twice the length", ASSUMED)
    spread: float = number(0.1, "spread of the machines' speed (sigma of its logarithm)", ASSUMED)
    noise: float = number(0.05, "spread of a group's seconds (likewise)", ASSUMED)
    arrive: float = number(600.0, "s over which the machines come", ASSUMED)
    actor_hours: float = number(500.0, "hours between two ends of an actor", ASSUMED)
    machine_hours: float = number(1000.0, "hours between two failures of a machine", ASSUMED)
    spot: float = number(0.5, "of the machines are spot machines", ASSUMED)
    spot_hours: float = number(10.0, "hours until a spot machine is taken away", ASSUMED)
    replaced: float = number(300.0, "s until another machine is there", ASSUMED)
    deadly: int = number(10, "rows that end every actor that draws them", ASSUMED)
    price: float = number(0.5, "a machine-hour, in any currency", ASSUMED)
    seed: int = number(0, "of the random numbers", CHOSEN)

    @property
    def pool(self) -> int:
        return self.machines * self.actors

    @property
    def groups(self) -> int:
        return math.ceil(self.rows / self.group)

    @property
    def length(self) -> float:
        """Mean length of a row."""
        return 1 + self.mixed * (0.5 - 1) + self.mixed * (2 - 1)

    def seconds(self, rows: int) -> float:
        """Of a core to draw rows of one length in a batch."""
        return self.row if rows == 1 else rows * self.row * self.together

    @property
    def transfer(self) -> float:
        """Seconds of the whole storage for a row."""
        return (self.written + self.read) / self.storage

    @property
    def before(self) -> float:
        """Seconds until the first group can be sent."""
        return self.rows * self.plan + self.start + self.groups * self.put


IDEAL = {"mixed": 0.0, "spread": 0.0, "noise": 0.0, "arrive": 0.0, "spot": 0.0, "deadly": 0}
IDEAL |= {"actor_hours": math.inf, "machine_hours": math.inf}


def formula(job: Job) -> dict[str, float]:
    """The docstring's."""
    work = job.seconds(job.group) * job.length + job.group * job.transfer
    driver = job.schedule + job.group * (job.keep + job.flush / FLUSH_ROWS)
    machine = (1 - job.spot) / job.machine_hours + job.spot * (1 / job.spot_hours + 1 / job.machine_hours)  # an hour
    idle = (machine * job.replaced + (machine + 1 / job.actor_hours) * (job.load + work / 2)) / 3600
    pool = job.pool * math.exp(job.spread**2 / 2) / (1 + idle)
    draw = max(work * (job.groups / pool + 0.5), job.groups * driver, job.rows * job.transfer)
    late = max(0.0, job.arrive - job.before) ** 2 / (2 * job.arrive) if job.arrive else 0.0
    whole = job.before + late + job.load + draw + job.rows * job.finish
    hours = job.machines * (whole - job.arrive / 2) / 3600
    return {
        "makespan": whole,
        "driver_share": min(1.0, job.groups * driver / draw),
        "storage_share": min(1.0, job.rows * job.transfer / draw),
        "most_actors": work / driver,
        "machine_hours": hours,
        "cost": hours * job.price,
    }


@dataclass
class Actor:
    """One worker. Its groups stay its own while it is away, as Ray does it."""

    machine: int
    here: bool = False
    epoch: int = 0  # ends so far
    flight: int = 0  # groups sent to it whose results have not arrived
    queue: deque[int] = field(default_factory=deque)  # the first one is the one it draws
    began: float | None = None


class Simulation:
    """The events of a job in their order."""

    def __init__(self, job: Job):
        self.job, self.rng = job, np.random.default_rng(job.seed)
        self.events: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self.now, self.count = 0.0, 0
        self.up = [-1.0] * job.machines  # since when; -1: away
        self.speed = [1.0] * job.machines
        self.present = 0.0  # machine-seconds of those that went
        self.arrived, self.failed = np.zeros(job.rows, np.int64), 0
        self.useful = self.lost = self.driving = self.storage_free = 0.0
        self.ends = self.backlog = self.parts = self.waiting = 0
        self.flushed = self.full = 0.0

    def run(self) -> dict[str, float]:
        job = self.job
        for machine, at in enumerate(np.sort(self.rng.uniform(0, job.arrive, job.machines))):
            self.at(float(at), "come", machine)
        self.deadly = set(self.rng.choice(job.rows, job.deadly, replace=False).tolist())
        lengths = self.lengths()
        groups = [range(first, min(first + job.group, job.rows)) for first in range(0, job.rows, job.group)]
        left = self.drawn(groups, lengths, job.before)
        self.tail = self.now - self.full
        drawing = self.now - job.before
        last = self.now
        if left:
            left = self.drawn([range(row, row + 1) for row in left], lengths, self.now)
        self.failed = len(left)
        return self.summary(drawing, self.now - last)

    def lengths(self) -> np.ndarray:
        """Of each row [rows], alike ones beside each other as groups() puts them: half, one, twice."""
        few = round(self.job.rows * self.job.mixed)
        found = np.ones(self.job.rows)
        found[:few], found[self.job.rows - few :] = 0.5, 2.0
        return found

    def drawn(self, groups: Sequence[range], lengths: np.ndarray, start: float) -> list[int]:
        """One pass over groups of rows, with new actors, until all have arrived; the rows that did not."""
        self.groups, self.left = groups, []
        self.costs = [self.job.seconds(len(group)) * lengths[group[0] : group[-1] + 1].mean() for group in groups]
        self.begun, self.unsent, self.out = [0] * len(groups), 0, len(groups)
        self.takes: deque[tuple[int, int, bool]] = deque()
        self.slots: list[tuple[int, int]] = []
        self.driver_free, self.busy = True, 0
        self.actors = [Actor(n // self.job.actors) for n in range(min(self.job.pool, len(groups)))]
        self.now = max(self.now, start)
        for number, actor in enumerate(self.actors):
            if self.up[actor.machine] >= 0:
                self.at(self.now + self.job.load, "ready", number, 0)
        self.start = start
        while self.out:
            self.now, _, kind, about = heapq.heappop(self.events)
            getattr(self, f"on_{kind}")(*about)
        self.events = [event for event in self.events if event[2] in ("come", "go")]
        heapq.heapify(self.events)
        return self.left

    def at(self, time: float, kind: str, *about: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, kind, about))

    def hours(self, mean: float) -> float:
        """Seconds until something that happens every so many hours."""
        return float(self.rng.exponential(3600 * mean)) if mean < math.inf else math.inf

    # machines

    def on_come(self, machine: int) -> None:
        self.up[machine] = self.now
        self.speed[machine] = math.exp(self.job.spread * self.rng.normal())
        spot = machine < self.job.spot * self.job.machines
        self.at(self.now + min(self.hours(self.job.machine_hours), self.life(spot)), "go", machine)
        for number in self.actors_of(machine):
            self.at(max(self.now, self.start) + self.job.load, "ready", number, self.actors[number].epoch)

    def life(self, spot: bool) -> float:
        return self.hours(self.job.spot_hours) if spot else math.inf

    def on_go(self, machine: int) -> None:
        if self.now == math.inf:
            raise AssertionError("no event is left, and groups are outstanding")
        self.present += self.now - self.up[machine]
        self.up[machine] = -1.0
        for number in self.actors_of(machine):
            self.end(number)
        self.at(self.now + float(self.rng.exponential(self.job.replaced)), "come", machine)

    def actors_of(self, machine: int) -> range:
        first = machine * self.job.actors
        return range(min(first, len(self.actors)), min(first + self.job.actors, len(self.actors)))

    # actors

    def on_ready(self, number: int, epoch: int) -> None:
        actor = self.actors[number]
        if actor.epoch == epoch and not actor.here:
            actor.here = True
            self.free(number)
            self.begin(number)
            self.drive()

    def begin(self, number: int) -> None:
        """Draw the next group, if there is one."""
        actor = self.actors[number]
        while actor.here and actor.began is None and actor.queue:
            group = actor.queue[0]
            self.begun[group] += 1
            if self.begun[group] > ATTEMPTS:
                self.takes.append((actor.queue.popleft(), number, False))
                continue
            actor.began = self.now
            self.working(1)
            noise = math.exp(self.job.noise * self.rng.normal()) if self.job.noise else 1.0
            end = self.now + self.costs[group] * noise / self.speed[actor.machine]
            crash = self.now + self.hours(self.job.actor_hours)
            if crash < end or not self.deadly.isdisjoint(self.groups[group]):
                self.at(min(crash, end), "crash", number, actor.epoch)
            else:
                self.at(end, "store", number, actor.epoch)

    def on_store(self, number: int, epoch: int) -> None:
        """The audio of a group is read and written, one group after the other."""
        actor = self.actors[number]
        if actor.epoch == epoch:
            took = len(self.groups[actor.queue[0]]) * self.job.transfer
            self.storage_free = max(self.now, self.storage_free) + took
            self.at(self.storage_free, "done", number, epoch)

    def on_done(self, number: int, epoch: int) -> None:
        actor = self.actors[number]
        if actor.epoch == epoch:
            assert actor.began is not None
            self.useful += self.now - actor.began
            self.takes.append((actor.queue.popleft(), number, True))
            actor.began = None
            self.working(-1)
            self.begin(number)
            self.drive()

    def on_crash(self, number: int, epoch: int) -> None:
        if self.actors[number].epoch == epoch:
            self.end(number)
            self.at(self.now + self.job.load, "ready", number, epoch + 1)

    def end(self, number: int) -> None:
        """An actor is gone, and what it was drawing is lost."""
        actor = self.actors[number]
        actor.epoch, actor.here = actor.epoch + 1, False
        self.ends += 1
        if actor.began is not None:
            self.lost += self.now - actor.began
            actor.began = None
            self.working(-1)

    def working(self, change: int) -> None:
        if self.busy >= BUSY * self.job.pool:
            self.full = self.now
        self.busy += change

    def free(self, number: int) -> None:
        """Groups can be sent to an actor."""
        actor = self.actors[number]
        if actor.here and actor.flight < IN_FLIGHT:
            heapq.heappush(self.slots, (actor.flight, number))

    # the driver: results first, then the next group to the actor that has fewest

    def drive(self) -> None:
        if not self.driver_free:
            return
        if self.takes:
            self.backlog = max(self.backlog, len(self.takes))
            group, number, whole = self.takes.popleft()
            self.occupied(self.written(len(self.groups[group]) if whole else 0), "taken", group, number, whole)
        elif self.unsent < len(self.groups) and (number := self.least()) is not None:
            self.actors[number].flight += 1
            self.free(number)
            self.unsent += 1
            self.occupied(self.job.schedule, "sent", self.unsent - 1, number)

    def occupied(self, seconds: float, kind: str, *about: Any) -> None:
        self.driver_free = False
        self.driving += seconds
        self.at(self.now + seconds, kind, *about)

    def least(self) -> int | None:
        while self.slots:
            flight, number = heapq.heappop(self.slots)
            if self.actors[number].here and self.actors[number].flight == flight:
                return number
        return None

    def written(self, rows: int) -> float:
        """Seconds to write down results."""
        self.waiting += rows
        if self.waiting < FLUSH_ROWS and self.now - self.flushed <= FLUSH_SECONDS:
            return rows * self.job.keep
        self.waiting, self.flushed, self.parts = 0, self.now, self.parts + 1
        return rows * self.job.keep + self.job.flush

    def on_sent(self, group: int, number: int) -> None:
        self.driver_free = True
        self.actors[number].queue.append(group)
        self.begin(number)
        self.drive()

    def on_taken(self, group: int, number: int, whole: bool) -> None:
        self.driver_free = True
        rows = self.groups[group]
        if whole:
            self.arrived[rows[0] : rows[-1] + 1] += 1
        else:
            self.left += list(rows)
        self.out -= 1
        self.actors[number].flight -= 1
        self.free(number)
        self.drive()

    def summary(self, drawing: float, apart: float) -> dict[str, float]:
        """drawing: seconds of the first pass; apart: of the second."""
        job = self.job
        whole = self.now + job.rows * job.finish
        hours = (self.present + sum(whole - up for up in self.up if up >= 0)) / 3600
        return {
            "makespan": whole,
            "done": int(self.arrived.sum()),
            "failed": self.failed,
            "utilisation": self.useful / (hours * 3600 * job.actors),
            "lost": self.lost / (self.lost + self.useful),
            "ends": self.ends,
            "tail": self.tail,
            "apart": apart,
            "driver_share": self.driving / (drawing + apart),
            "storage_share": job.rows * job.transfer / (drawing + apart),
            "results_waiting": self.backlog,
            "parts": self.parts,
            "machine_hours": hours,
            "cost": hours * job.price,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for entry in fields(Job):
        about = f"{entry.metadata['what']} (default: {entry.default:g}, {entry.metadata['origin']})"
        name = f"--{entry.name.replace('_', '-')}"
        parser.add_argument(name, type=type(entry.default), default=entry.default, help=about, metavar="X")
    parser.add_argument("--ideal", action="store_true", help="without failures, skew and late machines")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    job = Job(**{entry.name: getattr(args, entry.name) for entry in fields(Job)})
    job = replace(job, **IDEAL) if args.ideal else job
    found, expected = Simulation(job).run(), formula(job)
    ratio = found["makespan"] / expected["makespan"]
    if args.json:
        print(json.dumps({"job": asdict(job), "simulation": found, "formula": expected, "ratio": ratio}))
        return
    print(text(job, found, expected))
    print(f"simulation / formula: {ratio:.3f}")


def text(job: Job, found: dict[str, float], expected: dict[str, float]) -> str:
    """Both as a table."""
    lines = [f"{job.rows} rows, {job.machines} machines with {job.actors} actors, {job.groups} groups"]
    lines.append(f"{'':16}{'simulation':>12}{'formula':>12}")
    for name in [*found, *(name for name in expected if name not in found)]:
        values = (f"{part[name]:12.5g}" if name in part else " " * 12 for part in (found, expected))
        lines.append(f"{name:16}{''.join(values)}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
