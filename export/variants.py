"""The variants that a bundle can hold: how each stores weights and caches, and the command-line options to choose."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clean_lm import audio_files
from export.bundle_writer import FP32, ExportError
from export.rounding import Storage

CLIP_START = 0.1  # seconds of a clip that are read to see whether it is audio


@dataclass(frozen=True)
class Variant:
    """How a variant stores what every step reads."""

    dtype: str = "float32"  # of activations, and of whatever is not quantized
    bits: int | None = None  # of the weights; None: as traced
    block: int = 128  # weights that share a scale
    zero_points: bool = False  # see rounding.Storage
    calibrated: bool = False  # rounded by GPTQ on what the model itself draws; otherwise to the nearest code
    sensitive: Storage | None = None  # of the matrices that export/sensitivity.py finds sensitive
    dynamic: bool = False  # activations are quantized by the graph itself, ai.onnx operators only
    cache: str = "float"  # or int8: keys and values

    @property
    def standard(self) -> bool:
        """Whether ai.onnx operators are enough for its weights."""
        return self.bits is None or self.dynamic

    @property
    def storage(self) -> Storage:
        """How most of its matrices are stored."""
        return Storage(self.bits or 8, self.block, self.zero_points)

    def symmetric(self) -> "Variant":
        """The same without zero points, in blocks of 64 at most: they need smaller ones."""
        return replace(self, zero_points=False, block=min(self.block, 64)) if self.zero_points else self


@dataclass(frozen=True)
class Storing:
    """What the user chose where variants have a choice."""

    cache: str | None = None  # "float" or "int8" keys and values; None: as each variant has them
    calibration: str = "own"  # or "clips": what matrices are rounded on
    symmetric: bool = False  # 4-bit weights without zero points

    def of(self, variant: Variant) -> Variant:
        """A variant with these choices."""
        if self.symmetric:
            variant = variant.symmetric()
        return replace(variant, cache=self.cache) if self.cache and variant.cache != "float" else variant

    def validate(self, clips: Sequence[Path]) -> None:
        """Raise ExportError for a choice that cannot be had."""
        if self.calibration == "clips" and not clips:
            raise ExportError("--calibration clips: there are none; give audio files with --clip")


def storing_of(args: argparse.Namespace) -> Storing:
    """What `add_options` read."""
    return Storing(args.cache, getattr(args, "calibration", "own"), args.symmetric)


DEFAULT_STORING = Storing()
VARIANTS = {
    FP32: Variant(),
    "fp16": Variant("float16"),
    "int8": Variant(bits=8, cache="int8"),
    "int8-32": Variant(bits=8, block=32, cache="int8"),
    "int4": Variant(bits=4, zero_points=True, calibrated=True, cache="int8"),
    "int4-32": Variant(bits=4, block=32, zero_points=True, calibrated=True, cache="int8"),
    "mixed": Variant(bits=4, zero_points=True, calibrated=True, sensitive=Storage(8, 128), cache="int8"),
    "dynamic": Variant(bits=8, dynamic=True),
    "q4f16": Variant("float16", bits=4, block=32, calibrated=True),
}
# The text projection and the text encoder run once a generation: more bits there cost no step any time.
ONCE = {"int8": Variant(bits=8, block=32), "dynamic": VARIANTS["dynamic"]}


def validate_attention(names: Sequence[str], attention: str) -> None:
    """Raise ExportError for variants that need ONNX Runtime's own operators where the attention is "standard"."""
    unsupported = [name for name in names if not VARIANTS[name].standard and attention != "ort"]
    if unsupported:
        raise ExportError(
            f"--attention {attention} with {', '.join(unsupported)}: MatMulNBits is no ai.onnx operator; "
            f"take {', '.join(name for name in VARIANTS if VARIANTS[name].standard)}"
        )


def add_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The options of every command that writes variants."""
    default = None if required else [FP32]
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, required=required, default=default,
                        help=f"how weights are stored{'' if required else ' (default: fp32)'}; the first within the "
                        "bounds is the default of the bundle")  # fmt: skip
    parser.add_argument(
        "--cache", choices=("float", "int8"), help="how keys and values are stored, where a variant has a choice"
    )
    parser.add_argument(
        "--symmetric",
        action="store_true",
        help="4-bit weights without zero points, in blocks of 64 at most: for machines whose kernel gets them wrong",
    )


def validate_clips(clips: Sequence[Path]) -> None:
    """Raise AudioError for a clip that is no audio, before anything is loaded."""
    for clip in clips:
        audio_files.read(clip, seconds=CLIP_START)


def add_clip_option(parser: argparse.ArgumentParser) -> None:
    """The options of every command whose bundle has a codec to read clips with."""
    parser.add_argument(
        "--clip", nargs="+", type=Path, default=[], help="audio files to calibrate and measure variants on"
    )
    parser.add_argument("--calibration", choices=("own", "clips"), default="own",
                        help="4-bit weights are rounded on what the model itself draws (default), or on --clip's "
                        "codes")  # fmt: skip
