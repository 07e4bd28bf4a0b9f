"""Measure clean_lm beside other ways to run MusicGen, on this machine.

  python -m bench                              makes checkpoint, bundle and exports once, in build/bench/small
  python -m bench --rounds 5 --contenders clean_lm optimum-style transformers
  python -m bench --full --variants int8 int4  measures whole generations, too: beside OpenVINO's in 20 minutes
  python -m bench --size tiny                  a toy: takes seconds, to see that everything runs

The workload: a prompt of 6 s continued to 30 s, with and without a text, encode and decode included. Weights are
random. Writes results.json, results.md and results.png. Ctrl-C ends it and writes what was measured until then.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import machine, measure, ours
from bench.contenders import BUILT, NAMES, OPENVINO, OPTIMUM, OURS, Entry, Files, entries, missing
from bench.measure import BANDWIDTH, DECODE, ENCODE, MACHINE, PREFILL, STEP, WHOLE, Point, Sample
from bench.plot import plot
from bench.report import markdown
from bench.summary import summarise
from bench.workload import GUIDED, NULL, REFERENCE, Coder, Contender, Mode

PARTS = ("steps", "prefill", "codec", "takes", "processes")
DEFAULT = (OURS, OPENVINO)  # the others take several times as long
OPENVINO_WEIGHTS = ("fp32", "int8", "int4")
ARRAYS = {"tiny": 1 << 26, "small": 1 << 30}  # bytes that the bandwidth is measured on


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    work = args.work or ours.ROOT / "build" / "bench" / args.size
    work.mkdir(parents=True, exist_ok=True)
    try:
        files = prepare(args, work)
        bench = Bench(args, files)
        try:
            bench.run()
        except KeyboardInterrupt:
            say("interrupted: what was measured is written")
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was measured")
    write(bench.results(), work, args)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=ARRAYS, default="small", help="of the model (default: small)")
    parser.add_argument("--work", type=Path, help="folder of everything made (default: build/bench/SIZE)")
    parser.add_argument("--ckpt", type=Path, help="folder of a checkpoint to measure; default: a random one is made")
    parser.add_argument("--bundle", type=Path, help="a bundle of the same checkpoint; default: it is exported")
    parser.add_argument("--contenders", nargs="+", choices=NAMES, default=DEFAULT, help="default: clean_lm openvino")
    parser.add_argument(
        "--variants",
        nargs="+",
        help="of clean_lm (default: all that --bundle holds; of a bundle exported here: "
        + " ".join(ours.EXPORTED)
        + ")",
    )
    parser.add_argument(
        "--openvino", nargs="+", choices=OPENVINO_WEIGHTS, default=OPENVINO_WEIGHTS[1:],
        help="how OpenVINO's weights are stored (default: int8 int4)",
    )  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each cell is measured (default: 3)")
    parser.add_argument("--steps", type=int, default=5, help="consecutive steps of a sample (default: 5)")
    parser.add_argument("--takes", type=int, default=4, help="null-text takes generated together (default: 4)")
    parser.add_argument("--full", action="store_true", help="measure whole generations too, in every round")
    parser.add_argument("--json", type=Path, help="default: results.json in the work folder")
    parser.add_argument("--markdown", type=Path, help="default: results.md in the work folder")
    parser.add_argument("--plot", type=Path, help="default: results.png in the work folder")
    return parser


def say(line: str) -> None:
    """Tell on stderr what takes time now."""
    print(line, file=sys.stderr, flush=True)


def prepare(args: argparse.Namespace, work: Path) -> Files:
    """Make the checkpoint, the bundle and the exports of other contenders, unless they are there."""
    if min(args.rounds, args.steps, args.takes) < 1:
        raise ValueError("--rounds, --steps, --takes: expected 1 or more")
    files = Files(args.ckpt or work / "checkpoint", args.bundle or work / "bundle", work / "growing", work / "openvino")
    if not (files.checkpoint / "state_dict.bin").exists():
        say(f"{files.checkpoint}: writing a random checkpoint")
        script = ours.ROOT / "demo" / "checkpoint.py"
        how = [sys.executable, script, "--size", args.size, "--out", files.checkpoint]
        subprocess.run(how, check=True, stdout=subprocess.DEVNULL)
    if not files.bundle.exists():
        say(f"{files.bundle}: exporting a bundle")
        ours.export(files.checkpoint, files.bundle, args.variants or ours.EXPORTED)
    if OPTIMUM in args.contenders and not files.growing.exists():
        say(f"{files.growing}: exporting with a growing cache")
        export("growing", files.checkpoint, files.growing)
    absent = [weights for weights in args.openvino if not (files.openvino / weights).exists()]
    if OPENVINO in args.contenders and not missing(OPENVINO) and absent:
        say(f"{files.openvino}: exporting for OpenVINO")
        export("openvino_export", files.checkpoint, files.openvino, absent)
    return files


def export(module: str, checkpoint: Path, out: Path, *arguments: object) -> None:
    """Run the `export` of one of this folder's modules in a process of its own. Raises CalledProcessError."""
    paths = f"Path({str(checkpoint.resolve())!r}), Path({str(out.resolve())!r})"
    code = f"from pathlib import Path; from bench.{module} import export; export({paths}, *{arguments!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ours.ROOT, check=True)


class Bench:
    """One run of the benchmark, and what it has measured so far."""

    def __init__(self, args: argparse.Namespace, files: Files):
        self.args, self.files, self.model = args, files, ours.sizes(files.bundle)
        held = ours.variants(files.bundle)
        unknown = set(args.variants or held) - set(held)
        if unknown:
            raise ValueError(f"{files.bundle}: holds the variants {', '.join(held)}, not {', '.join(sorted(unknown))}")
        variants = {OURS: args.variants or held, OPENVINO: args.openvino}
        self.entries = entries(files, args.contenders, variants, REFERENCE)
        if not self.entries:
            raise ValueError(f"none of {', '.join(args.contenders)} is installed")
        names = [entry.name for entry in self.entries]
        self.yardstick = f"{OURS} fp32" if f"{OURS} fp32" in names else names[0]
        sizes = {entry.name: entry.bytes for entry in self.entries}
        self.groups = measure.groups(sizes, measure.budget(), self.yardstick)
        self.modes = {mode.name: mode for mode in (Mode(GUIDED, True, 1), Mode(NULL, False, 1))}
        self.takes = Mode(f"{args.takes} null-text takes", False, args.takes)
        self.reader = machine.Reader(ARRAYS[args.size])
        self.others: float | None = None
        self.samples: list[Sample] = []
        self.read: dict[tuple[str, str, int], int] = {}
        self.coders: dict[str, str] = {}
        self.rows: dict[tuple[str, str], int] = {}
        self.processes: dict[str, dict[str, Any]] = {}
        self.start = time.perf_counter()

    def run(self) -> None:
        others = machine.Others()
        try:
            for number, names in enumerate(self.groups):
                self.group(number, [entry for entry in self.entries if entry.name in names])
        finally:
            self.others = others.share()
        if "processes" in self.args.parts:
            self.fresh()

    def group(self, number: int, members: list[Entry]) -> None:
        """Open contenders that fit into memory together, measure them in turn, and drop them."""
        opened: dict[str, Contender] = {}
        for entry in members:
            self.say(f"opening {entry.name}")
            opened[entry.name] = entry.open()
            self.coders[entry.name] = opened[entry.name].coder.name
        gc.collect()
        gc.freeze()  # what is open: a collection before every sample would look through all of it
        coders = {contender.coder.name: contender.coder for contender in opened.values()}
        ours_alone = [name for name in opened if name.startswith(OURS)]
        for turn in range(self.args.rounds):
            if "codec" in self.args.parts and number == 0:
                self.codecs(turn, coders)
            self.round(number, turn, list(opened), self.points(), opened)
            if "takes" in self.args.parts and self.args.takes > 1:
                middle = Point(STEP, self.takes.name, REFERENCE.lengths[len(REFERENCE.lengths) // 2])
                self.round(number, turn, ours_alone, [middle], opened)

    def points(self) -> list[Point]:
        found = []
        for mode in self.modes:
            if "steps" in self.args.parts:
                found += [Point(STEP, mode, at) for at in REFERENCE.lengths]
            if "prefill" in self.args.parts:
                found.append(Point(PREFILL, mode, REFERENCE.prefill(self.model)))
            if self.args.full:
                found.append(Point(WHOLE, mode))
        return found

    def round(
        self, number: int, turn: int, names: list[str], points: list[Point], opened: dict[str, Contender]
    ) -> None:
        """Every contender once for every point; beside their steps the memory's bandwidth, which may change."""
        for point, name in measure.in_turn([*names, MACHINE], points, turn):
            if name == MACHINE:
                if point.what == STEP:
                    rates = self.reader(self.args.steps)
                    self.samples.append(Sample(number, turn, name, BANDWIDTH, point.mode, point.columns, rates))
                continue
            contender, mode = opened[name], self.modes.get(point.mode, self.takes)
            self.say(f"round {turn + 1}: {point.mode} {point.what} {point.columns or ''} {name}")
            values = measure.measure(contender, mode, point, self.args.steps, REFERENCE, self.model)
            self.samples.append(Sample(number, turn, name, point.what, point.mode, point.columns, values))
            self.rows[name, point.mode] = contender.rows(mode)
            if point.what == STEP and (name, point.mode, point.columns) not in self.read:
                self.read[name, point.mode, point.columns] = contender.step_bytes(mode, point.columns)

    def codecs(self, turn: int, coders: dict[str, Coder]) -> None:
        for point, name in measure.in_turn(list(coders), [Point(ENCODE), Point(DECODE)], turn):
            self.say(f"round {turn + 1}: {point.what} {name}")
            values = measure.measure_coder(coders[name], point, REFERENCE, self.model)
            self.samples.append(Sample(0, turn, name, point.what, "", 0, values))

    def fresh(self) -> None:
        """Load time, memory and the time to the first audio of each contender, in processes of their own."""
        folders = (self.files.bundle, self.files.growing, self.files.openvino)
        measure.warm([path for folder in folders for path in folder.rglob("*") if path.is_file()])
        for entry in self.entries:
            where = {name: str(path.resolve()) for name, path in asdict(self.files).items()}
            options = [text for name, path in where.items() for text in (f"--{name}", path)]
            found: dict[str, Any] = {}
            jobs = {"memory": "whole" if self.args.full else "memory"}
            jobs |= {"stream": "stream"} if entry.name.startswith(OURS) else {}
            for key, job in jobs.items():
                self.say(f"a fresh process: {job} {entry.name}")
                found[key] = measure.child(job, "--contender", entry.name, *options)
            loads = [part["load"] for part in found.values()]
            found["load"] = None if entry.name in BUILT else measure.median(loads)
            self.processes[entry.name] = found

    def say(self, line: str) -> None:
        say(f"{time.perf_counter() - self.start:6.0f} s  {line}")

    def results(self) -> dict[str, Any]:
        """All that was measured, for the JSON file and the reports."""
        summary = summarise(self.samples, self.read, self.coders, self.rows, self.yardstick, REFERENCE, self.model)
        return {
            "size": self.args.size,
            "machine": machine.describe(),
            "others": self.others,
            "workload": self.workload(),
            "bandwidth_array_bytes": ARRAYS[self.args.size],
            "groups": self.groups,
            "not_installed": [name for name in self.args.contenders if missing(name)],
            "summary": summary,
            "processes": self.processes,
            "samples": [sample.tree() for sample in self.samples],
            "seconds": time.perf_counter() - self.start,
        }

    def workload(self) -> dict[str, Any]:
        return {
            **asdict(REFERENCE),
            "prefill": REFERENCE.prefill(self.model),
            "workload_steps": len(REFERENCE.steps(self.model)),
            "rounds": self.args.rounds,
            "steps": self.args.steps,
            "warm_steps": measure.WARM_STEPS,
            "takes": self.args.takes,
            "takes_mode": self.takes.name,
            "takes_columns": REFERENCE.lengths[len(REFERENCE.lengths) // 2],
            "full": self.args.full,
            "parts": list(self.args.parts),
        }


def write(results: dict[str, Any], work: Path, args: argparse.Namespace) -> None:
    """Write the three files, and print the tables."""
    paths = {kind: getattr(args, kind) or work / f"results.{end}" for kind, end in ENDS.items()}
    paths["json"].write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    paths["markdown"].write_text(markdown(results), encoding="utf-8")
    plot(results, paths["plot"])
    print(markdown(results))
    for path in paths.values():
        print(f"wrote {path}")


ENDS = {"json": "json", "markdown": "md", "plot": "png"}

if __name__ == "__main__":
    main()
