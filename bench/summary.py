"""Summarises samples: medians, ratios, and the whole workload extrapolated from its parts.

A whole workload is encode + prefill + the steps + decode, each a median. Steps are sampled at some cache lengths:
between two of them a step's time is taken to lie on the line through both, beyond the last on the last line.

    ms    .                    o        o  sampled at 100, 750, 1490 columns
          |          o . ' ' '          summed from 301 to 1502 columns, one by one
          |  o . '  |                |
          +--+------+---+------------+--  columns
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.measure import BANDWIDTH, DECODE, ENCODE, MACHINE, PREFILL, STEP, WHOLE, Sample, median
from bench.workload import GUIDED, NULL, Model, Workload

Times = dict[tuple[str, str, str, int], float]  # (contender, what, mode, columns) -> median seconds


def medians(samples: Sequence[Sample], group: int | None = None) -> Times:
    """The median of all rounds' values, of one group or of all."""
    values = defaultdict(list)
    for s in samples:
        if group in (None, s.group):
            values[s.contender, s.what, s.mode, s.columns] += s.values
    return {key: median(found) for key, found in values.items()}


def at_length(sampled: Mapping[int, float], columns: np.ndarray) -> np.ndarray:
    """A step's seconds at any cache lengths, from those at the sampled ones."""
    x = np.array(sorted(sampled), dtype=np.float64)
    y = np.array([sampled[int(length)] for length in x])
    if len(x) == 1:
        return np.full(len(columns), y[0])
    piece = np.clip(np.searchsorted(x, columns) - 1, 0, len(x) - 2)
    slope = (y[piece + 1] - y[piece]) / (x[piece + 1] - x[piece])
    return y[piece] + slope * (columns - x[piece])


def all_steps(sampled: Mapping[int, float], columns: range) -> float:
    """Seconds of a step at each of these cache lengths together."""
    return float(at_length(sampled, np.array(columns)).sum())


def summarise(
    samples: Sequence[Sample],
    read: Mapping[tuple[str, str, int], int],
    coders: Mapping[str, str],
    rows: Mapping[tuple[str, str], int],
    yardstick: str,
    workload: Workload,
    model: Model,
) -> dict[str, Any]:
    """Everything that the report shows, by contender and mode.

    read: (contender, mode, columns) -> bytes that a step reads at least; coders: contender -> the name of its codec;
    rows: (contender, mode) -> how many it computes.
    """
    times = medians(samples)
    rates = [rate for s in samples if s.what == BANDWIDTH for rate in s.values]
    codecs = {
        name: {what: times.get((name, what, "", 0)) for what in (ENCODE, DECODE)}
        for name in dict.fromkeys(coders.values())
    }
    contenders: dict[str, Any] = {}
    for name, coder in coders.items():
        own = [s for s in samples if s.contender == name and s.mode]  # a codec may have the contender's name
        beside = medians(samples, own[0].group) if own else {}
        contenders[name] = {
            mode: Cell(name, mode, times, beside, yardstick).summary(
                rows[name, mode], read, codecs[coder], workload, model
            )
            for mode in dict.fromkeys(s.mode for s in own)
        }
    found = {"bandwidth": median(rates) if rates else None, "contenders": contenders, "codecs": codecs}
    found["yardstick"] = yardstick
    return found | {"goals": goals(found, workload)}


@dataclass(frozen=True)
class Cell:
    """One contender in one mode. Ratios are of times that were measured side by side."""

    name: str
    mode: str
    times: Times  # medians of all groups
    beside: Times  # medians of the contender's own group, where the yardstick was measured too
    yardstick: str

    def summary(
        self,
        rows: int,
        read: Mapping[tuple[str, str, int], int],
        codec: Mapping[str, float | None],
        workload: Workload,
        model: Model,
    ) -> dict[str, Any]:
        """What the report shows of it."""
        steps, columns = self.steps(), workload.prefill(model)
        first, last = min(steps, default=0), max(steps, default=0)
        prefill = self.times.get((self.name, PREFILL, self.mode, columns))
        size = {at: read[self.name, self.mode, at] for at in steps}
        ratios = {at: self.to_yardstick(STEP, at) for at in steps}
        whole = self.times.get((self.name, WHOLE, self.mode, 0))
        return {
            "rows": rows,
            "step": steps,
            "growth": steps[last] / steps[first] if steps else None,
            "step_to_yardstick": {at: ratio for at, ratio in ratios.items() if ratio is not None},
            "read": size,
            "of_bandwidth": {at: size[at] / t / self.bandwidth(at) for at, t in steps.items()},
            "prefill": prefill,
            "prefill_to_yardstick": self.to_yardstick(PREFILL, columns),
            "extrapolated": extrapolated(steps, prefill, codec, workload, model),
            "whole": None if whole is None else _whole(whole, workload),
        }

    def steps(self) -> dict[int, float]:
        """Seconds of a step by the columns in the cache before it."""
        wanted = (self.name, STEP, self.mode)
        return {at: t for (who, what, mode, at), t in self.times.items() if (who, what, mode) == wanted}

    def to_yardstick(self, what: str, columns: int) -> float | None:
        """Its time over the yardstick's; None where one of them was not measured."""
        ours, theirs = (self.beside.get((who, what, self.mode, columns)) for who in (self.name, self.yardstick))
        return None if ours is None or theirs is None else ours / theirs

    def bandwidth(self, columns: int) -> float:
        """Bytes a second that memory was read at beside its steps."""
        return self.beside[MACHINE, BANDWIDTH, self.mode, columns]


def extrapolated(
    steps: Mapping[int, float],
    prefill: float | None,
    codec: Mapping[str, float | None],
    workload: Workload,
    model: Model,
) -> dict[str, float] | None:
    """The whole workload out of its parts; None where one of them, or a second cache length, was not measured."""
    parts = [codec[ENCODE], prefill, codec[DECODE]]
    known = [seconds for seconds in parts if seconds is not None]
    if len(steps) < 2 or len(known) < len(parts):
        return None
    return _whole(sum(known) + all_steps(steps, workload.steps(model)), workload)


def _whole(seconds: float, workload: Workload) -> dict[str, float]:
    """A whole workload's seconds, and how many seconds of audio each gives: of all of it, and of what is new."""
    new = workload.duration - workload.prompt
    return {"seconds": seconds, "real_time": workload.duration / seconds, "real_time_new": new / seconds}


def goals(found: Mapping[str, Any], workload: Workload) -> list[dict[str, Any]]:
    """The ratios that this project is held to, those that this run can tell."""
    everyone = found["contenders"]
    ours = {name: modes for name, modes in everyone.items() if name.startswith("clean_lm")}
    lines = []
    for other, theirs in everyone.items():
        for name, modes in ours.items():
            for mode in (GUIDED, NULL) if other not in ours else ():
                lines += _speedups(mode, name, modes.get(mode, {}), other, theirs.get(mode, {}))
    for name, modes in ours.items():
        for mode in (GUIDED, NULL):
            lines += _own_ratios(name, mode, modes.get(mode, {}), found["yardstick"], workload)
    return lines


def _speedups(
    mode: str, name: str, cell: Mapping[str, Any], other: str, theirs: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """How many times as long as ours another contender takes in one mode: steps, prefill, whole generations."""
    for at, seconds in cell.get("step", {}).items():
        if at in theirs.get("step", {}):
            yield {"what": f"{mode} step at {at} columns: {other} / {name}", "ratio": theirs["step"][at] / seconds}
    if cell.get("prefill") and theirs.get("prefill"):
        yield {"what": f"{mode} prefill: {other} / {name}", "ratio": theirs["prefill"] / cell["prefill"]}
    for kind in ("whole", "extrapolated"):
        if cell.get(kind) and theirs.get(kind):
            how = "measured" if kind == "whole" else kind
            ratio = theirs[kind]["seconds"] / cell[kind]["seconds"]
            yield {"what": f"{mode} generation ({how}): {other} / {name}", "ratio": ratio}


def _own_ratios(
    name: str, mode: str, cell: Mapping[str, Any], yardstick: str, workload: Workload
) -> Iterator[dict[str, Any]]:
    """Of one of our variants in one mode: growth, prefill, and real-time factors. cell: its summary."""
    if cell.get("growth"):
        first, last = min(cell["step"]), max(cell["step"])
        yield {"what": f"{mode} step at {last} / at {first} columns: {name}", "ratio": cell["growth"]}
    if cell.get("prefill_to_yardstick") and name != yardstick:
        yield {"what": f"{mode} prefill: {name} / {yardstick}", "ratio": cell["prefill_to_yardstick"]}
    whole = cell.get("whole") or cell.get("extrapolated")
    if whole:
        how = "measured" if cell.get("whole") else "extrapolated"
        what = f"{mode}: {name}, real-time factor ({how}) over"
        new = workload.duration - workload.prompt
        yield {"what": f"{what} {workload.duration:g} s", "ratio": whole["real_time"]}
        yield {"what": f"{what} the {new:g} s that are new", "ratio": whole["real_time_new"]}
