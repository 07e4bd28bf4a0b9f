"""Rows an hour: a plain loop beside `clean-lm batch`, rows drawn together beside one by one, and what Ray costs.

  python -m bench.batch --bundle build/bundle --input demo/loop.wav --text "drum and bass"

Contenders run one after the other in every round, each in a process of its own: the loop draws every row as `clean-lm
continue` would, with the model loaded once and one thread per core. Rates are of the time from the begin of the first
row to the end of the last: neither loading nor what starts Ray counts. Every contender's audio is compared with the
loop's. Then a job of rows that fail at once, in groups of one: its time a row is Ray's and ours.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from clean_lm import MusicGen, audio_files
from clean_lm.joining import finish, written_as
from clean_lm.request import Request, validate
from clean_lm.source import read_source
from clean_lm.takes import draw_takes

# Actors, threads of each, takes together; no actors: the loop
CONTENDERS = {
    "loop": (0, 0, 1),
    "1 actor, all threads": (1, 0, 1),
    "1 actor, all threads, together": (1, 0, 8),
    "an actor a core": (0, 1, 1),
    "an actor a core, together": (0, 1, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--variant")
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--text", help="of every row, for guidance")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--duration", type=float, default=10.0)
    parser.add_argument("--prompt-seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--empty", type=int, default=2000, help="rows that fail at once, for Ray's share; 0: none")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)  # the loop itself, in a process of its own
    args = parser.parse_args()
    if args.loop:
        print(json.dumps(loop(args)))
        return
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for name in CONTENDERS:
                output = Path(folder) / f"{number} {name}"
                seconds[name].append(measured(args, name, output))
                off = difference(Path(folder) / f"{number} loop", output)
                print(f"round {number + 1}, {name}: {off:.0f} steps of 16 bits from the loop's audio", flush=True)
        for line in table(args.rows, seconds):
            print(line)
        if args.empty:
            found = overhead(args, Path(folder) / "empty")
            print(f"a group that draws nothing: {found * 1e3:.1f} ms, {args.empty} of them, one actor")


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The job: one track, other seeds."""
    same = {"input": str(args.input.absolute()), "text": args.text}
    return [{"id": f"r{n:04}", "seed": n, **same} for n in range(args.rows)]


def measured(args: argparse.Namespace, name: str, output: Path) -> float:
    """Seconds that a contender draws."""
    actors, threads, together = CONTENDERS[name]
    same = ["--bundle", args.bundle, "--duration", args.duration, "--prompt-seconds", args.prompt_seconds]
    same += ["--variant", args.variant] if args.variant else []
    if name == "loop":
        given = ["--input", args.input, "--rows", args.rows, "--loop", output]
        text = ["--text", args.text] if args.text else []
        return float(last(["-m", "bench.batch", *same, *given, *text])["seconds"])
    cores = os.cpu_count() or 1
    given = ["--actors", actors or cores, "--threads", threads or cores, "--together", together, "--json"]
    listed = output.with_suffix(".jsonl")
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows(args)))
    last(["-m", "clean_lm", "batch", listed, "-o", output, *same, *given])
    times = pq.read_table(output / "results.parquet", columns=["begun", "ended"]).to_pydict()
    return (max(times["ended"]) - min(times["begun"])).total_seconds()


def last(arguments: list[Any]) -> dict[str, Any]:
    """Run Python; the last line of JSON that it prints."""
    done = subprocess.run([sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def loop(args: argparse.Namespace) -> dict[str, float]:
    """Every row, one after the other."""
    model = MusicGen.load(args.bundle, variant=args.variant)
    args.loop.mkdir()
    start = time.perf_counter()
    for row in rows(args):
        given = {"duration": args.duration, "prompt_seconds": args.prompt_seconds}
        request = Request(input=Path(row["input"]), text=row["text"], seed=row["seed"], **given)
        request = validate(request, model.lm.manifest)
        source = read_source(request, model.lm.manifest)
        outcome = finish(model, request, source, draw_takes(model, request, source, lambda *_: None))
        path = args.loop / f"{row['id']}.wav"
        strategy, subtype = written_as(request.join, request.input, path)
        audio_files.write(path, outcome.takes[0].wav, outcome.rate, strategy=strategy, subtype=subtype)
    return {"seconds": time.perf_counter() - start}


def difference(these: Path, those: Path) -> float:
    """The largest one between two folders' sounds, in steps of 16 bits: with another number of threads, the codec adds
    up in another order."""
    found = 0.0
    for path in these.glob("*.wav"):
        one, other = (audio_files.read(folder / path.name)[0] for folder in (these, those))
        found = max(found, float(np.abs(one - other).max()) * 2**15)
    return found


def table(count: int, seconds: dict[str, list[float]]) -> list[str]:
    """Medians, and ratios to the loop's of the same round."""
    lines = ["| | rows an hour | x the loop's |", "|---|---:|---:|"]
    for name, found in seconds.items():
        ratios = [base / each for base, each in zip(seconds["loop"], found, strict=True)]
        rate = 3600 * count / statistics.median(found)
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        lines.append(f"| {name} | {rate:.0f} | {statistics.median(ratios):.2f}{spread} |")
    return lines


def overhead(args: argparse.Namespace, output: Path) -> float:
    """Seconds of a group whose row fails at once."""
    listed = output.with_suffix(".jsonl")
    listed.write_text("".join(json.dumps({"id": f"{n}", "input": "nowhere.wav"}) + "\n" for n in range(args.empty)))
    given = ["--bundle", args.bundle, "--actors", 1, "--together", 1, "--json"]
    one = listed.with_name("one.jsonl")
    one.write_text(listed.read_text().splitlines()[0])
    start = float(last(["-m", "clean_lm", "batch", one, "-o", output.with_name("one"), *given])["seconds"])
    return (float(last(["-m", "clean_lm", "batch", listed, "-o", output, *given])["seconds"]) - start) / args.empty


if __name__ == "__main__":
    main()
