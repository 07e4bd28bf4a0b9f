"""Export a MusicGen language model to ONNX: lm_inference.onnx, lm_condition.onnx and manifest.json in a new folder.

  python export/lm.py --ckpt state_dict.bin
  python export/lm.py --ckpt state_dict.bin --out bundle --variant int4

Melody and style models have lm_melody.onnx or lm_style.onnx too. The float32 graphs are then run beside the PyTorch
modules, and the largest difference is printed; of other variants (see export/quantize.py), how they differ from
float32.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clean_lm.models.config import ConfigError, LMConfig
from clean_lm.runtime import Sampling
from export import conditioner, quantize
from export.bundle_writer import ExportError, new_folder, print_files, reported, write_manifest
from export.lm_graphs import ATTENTION, CACHE_UPDATE, LM_GRAPHS, write_graphs
from export.onnx_graph import say
from export.verify import DISAGREES, parity, summary
from weights.checkpoint import CheckpointError
from weights.lm import load
from weights.mapping import MappingError, Model

# Of audiocraft's set_generation_params: seconds that are generated, and from one window's start to the next's.
DURATION = {"musicgen": (30.0, 18.0), "audiogen": (10.0, 2.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ckpt", type=Path, required=True, help="audiocraft's state_dict.bin, or a Hugging Face folder"
    )
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    add_options(parser)
    args = parser.parse_args()
    with reported(CheckpointError, ConfigError, MappingError, ExportError, FileNotFoundError):
        export(args.ckpt, args.out, args.attention, args.variant, args.cache)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that exports a language model."""
    parser.add_argument(
        "--attention",
        choices=ATTENTION,
        default="ort",
        help="ort: ONNX Runtime's own operator, fast (default); standard: ai.onnx operators only, for other engines",
    )
    quantize.add_options(parser)


def export(
    ckpt: Path, out: Path, attention: str = "ort", variants: Sequence[str] = (quantize.FP32,), cache: str | None = None
) -> None:
    """Write the bundle, and print what was written and how far it is from PyTorch."""
    start = time.perf_counter()
    model = load(ckpt)
    refuse(model.config)
    quantize.refuse(variants, attention == "ort")
    with new_folder(out, quantize.needed(model.parameters, variants)) as folder:
        names = write_all(model, folder, attention)
        write_manifest(folder, describe(model.config), defaults(model.config), CACHE_UPDATE[attention], names)
        say("comparing with the PyTorch modules")
        verdicts = [summary(parity(folder, model), "the PyTorch modules")]
        if model.config.self_wav:
            verdicts.append(f"{names[-1]} {conditioner.parity(folder, model)}")
        if any(DISAGREES in verdict for verdict in verdicts):
            raise ExportError("nothing was written: the graphs are not what PyTorch computes.\n" + "\n".join(verdicts))
        lines = quantize.add(folder, variants, cache=cache, keep=False)
    print_files(out, model.parameters, time.perf_counter() - start)
    print("\n".join([*verdicts, *lines]))


def write_all(model: Model[LMConfig], folder: Path, attention: str) -> list[str]:
    """Write every graph of a language model's checkpoint in float32; their names."""
    write_graphs(model, folder, attention, torch.float32)
    return [*LM_GRAPHS, *([conditioner.write_graph(model, folder)] if model.config.self_wav else [])]


def refuse(config: LMConfig) -> None:
    """Raise ConfigError for models that are checked but not exported."""
    both = config.cross and config.prepend
    if both or "self_wav" in config.cross:
        raise ConfigError(
            f"xp.cfg fuser.cross {list(config.cross)}, fuser.prepend {list(config.prepend)}: exported are models with "
            "all of their conditions in one of them, self_wav in prepend only: there is none to compare others with"
        )


def describe(c: LMConfig) -> dict[str, Any]:
    """The manifest's `model`. What only the codec knows is null until the codec is exported."""
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

    It refuses a stride that is not below max_duration: a model of windows so short gets the same share of its own.
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
