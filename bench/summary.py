"""What the samples say: medians, ratios, and the whole workload out of its parts.

A whole workload is encode + prefill + the steps + decode, each a median. Of the steps, some cache lengths were sampled:
between two of them a step's time is taken to lie on the line through both, beyond the last on the last line.

    ms    .                    o        o  sampled at 100, 750, 1490 columns
          |          o . ' ' '          summed from 301 to 1502 columns, one by one
          |  o . '  |                |
          +--+------+---+------------+--  columns
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.measure import BANDWIDTH, DECODE, ENCODE, MACHINE, PREFILL, STEP, WHOLE, Sample, median
from bench.workload import GUIDED, NULL, Model, Workload

Times = dict[tuple[str, str, str, int], float]  # (contender, what, mode, columns) -> median seconds


def medians(samples: Sequence[Sample], group: int | None = None) -> Times:
    """Of every value of every round; of one group, or of all."""
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

    read: (contender, mode, columns) -> bytes that a step reads at least; coders: contender -> whose codec it has;
    rows: (contender, mode) -> how many it computes.
    """
    times = medians(samples)
    rates = [rate for s in samples if s.what == BANDWIDTH for rate in s.values]
    bandwidth = median(rates) if rates else None
    found: dict[str, Any] = {"bandwidth": bandwidth, "contenders": {}, "codecs": {}, "yardstick": yardstick}
    for name in dict.fromkeys(coders.values()):
        parts = {what: times.get((name, what, "", 0)) for what in (ENCODE, DECODE)}
        found["codecs"][name] = parts
    for name, coder in coders.items():
        own = [s for s in samples if s.contender == name and s.mode]  # a codec may have its name too
        beside = medians(samples, own[0].group) if own else {}
        found["contenders"][name] = {
            mode: _mode(name, mode, times, beside, read, rows[name, mode], found, coder, workload, model)
            for mode in dict.fromkeys(s.mode for s in own)
        }
    found["goals"] = goals(found, workload)
    return found


def _mode(
    name: str,
    mode: str,
    times: Times,
    beside: Times,
    read: Mapping[tuple[str, str, int], int],
    rows: int,
    found: Mapping[str, Any],
    coder: str,
    workload: Workload,
    model: Model,
) -> dict[str, Any]:
    """One contender in one mode. beside: the medians of its own group, where the yardstick was measured with it."""
    yardstick = found["yardstick"]
    steps = {at: t for (who, what, how, at), t in times.items() if (who, what, how) == (name, STEP, mode)}
    first, last = min(steps, default=0), max(steps, default=0)
    said: dict[str, Any] = {"rows": rows, "step": steps, "growth": steps[last] / steps[first] if steps else None}
    said["step_to_yardstick"] = {
        at: beside[name, STEP, mode, at] / beside[yardstick, STEP, mode, at]
        for at in steps
        if (yardstick, STEP, mode, at) in beside
    }
    said["read"] = {at: read[name, mode, at] for at in steps}
    rates = {at: beside[MACHINE, BANDWIDTH, mode, at] for at in steps}
    said["of_bandwidth"] = {at: read[name, mode, at] / t / rates[at] for at, t in steps.items()}
    key = (PREFILL, mode, workload.prefill(model))
    said["prefill"] = times.get((name, *key))
    said["prefill_to_yardstick"] = None
    if (name, *key) in beside and (yardstick, *key) in beside:
        said["prefill_to_yardstick"] = beside[name, *key] / beside[yardstick, *key]
    parts = [found["codecs"][coder][ENCODE], said["prefill"], found["codecs"][coder][DECODE]]
    known = [seconds for seconds in parts if seconds is not None]
    said["extrapolated"] = None
    if len(steps) > 1 and len(known) == len(parts):
        said["extrapolated"] = _whole(sum(known) + all_steps(steps, workload.steps(model)), workload)
    whole = times.get((name, WHOLE, mode, 0))
    said["whole"] = None if whole is None else _whole(whole, workload)
    return said


def _whole(seconds: float, workload: Workload) -> dict[str, float]:
    """A whole workload, and how many seconds of sound a second gives: of all of it, and of the new."""
    new = workload.duration - workload.prompt
    return {"seconds": seconds, "real_time": workload.duration / seconds, "real_time_new": new / seconds}


def goals(found: Mapping[str, Any], workload: Workload) -> list[dict[str, Any]]:
    """The ratios that this project is held to, those that this run can tell."""
    everyone, yardstick = found["contenders"], found["yardstick"]
    lines = []
    ours = {name: modes for name, modes in everyone.items() if name.startswith("clean_lm")}
    for other in ("optimum-style", "audiocraft"):
        theirs = everyone.get(other, {}).get(GUIDED, {}).get("step", {})
        for name, modes in ours.items():
            for at, seconds in modes.get(GUIDED, {}).get("step", {}).items():
                if at in theirs:
                    what = f"guided step at {at} columns: {other} / {name}"
                    lines.append({"what": what, "ratio": theirs[at] / seconds})
    for name, modes in ours.items():
        for mode in (GUIDED, NULL):
            said = modes.get(mode, {})
            if said.get("growth"):
                first, last = min(said["step"]), max(said["step"])
                lines.append({"what": f"{mode} step at {last} / at {first} columns: {name}", "ratio": said["growth"]})
            if said.get("prefill_to_yardstick") and name != yardstick:
                what = f"{mode} prefill: {name} / {yardstick}"
                lines.append({"what": what, "ratio": said["prefill_to_yardstick"]})
            whole = said.get("whole") or said.get("extrapolated")
            if whole:
                how = "measured" if said.get("whole") else "extrapolated"
                what = f"{mode}: {name}, real-time factor ({how}) over"
                new = workload.duration - workload.prompt
                lines.append({"what": f"{what} {workload.duration:g} s", "ratio": whole["real_time"]})
                lines.append({"what": f"{what} the {new:g} s that are new", "ratio": whole["real_time_new"]})
    return lines
