"""Compare a bundle with the PyTorch modules that it was exported from, and with upstream's own arrays.

  python export/verify.py --bundle bundle --ckpt state_dict.bin
  python export/verify.py --bundle bundle --ckpt state_dict.bin --golden tests/golden/text
  python export/verify.py --bundle bundle --ckpt state_dict.bin --quality --clip loop.wav

Prints a row for every call of the model on the same codes: the prefill and each step, with guidance and with null text.
Differences are of logits, from the PyTorch modules in float64. "of largest" is the largest difference as a share of
the largest logit, "PyTorch" the same for the PyTorch modules in the bundle's own precision. A call agrees within 5e-5,
or within four times PyTorch's own worst where a sharp model rounds more. Variants with rounded weights cannot agree:
--quality says what they cost beside fp32, on the clips' own codes, or without clips on codes that fp32 draws. Exits
with 1 where a call does not agree, a generation of --golden has other tokens than upstream's, or the default variant is
worse than the bounds.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from clean_lm.audio import AudioError
from clean_lm.manifest import BundleError, Manifest
from clean_lm.models.config import ConfigError, LMConfig
from clean_lm.runtime import LanguageModel
from export.bundle_writer import FP32, describe
from export.commands import errors_as_one_line
from export.lm_graphs import CACHE_UPDATE, LM_GRAPHS, write_graphs
from export.lm_parity import golden, parity
from export.parity import PYTORCH, Comparison, calls_verdict, line, table
from export.quality import Reference, calibrate, measure
from weights.checkpoint import CheckpointError
from weights.lm import load
from weights.mapping import MappingError, Model

EXACT = (FP32, "fp16")  # variants whose weights are not rounded to codes
UPSTREAM = "upstream's arrays"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of a bundle")
    parser.add_argument("--ckpt", type=Path, required=True, help="the checkpoint that the bundle was exported from")
    parser.add_argument("--golden", type=Path, help="folder of upstream's arrays for this checkpoint")
    parser.add_argument("--quality", action="store_true", help="measure what every variant costs beside fp32")
    parser.add_argument("--clip", nargs="+", type=Path, default=[], help="audio files to measure on")
    args = parser.parse_args()
    errors = AudioError, BundleError, CheckpointError, ConfigError, MappingError, FileNotFoundError
    with errors_as_one_line(*errors, interrupted="nothing was verified"):
        agrees = verify(args.bundle, args.ckpt, args.golden, args.quality or bool(args.clip), args.clip)
        sys.exit(0 if agrees else 1)


def verify(bundle: Path, ckpt: Path, folder: Path | None, quality: bool = False, clips: Sequence[Path] = ()) -> bool:
    """Print the tables; whether everything agrees, and the default is within the bounds.

    folder: upstream's arrays. quality: measure variants too, on clips. Raises BundleError, CheckpointError, ...
    """
    model = load(ckpt)
    same_model(bundle, model)
    held = list(Manifest.read(bundle).need("variants"))
    exact = [name for name in held if name in EXACT]
    if not exact and not quality:
        raise BundleError(f"{bundle}: {', '.join(held)} only, whose weights are rounded: measure it with --quality")
    checks = [(name, PYTORCH, parity(bundle, model, variant=name)) for name in exact]
    wrong = None
    if folder and FP32 in exact:
        calls, wrong = golden(bundle, folder, FP32)
        checks.append((FP32, UPSTREAM, calls))
    agrees = report(checks, wrong)
    return cost(bundle, model, clips) and agrees if quality else agrees


def report(checks: Sequence[tuple[str, str, list[Comparison]]], wrong: Sequence[str] | None) -> bool:
    """Print the tables, then a line on each; whether all agree.

    checks: variant, reference, calls. wrong: a line on every generation of other tokens than upstream's; None where
    none was made.
    """
    for _, _, calls in checks:
        print("\n".join(table(calls)), end="\n\n")
    verdicts = [(variant, calls_verdict(calls, reference)) for variant, reference, calls in checks]
    for variant, verdict in verdicts:
        print(f"{'' if variant == FP32 else variant + ' '}{line(verdict)}")
    if wrong is not None:
        print("\n".join(wrong) or "every greedy generation has upstream's tokens")
    return not wrong and all(verdict.agrees for _, verdict in verdicts)


def same_model(bundle: Path, model: Model) -> None:
    """Raise BundleError where the bundle's sizes are not the checkpoint's."""
    found = Manifest.read(bundle).need("model")
    differ = {name: pair for name, pair in sizes(found, model.config).items() if pair[0] != pair[1]}
    if differ:
        listed = ", ".join(f"{name} {ours} (the checkpoint has {theirs})" for name, (ours, theirs) in differ.items())
        raise BundleError(f"{bundle}: exported from another model than {model.checkpoint.path}: {listed}")


def sizes(found: Mapping[str, Any], config: LMConfig) -> dict[str, tuple[Any, Any]]:
    """What a manifest's `model` and a configuration have of every field that both have."""
    same = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return {name: (value, getattr(config, name)) for name, value in same.items() if hasattr(config, name)}


def cost(bundle: Path, model: Model[LMConfig], clips: Sequence[Path]) -> bool:
    """Print what every variant costs beside fp32, which is the checkpoint's where the bundle has none; whether the
    default is within the bounds."""
    manifest = Manifest.read(bundle, hashes=False)
    names = [name for name in manifest.tree["variants"] if name != FP32]
    with exact_model(manifest, model) as lm:
        codes, _ = calibrate(lm, bundle, clips)
        reference = Reference(lm, codes)
    found = {name: measure(LanguageModel.load(bundle, variant=name, hashes=False), reference) for name in names}
    print("\n" + "\n".join(f"{name:8} {quality.line()}" for name, quality in found.items()))
    default = manifest.tree["variant"]
    return default == FP32 or found[default].within_bounds


@contextlib.contextmanager
def exact_model(manifest: Manifest, model: Model[LMConfig]) -> Iterator[LanguageModel]:
    """The fp32 variant of a bundle; where it has none, one that is exported into a temporary folder."""
    if FP32 in manifest.tree["variants"]:
        yield LanguageModel.load(manifest.folder, variant=FP32, hashes=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        attention = next(name for name, update in CACHE_UPDATE.items() if update == manifest.tree["cache_update"])
        write_graphs(model, Path(folder), attention, torch.float32)
        graphs = {name: describe(Path(folder) / f"{name}.onnx") for name in LM_GRAPHS}
        yield LanguageModel.open(Manifest(Path(folder), {**manifest.tree, "graphs": graphs, "files": {}}, {}))


if __name__ == "__main__":
    main()
