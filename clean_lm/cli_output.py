"""What the command line prints and writes: progress, the takes, and a summary of them."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clean_lm import audio_files, console, take_codes
from clean_lm.console import plain
from clean_lm.joining import Outcome
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


def written(args: argparse.Namespace) -> list[Path]:
    """All files that will be written: the outputs, and beside them their codes."""
    audio = outputs(args)
    codes = [take_codes.beside(file) for file in audio] if getattr(args, "save_codes", False) else []
    return audio + codes


def replaced(files: list[Path]) -> dict[str, list[str]]:
    """For a summary: those of the files that are there already and will be replaced."""
    there = [str(file) for file in files if file.exists()]
    return {"replaced": there} if there else {}


def write_takes(
    args: argparse.Namespace, outcome: Outcome, summary: dict[str, Any], strategy: str | None, subtype: str | None
) -> None:
    """Write the takes and print what was done. strategy, subtype: audio_files.write's, unless --strategy is given."""
    rate, files, clipped = outcome.rate, outputs(args), 0
    summary |= replaced(written(args))
    for file, take in zip(files, outcome.takes, strict=True):
        clipped += audio_files.write(file, take.wav, rate, strategy=args.strategy or strategy, subtype=subtype)
        if args.save_codes:
            take_codes.write(file, take.codes)
    longest = max(take.wav.shape[1] for take in outcome.takes)
    summary |= {"channels": len(outcome.takes[0].wav), "duration": round(longest / rate, 3)}
    takes = [
        {"file": str(file), "duration": round(take.wav.shape[1] / rate, 3), **take.facts}
        for file, take in zip(files, outcome.takes, strict=True)
    ]
    silent = [take["file"] for take in takes if take.get("silent")]
    for file in silent:
        words = "the first beat is near-silent although the prompt is not; --retry-silent 3 draws again"
        summary.setdefault("warnings", []).append(f"{file}: {words}")
        console.say(f"warning: {plain(file)}: {words}")
    if args.json:
        done = {"event": "done", "files": [str(file) for file in files], "clipped": clipped, **summary, "takes": takes}
        print(json.dumps(done))
    else:
        print_takes(takes, summary, clipped)


def print_takes(takes: list[dict[str, Any]], summary: dict[str, Any], clipped: int) -> None:
    """The summary in words."""
    for take in takes:
        again = " (replaced)" if take["file"] in summary.get("replaced", ()) else ""
        facts = f"{take['duration']} s, {summary['sample_rate']} Hz, {summary['channels']} channels"
        print(f"{plain(take['file'])}: {facts}{again}{take_words(take, len(takes))}")
    seam = f", new from {summary['seam']:.2f} s on" if "seam" in summary else ""
    bars = f", {summary['bars']} bars at {summary['bpm']:g} beats a minute" if "bars" in summary else ""
    speed = f"{summary['seconds']:.1f} s, {summary['real_time_factor']:.2f} x real time"
    print(f"seed {takes[0]['seed'] if len(takes) == 1 else summary['seed']}{seam}{bars}; {speed}")
    if "level_db" in summary:
        print(f"level of the new part: {summary['level_db']:+.1f} dB, to meet the track's at the seam")
    if clipped:
        print(f"{clipped} samples were clipped; --strategy peak keeps them")


def take_words(take: dict[str, Any], takes: int) -> str:
    """What tells a take from the others, and where it stands among them."""
    words = [f"seed {take['seed']}", f"temperature {take['temperature']:g}"] if takes > 1 else []
    if "log_probability" in take:
        words.append(f"log-probability {take['log_probability']:.3f}")
    if "onset_agreement" in take:
        words.append(f"onset agreement {take['onset_agreement']:.2f}")
    return f"; {', '.join(words)}" if words else ""
