"""What the command line prints and writes: progress, the takes, and a summary of them."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clean_lm import audio_files
from clean_lm.console import plain
from clean_lm.musicgen import MusicGen


class Bar:
    """Progress on a terminal, or as lines of JSON."""

    def __init__(self, args: argparse.Namespace, model: MusicGen):
        self.json, self.takes, self.frame_rate = args.json, args.takes, model.frame_rate
        layout = "{l_bar}{bar}| {elapsed} < {remaining}{postfix}"
        self.bar = tqdm(desc="generating", bar_format=layout, disable=True if self.json else None)
        self.start, self.percent = time.perf_counter(), -1

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` columns: a frame of every take each."""
        factor = done * self.takes / self.frame_rate / (time.perf_counter() - self.start)
        if self.json and done * 100 // total > self.percent:
            self.percent = done * 100 // total
            event = {"event": "progress", "done": done, "total": total, "real_time_factor": round(factor, 3)}
            print(json.dumps(event), flush=True)
        self.bar.total = total
        self.bar.set_postfix_str(f"{factor:.2f} x real time", refresh=False)
        self.bar.update(done - self.bar.n)


def outputs(args: argparse.Namespace) -> list[Path]:
    """The files that will be written: the output, or one numbered name per take."""
    takes = getattr(args, "takes", 1)
    stem, suffix = args.output.stem, args.output.suffix
    names = [stem] if takes == 1 else [f"{stem}-{number}" for number in range(1, takes + 1)]
    return [args.output.with_name(name + suffix) for name in names]


def replaced(files: list[Path]) -> dict[str, list[str]]:
    """For a summary: those of the files that are there already and will be replaced."""
    there = [str(file) for file in files if file.exists()]
    return {"replaced": there} if there else {}


def write_takes(
    args: argparse.Namespace,
    takes: list[np.ndarray],
    summary: dict[str, Any],
    strategy: str | None,
    subtype: str | None,
) -> None:
    """Write the takes and print what was done. strategy, subtype: audio_files.write's, unless --strategy is given."""
    rate, files, clipped = summary["sample_rate"], outputs(args), 0
    summary |= replaced(files)
    for file, take in zip(files, takes, strict=True):
        clipped += audio_files.write(file, take, rate, strategy=args.strategy or strategy, subtype=subtype)
    summary |= {"channels": len(takes[0]), "duration": round(takes[0].shape[1] / rate, 3)}
    if args.json:
        print(json.dumps({"event": "done", "files": [str(file) for file in files], "clipped": clipped, **summary}))
    else:
        print_takes(files, summary, clipped)


def print_takes(files: list[Path], summary: dict[str, Any], clipped: int) -> None:
    """The summary in words."""
    for file in files:
        again = " (replaced)" if str(file) in summary.get("replaced", ()) else ""
        facts = f"{summary['duration']} s, {summary['sample_rate']} Hz, {summary['channels']} channels"
        print(f"{plain(file)}: {facts}{again}")
    seam = f", new from {summary['seam']:.2f} s on" if "seam" in summary else ""
    print(f"seed {summary['seed']}{seam}; {summary['seconds']:.1f} s, {summary['real_time_factor']:.2f} x real time")
    if "level_db" in summary:
        print(f"level of the new part: {summary['level_db']:+.1f} dB, to meet the track's at the seam")
    if clipped:
        print(f"{clipped} samples were clipped; --strategy peak keeps them")
