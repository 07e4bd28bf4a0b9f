"""Draws results: the time of a step against the length of the cache, and the speed of whole workloads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from bench.workload import GUIDED, NULL

# Okabe and Ito's colours, which colour-blind eyes can tell apart, without the yellow: it is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^Dv<>P*X"
LABEL_GAP = 0.045  # of the panel's height, between two labels


def plot(results: Mapping[str, Any], output: Path) -> None:
    """Write the picture."""
    everyone = results["summary"]["contenders"]
    looks = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(everyone)}
    figure, (guided, null, speed) = plt.subplots(
        1, 3, figsize=(17, 6.2), layout="constrained", width_ratios=(1.1, 1.1, 1)
    )
    for axes, mode in ((guided, GUIDED), (null, NULL)):
        steps(axes, mode, everyone, looks)
    top = max(guided.get_ylim()[1], null.get_ylim()[1])
    for axes, mode in ((guided, GUIDED), (null, NULL)):
        axes.set_ylim(0, top)
        label(axes, mode, everyone, looks, top)
    real_time(speed, results, looks)
    m, w = results["machine"], results["workload"]
    figure.suptitle(
        f"MusicGen {results['size']} size, random weights: {m['cpu']}, {m['cores']} cores, "
        f"onnxruntime {m['onnxruntime']}; medians of {w['rounds']} rounds",
        fontsize=12,
    )
    try:
        figure.savefig(output, dpi=110)
    finally:
        plt.close(figure)


def steps(axes: Axes, mode: str, everyone: Mapping[str, Any], looks: Mapping[str, tuple[str, str]]) -> None:
    """A line for each contender."""
    for name, modes in everyone.items():
        sampled = modes.get(mode, {}).get("step", {})
        colour, marker = looks[name]
        axes.plot(list(sampled), [1000 * t for t in sampled.values()], color=colour, marker=marker, linewidth=2)
    axes.set(title=f"one step, {mode}", xlabel="columns in the cache", ylabel="milliseconds")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def label(axes: Axes, mode: str, everyone: Mapping[str, Any], looks: Mapping[str, tuple[str, str]], top: float) -> None:
    """Names at the ends of the lines, spread where they would overlap."""
    sampled = {name: list(modes.get(mode, {}).get("step", {}).items()) for name, modes in everyone.items()}
    last = {name: steps[-1] for name, steps in sampled.items() if steps}
    ends = sorted((1000 * seconds, columns, name) for name, (columns, seconds) in last.items())
    places = spread([height for height, _, _ in ends], LABEL_GAP * top)
    for place, (height, columns, name) in zip(places, ends, strict=True):
        text = f"{name}  {height:.0f}" if height >= 10 else f"{name}  {height:.1f}"
        arrow = {"arrowstyle": "-", "color": looks[name][0], "linewidth": 0.7, "shrinkB": 4}
        axes.annotate(
            text, (columns, height), (columns * 1.05, place), color=looks[name][0], va="center", fontsize=9,
            arrowprops=arrow, annotation_clip=False,
        )  # fmt: skip
    if ends:
        axes.set_xlim(0, max(columns for _, columns, _ in ends) * 1.42)
        axes.set_xticks(sorted({at for modes in everyone.values() for at in modes.get(mode, {}).get("step", {})}))


def spread(heights: list[float], gap: float) -> list[float]:
    """Heights in rising order -> the same, raised until they are at least `gap` from each other."""
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + gap) if places else height)
    return places


def real_time(axes: Axes, results: Mapping[str, Any], looks: Mapping[str, tuple[str, str]]) -> None:
    """Bars: seconds of audio generated in a second, over the whole duration."""
    everyone, w = results["summary"]["contenders"], results["workload"]
    speeds = {name: {mode: modes.get(mode, {}) for mode in (GUIDED, NULL)} for name, modes in everyone.items()}
    names, rows = list(speeds), np.arange(len(speeds))
    for mode, offset, alpha in ((GUIDED, -0.2, 1.0), (NULL, 0.2, 0.45)):
        for row, name in zip(rows, names, strict=True):
            cell = speeds[name][mode]
            whole = cell.get("whole") or cell.get("extrapolated")
            if whole:
                value = whole["real_time"]
                axes.barh(row + offset, value, 0.38, color=looks[name][0], alpha=alpha)
                axes.text(value, row + offset, f"  {value:.2f}  {mode}", va="center", fontsize=9)
    axes.axvline(1, color="black", linewidth=1, linestyle=":")
    axes.set(
        title=f"{w['prompt']:g} s in, {w['duration']:g} s out, {'measured' if w['full'] else 'extrapolated'}",
        xlabel=f"x real time over {w['duration']:g} s, codec included",
        yticks=rows, yticklabels=names, ylim=(len(names) - 0.5, -0.5),
    )  # fmt: skip
    axes.set_xlim(0, max(1.0, axes.get_xlim()[1]) * 1.3)
    axes.spines[["top", "right"]].set_visible(False)
