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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clean_lm import atomic
from clean_lm.audio import AudioError
from clean_lm.console import Parser
from clean_lm.generation import Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError, Manifest
from clean_lm.models.lm import LM
from clean_lm.models.transformer import StandardAttention
from clean_lm.text_encoder import TextEncoder
from export import sensitivity
from export.bundle_weights import BundleWeights
from export.bundle_writer import document_with, replace_variants
from export.commands import ExportError, errors_as_one_line, progress
from export.layerwise import Sequences, hessians
from export.opened import MANIFEST, Bundle, opened
from export.quality import (
    CFG_COEF,
    DESCRIPTIONS,
    KL_BOUND,
    Quality,
    Reference,
    calibrate,
    clip_samples,
    measure,
    own_samples,
)
from export.rewrite import Calibrated
from export.rounding import Blocks, Storage, gptq
from export.sensitivity import most_sensitive
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
from weights.mapping import fill

# What rounding the matrices that are not sensitive may cost on what the model draws: half of the bound, so that a whole
# interval is below it. There, the perplexity's bound is a divergence of log(1.03) = 0.0296: the cross-entropy of what
# float32 draws is its entropy and the divergence.
COST_BOUND = KL_BOUND / 2


class Calibration:
    """A bundle's float32 model, and what runs of it say of how to store and to measure variants."""

    def __init__(self, manifest: Manifest, clips: Sequence[Path], source: str, scratch: Path):
        """source: "own" or "clips", what matrices are rounded on. scratch: a folder for rounded matrices. Raises
        FileNotFoundError, BundleError, AudioError."""
        self.manifest, self.clips, self.source, self.scratch = manifest, clips, source, scratch
        self.lm = LanguageModel.open(opened(manifest, variant=FP32, hashes=False))
        codes, self.scales = calibrate(self.lm, manifest, clips)
        self.reference = Reference(self.lm, codes)  # what float32 makes of the codes that variants are measured on
        self.files: dict[Storage, dict[str, Path]] = {}

    def of(self, variant: Variant) -> Calibrated:
        """How to store the matrices and caches of a variant."""
        rounded = self.rounded(variant.storage) if variant.calibrated else {}
        others = {}
        if variant.sensitive:
            costs = sensitivity.costs(self.module, self.sequences[-1:], self.read_back(rounded))
            sizes = {name: matrix.numel() for name, matrix in self.module.named_parameters()}
            others = dict.fromkeys(most_sensitive(costs, sizes, COST_BOUND), variant.sensitive)
        return Calibrated(rounded, others, self.scales if variant.cache == "int8" else None)

    @cached_property
    def module(self) -> LM:
        """The PyTorch module on the bundle's memory-mapped weights."""
        weights = BundleWeights(self.manifest)
        return fill(LM(weights.config, StandardAttention()), weights.weights("lm"))

    @cached_property
    def sequences(self) -> list[Sequences]:
        """The codes that matrices are rounded on; the last are left out there, for what rounding costs."""
        own = self.source == "own"
        progress("calibrating on " + ("the model's own samples" if own else "clips"))
        samples = own_samples(self.lm, self.manifest) if own else clip_samples(self.manifest, self.clips)
        guidance = Sampling(cfg_coef=CFG_COEF).guidance
        conditioner = self.lm.conditioner
        return [Sequences(self.module, s.codes, conditioner(s.texts, s.self_wav, guidance)) for s in samples]

    def rounded(self, storage: Storage) -> dict[str, Path]:
        """Files of all matrices rounded by GPTQ, once for all variants that store them alike."""
        if storage not in self.files:
            folder = self.scratch / f"{len(self.files)}"
            folder.mkdir()
            files = self.files[storage] = {}
            for name, matrix, hessian in hessians(self.module, self.sequences[:-1] or self.sequences):
                files[name] = folder / name
                gptq(matrix, hessian, storage.fit(len(matrix))).save(files[name])
        return self.files[storage]

    def read_back(self, rounded: Mapping[str, Path]) -> Callable[[str], torch.Tensor]:
        """Rounded matrices [K, N] by their names."""
        matrices = dict(self.module.named_parameters())
        return lambda name: Blocks.load(rounded[name]).weight(len(matrices[name]))


def add(
    bundle: Bundle,
    names: Sequence[str],
    clips: Sequence[Path] = (),
    storing: Storing = DEFAULT_STORING,
    keep: bool = True,
) -> list[str]:
    """Write variants into a bundle that holds fp32, and enter them in its manifest. Returns a line on each.

    The default becomes the first of `names` that is within the bounds, or stays what it was.
    storing: what the user chose where variants have a choice. keep: fp32 stays even where it is not among `names`;
    otherwise it stays only as the default. The manifest is written last: what is interrupted leaves the bundle as it
    was. Raises ExportError, BundleError, FileNotFoundError, AudioError.
    """
    manifest = opened(bundle)
    validate(manifest, names)
    validate_clips(clips)
    storing.validate(clips)
    new = [name for name in dict.fromkeys(names) if name != FP32]
    if not new:
        return []
    variants, qualities = dict(manifest.document["variants"]), {}
    with removed_on_failure(manifest.folder), atomic.scratch(manifest.folder.parent / "rounded") as scratch:
        calibration = Calibration(manifest, clips, storing.calibration, scratch)
        for name in new:
            variants[name], qualities[name] = make(calibration, name, storing.of(VARIANTS[name]))
        default = default_of(names, qualities, manifest.default_variant or FP32)
        if not keep and FP32 not in (default, *names):
            del variants[FP32]
        replace_variants(manifest, variants, default)
    lines = [f"{name:8} {quality.line()}" for name, quality in qualities.items()]
    return lines + ([] if default == names[0] else [f"{names[0]} is worse than the bounds: the default is {default}"])


def make(calibration: Calibration, name: str, variant: Variant) -> tuple[dict[str, Any], Quality]:
    """Write a variant's graphs and measure them; its entry in the manifest, and its quality."""
    manifest = calibration.manifest
    progress(f"{name}: writing")
    entry = write_variant(manifest, name, variant, calibration.of(variant))
    document = document_with(manifest, {**manifest.document["variants"], name: entry}, manifest.default_variant or FP32)
    made = Manifest.parse(manifest.folder, document, {"hashes": False, "variant": name})
    progress(f"{name}: measuring")
    quality = measure(LanguageModel.open(made), calibration.reference)
    entry["quality"] = quality.entry()
    if "text_encoder" in entry["graphs"]:
        entry["quality"]["text_error"] = text_error(manifest.with_variant(FP32), made)
    return entry, quality


def default_of(names: Sequence[str], qualities: Mapping[str, Quality], before: str) -> str:
    """The first variant that is within the bounds, or else the default that was there before."""
    good = (name for name in names if name == FP32 or qualities[name].within_bounds)
    return next(good, before)


def validate(manifest: Manifest, names: Sequence[str]) -> None:
    """Raise ExportError where these variants cannot be added."""
    held = manifest.variants
    if FP32 not in held:
        raise ExportError(f"{manifest.folder}: holds no fp32 variant to measure beside; export it with --variant fp32")
    again = [name for name in names if name != FP32 and name in held]
    if again:
        raise ExportError(f"{manifest.folder}: holds {', '.join(again)} already")
    validate_attention(names, fp32_attention(manifest))


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Remove what the block wrote into a folder where it does not end well, but for what its manifest names by then."""
    before = set(folder.iterdir())
    try:
        yield
    except BaseException:
        finished = (folder / MANIFEST).exists()
        kept = before | {folder / name for name in (Manifest.read(folder, hashes=False).files if finished else ())}
        for path in set(folder.iterdir()) - kept:
            path.unlink(missing_ok=True)
        raise


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
