"""Check and measure a bundle on a GPU, and write what was found as JSON.

  python -m bench.device --bundle bundle --device cuda --out build/device.json
  python -m bench.device --bundle bundle --device webgpu --variants fp16 q4f16 --rows 1 2

For every variant: whether it computes what the CPU computes (logits of the same columns, and greedy codes), what runs
on the CPU all the same, the seconds of steps by rows and cached columns, of a prefill, and of whole continuations. A
variant that does not run there is entered with the reason, and the others go on. Caches are full of zeros.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bench import machine
from bench.measure import timed
from clean_lm.device import AUTO, DEVICES, DeviceError, DeviceWarning, on_cpu
from clean_lm.generation import Decoder, Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import Manifest

GREEDY, DRAWN = Sampling(use_sampling=False), Sampling()
WARM = 3  # calls that are not counted: kernels are compiled in the first
CHECKED = 48  # columns whose logits are compared, the first 40 of them read at once


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    held = Manifest.read(args.bundle).variants
    found: dict[str, Any] = {
        "machine": machine.describe(),
        "onnxruntime": ort.__version__,
        "device": args.device,
        "bundle": args.bundle.name,
        "variants": {name: measure(args, name) for name in args.variants or held or [None]},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{args.out}: {', '.join(line(name, entry) for name, entry in found['variants'].items())}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench.device", description=__doc__, formatter_class=how)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--device", choices=(AUTO, *DEVICES), default=AUTO)
    parser.add_argument("--variants", nargs="+", help="default: all that the bundle holds")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 8, 32], help="of a step (default: 1 2 8 32)")
    parser.add_argument("--columns", nargs="+", type=int, default=[100, 750, 1490], help="in the cache before a step "
                        "(default: 100 750 1490)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=20, help="of which the median is taken (default: 20)")
    parser.add_argument("--prompt", type=int, default=301, help="columns of a prefill (default: 301)")
    parser.add_argument("--frames", type=int, default=1500, help="of a whole continuation (default: 1500)")
    parser.add_argument("--out", type=Path, default=Path("build/device.json"))
    return parser


def line(name: str | None, entry: dict[str, Any]) -> str:
    """One variant in words."""
    if "refused" in entry:
        return f"{name} refused"
    return f"{name} on {entry['device']} ({entry['greedy_equal']:.0%} of greedy codes as on the CPU)"


def measure(args: argparse.Namespace, variant: str | None) -> dict[str, Any]:
    """Everything about one variant; or why the device refuses it."""
    print(f"{variant}: measuring", file=sys.stderr, flush=True)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", DeviceWarning)
            lm = LanguageModel.load(args.bundle, variant=variant, device=args.device)
    except DeviceError as error:
        return {"refused": str(error)}
    device = lm.lm.device
    return {
        "device": device.name if device else None,
        "variant": lm.manifest.variant,
        "passed_over": list(lm.manifest.passed),
        "warnings": [str(warning.message) for warning in said],
        "nodes_on_cpu": nodes(lm),
        **agreement(lm, LanguageModel.load(args.bundle, variant=variant)),
        "step": {rows: {at: step(lm, rows, at, args.steps) for at in args.columns} for rows in args.rows},
        "prefill": {rows: prefill(lm, rows, args.prompt) for rows in args.rows},
        "whole": {rows: whole(lm, rows, args.prompt, args.frames) for rows in args.rows},
    }


def nodes(lm: LanguageModel) -> dict[str, Any] | None:
    """Which of lm_inference's nodes run on the CPU, and of how many; None where all are meant to."""
    if lm.lm.device is DEVICES["cpu"]:
        return None
    operators, total = on_cpu(lm.lm.session)
    return {"operators": dict(operators), "of": total}


def codes_of(lm: LanguageModel, rows: int, columns: int) -> np.ndarray:
    """Random codes int64 [rows, K, columns]."""
    return np.random.default_rng(0).integers(0, lm.card, (rows, lm.codebooks, columns))


def decoder_of(lm: LanguageModel, rows: int, capacity: int, sampling: Sampling) -> Decoder:
    decoder = lm.decoder(rows, capacity, None, sampling)
    assert isinstance(decoder, Decoder)
    return decoder


def logits_of(lm: LanguageModel, columns: np.ndarray) -> np.ndarray:
    """The logits after the first columns, which are read at once, and after each of the others [calls, K, card]."""
    decoder, uniform = decoder_of(lm, 1, columns.shape[2], GREEDY), np.zeros((1, lm.codebooks))
    decoder.prefill(columns[:, :, : CHECKED - 8], uniform)
    found = [decoder.logits[0].copy()]
    for s in range(CHECKED - 8, CHECKED):
        decoder.step(columns[:, :, s : s + 1], uniform)
        found.append(decoder.logits[0].copy())
    return np.array(found)


def agreement(lm: LanguageModel, cpu: LanguageModel) -> dict[str, float]:
    """How a device's logits and greedy codes differ from the CPU's."""
    columns = codes_of(lm, 1, CHECKED)
    ours, theirs = logits_of(lm, columns), logits_of(cpu, columns)
    drawn = [one.generate_codes(columns[:, :, :20], frames=60, sampling=GREEDY)[:, :, 20:] for one in (lm, cpu)]
    return {
        "largest_difference": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
        "top1_equal": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "greedy_equal": float((drawn[0] == drawn[1]).mean()),
    }


def step(lm: LanguageModel, rows: int, at: int, count: int) -> float:
    """The median seconds of a step of `rows` rows with `at` columns in the cache."""
    decoder, uniform = decoder_of(lm, rows, at + WARM + count, DRAWN), np.full((rows, lm.codebooks), 0.5)
    decoder.filled = at
    column = codes_of(lm, rows, 1)
    seconds = [timed(lambda: decoder.step(column, uniform)) for _ in range(WARM + count)]
    return statistics.median(seconds[WARM:])


def prefill(lm: LanguageModel, rows: int, columns: int) -> float:
    """The least of three prefills, in seconds."""
    decoder, uniform = decoder_of(lm, rows, columns, DRAWN), np.full((rows, lm.codebooks), 0.5)
    codes, seconds = codes_of(lm, rows, columns), []
    for _ in range(3):
        decoder.restart(decoder.conditioning)
        seconds.append(timed(lambda: decoder.prefill(codes, uniform)))
    return min(seconds)


def whole(lm: LanguageModel, rows: int, prompt: int, frames: int) -> dict[str, float]:
    """A continuation of `rows` prompts to so many frames: seconds, and how many times real time for all together."""
    codes = codes_of(lm, rows, min(prompt, frames - 1))
    seconds = timed(lambda: lm.generate_codes(codes, frames=frames, seed=0))
    rate = lm.frame_rate or 50.0
    return {"seconds": seconds, "real_time_factor": rows * (frames - codes.shape[2]) / rate / seconds}


if __name__ == "__main__":
    main()
