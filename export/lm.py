"""Export a MusicGen language model to ONNX: lm_inference.onnx, lm_condition.onnx and manifest.json in a new folder.

  python export/lm.py --ckpt state_dict.bin
  python export/lm.py --ckpt state_dict.bin --out bundle --variant int4
  python export/lm.py --ckpt adapter --base musicgen-small      a LoRA adapter and the model that it was trained on

Melody and style models have lm_melody.onnx or lm_style.onnx too. The float32 graphs are then run beside the PyTorch
modules, and the largest difference is printed; graphs that disagree are not kept. Variants (listed by
export/quantize.py --help) are measured beside float32, on codes that the float32 model draws: to measure on audio
clips, which takes a codec, use export/bundle.py.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clean_lm.console import Parser
from clean_lm.generation import Sampling
from clean_lm.manifest import BundleError
from clean_lm.models.config import ConfigError, LMConfig
from clean_lm.options import LONGEST_WINDOW
from export import conditioner, needs, quantize
from export.bundle_writer import draft, new_folder, publish
from export.commands import ExportError, errors_as_one_line, print_files, progress, require_new, tell
from export.lm_graphs import ATTENTION, CACHE_UPDATE, LM_GRAPHS, write_graphs
from export.lm_parity import parity
from export.parity import calls_verdict, require_agreement
from export.variants import DEFAULT_STORING, FP32, Storing, storing_of, validate_attention
from export.variants import add_options as add_variant_options
from weights.checkpoint import CheckpointError
from weights.lm import load
from weights.mapping import MappingError, Model, require_finite

# Defaults of audiocraft's set_generation_params by solver, in seconds: duration, extend_stride.
DURATION = {"musicgen": (30.0, 18.0), "audiogen": (10.0, 2.0)}

ERRORS = (BundleError, CheckpointError, ConfigError, MappingError)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ckpt", type=Path, required=True, help="audiocraft's state_dict.bin, or a Hugging Face folder"
    )
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    add_options(parser)
    args = parser.parse_args()
    with errors_as_one_line(*ERRORS):
        export(args.ckpt, args.out, args.attention, args.variant, storing_of(args), args.base, args.max_duration)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that exports a language model."""
    parser.add_argument(
        "--attention",
        choices=ATTENTION,
        default="ort",
        help="ort: ONNX Runtime's own operator, fast (default); standard: ai.onnx operators only, for other engines",
    )
    parser.add_argument(
        "--base",
        type=Path,
        help="the model that it is a fine-tune of, where the checkpoint is a LoRA adapter, a decoder alone, or tensors "
        "without a configuration",
    )
    parser.add_argument(
        "--max-duration",
        type=float,
        metavar="SECONDS",
        help="length of a window (default: that of the checkpoint's configuration; Hugging Face folders: 30 or more)",
    )
    add_variant_options(parser)


def export(
    ckpt: Path,
    out: Path,
    attention: str = "ort",
    variants: Sequence[str] = (FP32,),
    storing: Storing = DEFAULT_STORING,
    base: Path | None = None,
    max_duration: float | None = None,
) -> None:
    """Write the bundle, and print what was written and how far it is from PyTorch."""
    start = time.perf_counter()
    require_new(out)
    validate_max_duration(max_duration)
    model = load(ckpt, base, max_duration)
    validate(model.config)
    tell(model.checkpoint.notes)
    validate_attention(variants, attention)
    needed = needs.of_export(model.config, model.parameters, variants)
    needs.require(out, needed)
    require_finite(model)
    with new_folder(out, needed.disk) as folder:
        names = write_all(model, folder, attention)
        bundle = draft(folder, describe(model.config), defaults(model.config), CACHE_UPDATE[attention], names)
        progress("comparing with the PyTorch modules")
        verdicts = {"": calls_verdict(parity(bundle, model)), **conditioner.verdicts(bundle, model)}
        lines = require_agreement(verdicts)
        bundle, measured = quantize.make_variants(bundle, variants, storing=storing)
        publish(bundle)
    print_files(out, model.parameters, time.perf_counter() - start)
    print("\n".join(lines + measured))


def validate_max_duration(value: float | None) -> None:
    """Raise ExportError for a window that no model has."""
    if value is not None and not 0 < value <= LONGEST_WINDOW:
        raise ExportError(f"--max-duration: got {value}, expected seconds, more than 0, {LONGEST_WINDOW:g} at most")


def write_all(model: Model[LMConfig], folder: Path, attention: str) -> list[str]:
    """Write every graph of a language model's checkpoint in float32. Returns their names."""
    write_graphs(model, folder, attention, torch.float32)
    return [*LM_GRAPHS, *([conditioner.write_graph(model, folder)] if model.config.self_wav else [])]


def validate(config: LMConfig) -> None:
    """Raise ConfigError for models that weights/check.py can read but that are not exported."""
    both = config.cross and config.prepend
    if both or "self_wav" in config.cross:
        raise ConfigError(
            f"found xp.cfg fuser.cross {list(config.cross)} and fuser.prepend {list(config.prepend)}, expected all "
            "conditions in one of them, and self_wav in prepend: no other model was there to compare an export with"
        )


def describe(c: LMConfig) -> dict[str, Any]:
    """The manifest's `model` of a bundle without a codec: what only the codec knows is null."""
    return {
        "layers": c.layers,
        "heads": c.heads,
        "head_dim": c.head_dim,
        "dim": c.dim,
        "codebooks": c.codebooks,
        "card": c.card,
        "special_token": c.special_token,
        "delays": list(c.delays),
        "max_duration": c.max_duration,
        "frame_rate": None,
        "sample_rate": c.sample_rate,
        "channels": c.channels,
        "text_dim": c.text_dim,
        "text_encoder": c.text_encoder,
        **(conditioner.describe(c.self_wav) if c.self_wav else {}),
    }


def defaults(c: LMConfig) -> dict[str, Any]:
    """The manifest's `defaults`: those of audiocraft's set_generation_params.

    audiocraft refuses a stride that is not below max_duration; there, it becomes the same share of max_duration as it
    is of the default duration.
    """
    s, (duration, stride) = Sampling(), DURATION[c.solver]
    return {
        "cfg_coef": s.cfg_coef,
        "top_k": s.top_k,
        "top_p": s.top_p,
        "temperature": s.temperature,
        "duration": min(duration, c.max_duration),
        "extend_stride": stride if stride < c.max_duration else stride * c.max_duration / duration,
    }


if __name__ == "__main__":
    main()
