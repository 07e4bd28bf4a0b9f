"""Add variants to a bundle: the same language model and text encoder with smaller weights and caches.

  python export/quantize.py --bundle bundle --variant int4
  python export/quantize.py --bundle bundle --variant int4 int8 --clip loop.wav track.mp3

  int8, int4         weights in blocks of 128; int8-32, int4-32 in blocks of 32 (com.microsoft MatMulNBits)
  mixed              int4, but int8 for the matrices whose rounding costs most: the fastest that is within the bounds
  dynamic            int8 weights and activations with ai.onnx operators only, for runtimes without MatMulNBits
  fp16, q4f16        float16, and int4-32 in it, for GPU and WebGPU

Embeddings, the text projection and the text encoder are int8 in all of them but fp16. In int8, int4 and mixed the
cache's keys and values are int8 too, or as --cache says. 4-bit weights are rounded by GPTQ on what the model itself
draws, or with --calibration clips on the clips' codes; they have zero points, in WebGPU's q4f16 and with --symmetric
none.

What a variant costs is measured beside fp32, which the bundle must hold: on the first 5 s of each clip, or without
clips on codes that fp32 draws. The first variant within the bounds becomes the default: KL divergence at most 0.05
nats a code, perplexity at most 1.03 times that of fp32, both at the upper end of their 95 % intervals.
"""

import argparse
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clean_lm import atomic
from clean_lm.audio import AudioError
from clean_lm.console import Parser
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError, Manifest
from clean_lm.text_encoder import TextEncoder
from export import needs
from export.bundle_weights import BundleWeights
from export.bundle_writer import with_variants, write
from export.calibration import Calibration
from export.commands import ExportError, errors_as_one_line, progress
from export.lm_graphs import LM_GRAPHS
from export.opened import MANIFEST, opened
from export.quality import DESCRIPTIONS, KL_BOUND, PERPLEXITY_BOUND, Quality, measure
from export.variant_graphs import fp32_attention, write_variant
from export.variants import (
    DEFAULT_STORING,
    FP32,
    VARIANTS,
    Storing,
    Variant,
    add_clip_option,
    add_options,
    storing_of,
    validate_attention,
    validate_clips,
)


def add(
    bundle: Path, names: Sequence[str], clips: Sequence[Path] = (), storing: Storing = DEFAULT_STORING
) -> list[str]:
    """Write variants into a bundle that holds fp32, and enter them in its manifest. Returns a line on each.

    The default becomes the first of `names` that is within the bounds, or stays what it was. The manifest is written
    last: what is interrupted leaves the bundle as it was. Arguments and errors as in `make_variants`.
    """
    with one_at_a_time(opened(bundle).folder):
        return _add(opened(bundle), names, clips, storing)


def _add(manifest: Manifest, names: Sequence[str], clips: Sequence[Path], storing: Storing) -> list[str]:
    if FP32 not in manifest.variants:
        held = ", ".join(manifest.variants) or "no language model"
        raise ExportError(
            f"{manifest.folder}: holds {held}, no fp32 variant to make others from; export it again, with --variant "
            f"fp32 {' '.join(names)}, or with all variants at once"
        )
    if set(names) == {FP32}:
        raise ExportError(f"--variant {FP32}: {manifest.folder} holds it already; choose others")
    validate(manifest, names)
    needs.require_beside(manifest.folder, needed(manifest, names))
    remove_leftovers(manifest.folder)
    try:
        made, lines = make_variants(manifest, names, clips, storing, keep=True)
        write(made)
    finally:
        remove_leftovers(manifest.folder)
    return lines


def make_variants(
    manifest: Manifest,
    names: Sequence[str],
    clips: Sequence[Path] = (),
    storing: Storing = DEFAULT_STORING,
    keep: bool = False,
) -> tuple[Manifest, list[str]]:
    """Write the graphs of variants beside those of fp32. Returns the manifest, not yet written, and lines for print.

    storing: what the user chose where variants have a choice. keep: variants that are there stay, and the default where
    none of `names` is within the bounds; otherwise the bundle has exactly `names`. Raises ExportError, BundleError,
    FileNotFoundError, AudioError.
    """
    if clips and "compression_encode" not in manifest.graphs:
        raise ExportError("--clip: this bundle has no codec to read clips with; leave it out, or use export/bundle.py")
    validate_clips(clips)
    storing.validate(clips)
    new = [name for name in dict.fromkeys(names) if name != FP32]
    if not new:
        return manifest, []
    variants, qualities, lost = dict(manifest.document["variants"]), {}, []
    with atomic.scratch(manifest.folder.parent / "rounded") as scratch:
        calibration = Calibration(manifest, clips, storing.calibration, scratch)
        for name in new:
            entry, quality = make(calibration, name, storing.of(VARIANTS[name]))
            if math.isfinite(quality.kl):
                variants[name], qualities[name] = entry, quality
            else:
                lost.append(f"{name:8} left out: {VARIANTS[name].dtype} is too small for what it computes")
    names = [name for name in names if name == FP32 or name in qualities]
    if not names:
        raise ExportError("; ".join(lost))
    default = default_of(names, qualities, manifest.default_variant if keep else None)
    kept = variants if keep else {name: variants[name] for name in dict.fromkeys(names)}
    lines = [f"{name:8} {quality.line()}" for name, quality in qualities.items()]
    return with_variants(manifest, kept, default), lines + lost + remarks(names, qualities, default)


def make(calibration: Calibration, name: str, variant: Variant) -> tuple[dict[str, Any], Quality]:
    """Write a variant's graphs and measure them; its entry in the manifest, and its quality."""
    manifest = calibration.manifest
    progress(f"{name}: writing")
    entry = write_variant(manifest, name, variant, calibration.of(variant))
    made = with_variants(manifest, {**manifest.document["variants"], name: entry}, FP32).with_variant(name)
    progress(f"{name}: measuring")
    quality = measure(LanguageModel.open(made), calibration.reference)
    entry["quality"] = quality.entry()
    if "text_encoder" in entry["graphs"]:
        entry["quality"]["text_error"] = text_error(made.with_variant(FP32), made)
    return entry, quality


def default_of(names: Sequence[str], qualities: Mapping[str, Quality], before: str | None) -> str:
    """The first variant that is within the bounds, or else the default that was there before, or else the one of the
    smallest KL divergence."""
    good = [name for name in names if name == FP32 or qualities[name].within_bounds]
    return next(iter(good), None) or before or min(names, key=lambda name: qualities[name].kl)


def remarks(names: Sequence[str], qualities: Mapping[str, Quality], default: str) -> list[str]:
    """What to say of a default that is not the first of `names`, or is none that should be: that on stderr, too."""
    if default in qualities and not qualities[default].within_bounds:
        warning = (
            f"WARNING: no variant of this bundle is within the bounds (KL divergence {KL_BOUND} nats, perplexity "
            f"{PERPLEXITY_BOUND} times that of fp32); the default is {default}, whose KL divergence is the smallest: "
            "listen before you use it, or export again with a variant of more bits; fp32 is always within them"
        )
        progress(warning)
        return [warning]
    return [] if default == names[0] else [f"{names[0]} is worse than the bounds: the default is {default}"]


def validate(manifest: Manifest, names: Sequence[str]) -> None:
    """Raise ExportError where these variants cannot be made beside those that are there."""
    again = [name for name in names if name != FP32 and name in manifest.variants]
    if again:
        raise ExportError(f"{manifest.folder}: holds {', '.join(again)} already")
    validate_attention(names, fp32_attention(manifest))


def needed(manifest: Manifest, names: Sequence[str]) -> needs.Needs:
    """What these variants need beside fp32, which is there. Raises BundleError."""
    fp32 = manifest.with_variant(FP32)
    files = {file for graph in LM_GRAPHS for file in fp32.files_of(graph)}
    parameters = sum(fp32.files[file].bytes for file in files) // 4
    return needs.of_variants(BundleWeights(fp32).config, parameters, names)


def remove_leftovers(folder: Path) -> None:
    """Remove the files of variants that the manifest does not name: what a run left that was killed, or has failed."""
    named = set(Manifest.read(folder, hashes=False).files)
    graphs = [f"{graph}.{name}.onnx" for graph in (*LM_GRAPHS, "text_encoder") for name in VARIANTS if name != FP32]
    for name in {f"{graph}{end}" for graph in graphs for end in ("", ".data")} - named:
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Raise ExportError for a bundle that another process adds variants to, or whose manifest is another's."""
    if (link := folder / MANIFEST).is_symlink():
        raise ExportError(
            f"{link}: is a link to {link.resolve()}, whose bundle would be changed; copy the folder with what its "
            "links name (cp -rL), and add to the copy"
        )
    with atomic.locked(folder) as ours:
        if not ours:
            raise ExportError(f"{folder}: another export/quantize.py writes to it; wait for its end")
        yield


def text_error(fp32: Manifest, variant: Manifest) -> float:
    """How far the text encoder's states are from float32's: root mean square, as a share of theirs."""
    ours, theirs = (
        np.concatenate([s for s in TextEncoder.open(m).encode(DESCRIPTIONS) if s is not None]) for m in (variant, fp32)
    )
    return float(np.sqrt(np.square(ours - theirs).mean() / np.square(theirs).mean()))


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of a bundle that holds fp32")
    add_options(parser, required=True)
    add_clip_option(parser)
    args = parser.parse_args()
    with errors_as_one_line(AudioError, BundleError, interrupted="the bundle is as it was"):
        print("\n".join(add(args.bundle, args.variant, args.clip, storing_of(args))))


if __name__ == "__main__":
    main()
