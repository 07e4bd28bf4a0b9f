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
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from clean_lm.audio import AudioError
from clean_lm.console import Parser
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError, Manifest
from clean_lm.manifest_fields import LanguageModelInfo
from clean_lm.models.config import ConfigError, LMConfig, MelodyConfig
from export import lm
from export.bundle_writer import FP32, draft
from export.commands import errors_as_one_line
from export.lm_graphs import CACHE_UPDATE
from export.lm_parity import golden, parity
from export.parity import PYTORCH, Comparison, calls_verdict, line, table
from export.quality import Exact, Reference, drawn_codes, measure, measured_codes
from export.variants import validate_clips
from weights.checkpoint import CheckpointError
from weights.lm import load
from weights.mapping import MappingError, Model

EXACT = (FP32, "fp16")  # variants whose weights are not rounded to codes
UPSTREAM = "upstream's arrays"


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of a bundle")
    parser.add_argument("--ckpt", type=Path, required=True, help="the checkpoint that the bundle was exported from")
    parser.add_argument("--base", type=Path, help="the model that the checkpoint is a fine-tune of, if it is not whole")
    parser.add_argument("--golden", type=Path, help="folder of upstream's arrays for this checkpoint")
    parser.add_argument("--quality", action="store_true", help="measure what every variant costs beside fp32")
    parser.add_argument("--clip", nargs="+", type=Path, default=[], help="audio files to measure on")
    args = parser.parse_args()
    errors = AudioError, BundleError, CheckpointError, ConfigError, MappingError, ValueError
    with errors_as_one_line(*errors, interrupted="nothing was verified"):
        agrees = verify(args.bundle, args.ckpt, args.golden, args.quality or bool(args.clip), args.clip, args.base)
        sys.exit(0 if agrees else 1)


def verify(
    bundle: Path,
    ckpt: Path,
    folder: Path | None,
    quality: bool = False,
    clips: Sequence[Path] = (),
    base: Path | None = None,
) -> bool:
    """Print the tables; whether everything agrees, and the default is within the bounds.

    folder: upstream's arrays. quality: measure variants too, on clips. base: the model that the checkpoint is a
    fine-tune of. How long a window is was chosen at export: the bundle's is taken. Raises BundleError, CheckpointError.
    """
    validate_clips(clips)
    if folder and not all((folder / name).is_file() for name in ("golden.npz", "meta.json")):
        raise BundleError(f"--golden: {folder}: has no golden.npz and meta.json; give upstream's arrays")
    model = load(ckpt, base, Manifest.read(bundle, hashes=False).language_model.max_duration)
    same_model(bundle, model)
    held = list(Manifest.read(bundle).variants)
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


def same_model(bundle: Path, model: Model[LMConfig]) -> None:
    """Raise BundleError where the bundle's sizes are not the checkpoint's."""
    pairs = sizes(Manifest.read(bundle).language_model, model.config)
    differ = [
        f"{name} {ours} (the checkpoint has {theirs})" for name, (ours, theirs) in pairs.items() if ours != theirs
    ]
    if differ:
        raise BundleError(f"{bundle}: exported from another model than {model.checkpoint.path}: {', '.join(differ)}")


def sizes(info: LanguageModelInfo, config: LMConfig) -> dict[str, tuple[Any, Any]]:
    """What a manifest and a configuration say of the language model, by the fields that both have."""
    same = [field.name for field in fields(info) if hasattr(config, field.name) and field.name != "self_wav"]
    kind = config.self_wav and ("melody" if isinstance(config.self_wav, MelodyConfig) else "style")
    return {name: (getattr(info, name), getattr(config, name)) for name in same} | {"self_wav": (info.self_wav, kind)}


def cost(bundle: Path, model: Model[LMConfig], clips: Sequence[Path]) -> bool:
    """Print what every variant costs beside fp32, which is the checkpoint's where the bundle has none; whether the
    default is within the bounds."""
    manifest = Manifest.read(bundle, hashes=False)
    names = [name for name in manifest.variants if name != FP32]
    with tempfile.TemporaryDirectory() as temporary:
        exact = Exact.of(fp32_manifest(manifest, model, Path(temporary)))
        drawn = drawn_codes(exact.sampler(Path(temporary)), bundle, clips)
        reference = Reference(exact, measured_codes(drawn, bundle, clips))
        found = {name: measure(LanguageModel.load(bundle, variant=name, hashes=False), reference) for name in names}
    print("\n" + "\n".join(f"{name:8} {quality.line()}" for name, quality in found.items()))
    default = manifest.default_variant
    return default in (FP32, None) or found[default].within_bounds


def fp32_manifest(manifest: Manifest, model: Model[LMConfig], temporary: Path) -> Manifest:
    """A bundle with fp32: itself, or where it has none, one that is exported into a temporary folder."""
    if FP32 in manifest.variants:
        return manifest
    folder, c = temporary / FP32, model.config
    folder.mkdir()
    attention = next(name for name, update in CACHE_UPDATE.items() if update == manifest.cache_update)
    names = lm.write_all(model, folder, attention)
    return draft(folder, lm.describe(c), lm.defaults(c), CACHE_UPDATE[attention], names)


if __name__ == "__main__":
    main()
