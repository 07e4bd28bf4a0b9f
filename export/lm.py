"""Export a MusicGen language model to ONNX: lm_inference.onnx, lm_condition.onnx and manifest.json in a new folder.

  python export/lm.py --ckpt state_dict.bin
  python export/lm.py --ckpt state_dict.bin --out bundle --attention standard

The graphs are then run beside the PyTorch modules, and the largest difference is printed.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from clean_lm.config import ConfigError, LMConfig
from clean_lm.layers import GroupQueryAttention, StandardAttention
from clean_lm.lm import LM, Condition
from clean_lm.runtime import Sampling
from export.folder import ExportError, new_folder, print_files, write_manifest
from export.graph import Port, say, write
from export.verify import AGREES, parity, summary
from weights.checkpoint import CheckpointError
from weights.lm import MappingError, Model, load

ATTENTION = {"ort": GroupQueryAttention, "standard": StandardAttention}
CACHE_UPDATE = {"ort": "in_place", "standard": "new_columns"}
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ckpt", type=Path, required=True, help="audiocraft's state_dict.bin, or a Hugging Face folder"
    )
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    add_options(parser)
    args = parser.parse_args()
    try:
        export(args.ckpt, args.out, args.attention, args.dtype)
    except (CheckpointError, ConfigError, MappingError, ExportError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was written")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that exports a language model."""
    parser.add_argument(
        "--attention",
        choices=ATTENTION,
        default="ort",
        help="ort: ONNX Runtime's own operator, fast (default); standard: ai.onnx operators only, for other engines",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and caches (default: float32)")


def export(ckpt: Path, out: Path, attention: str = "ort", dtype: str = "float32") -> None:
    """Write the bundle, and print what was written and how far it is from PyTorch."""
    start = time.perf_counter()
    model = load(ckpt)
    refuse(model.config)
    with new_folder(out, model.parameters * DTYPES[dtype].itemsize) as folder:
        write_graphs(model, folder, attention, DTYPES[dtype])
        graphs = ["lm_inference", "lm_condition"]
        write_manifest(folder, describe(model.config), defaults(model.config), CACHE_UPDATE[attention], graphs)
        say("comparing with the PyTorch modules")
        verdict = summary(parity(folder, model), "the PyTorch modules")
        if not verdict.startswith(AGREES):
            raise ExportError(f"nothing was written: the graphs are not what PyTorch computes. {verdict}")
    print_files(out, model.parameters, time.perf_counter() - start)
    print(verdict)


def refuse(config: LMConfig) -> None:
    """Raise ConfigError for models that are checked but not exported yet."""
    if config.prepend or config.cross != ("description",):
        raise ConfigError(
            f"xp.cfg fuser: prepend {list(config.prepend)}, cross {list(config.cross)}: melody and style models "
            "are not exported yet, only prepend [] with cross ['description']"
        )


def write_graphs(model: Model[LMConfig], folder: Path, attention: str, dtype: torch.dtype) -> None:
    """Write lm_condition.onnx and lm_inference.onnx with their weights."""
    c = model.config
    inputs, outputs = condition_ports(c, dtype)
    write(Condition(c), model.weights("condition", dtype), dtype, inputs, outputs, folder / "lm_condition.onnx")
    inputs, outputs = lm_ports(c, attention, dtype)
    write(
        LM(c, ATTENTION[attention]()), model.weights("lm", dtype), dtype, inputs, outputs, folder / "lm_inference.onnx"
    )


def condition_ports(c: LMConfig, dtype: torch.dtype) -> tuple[dict[str, Any], list[Port]]:
    """What goes into lm_condition, by argument, and what comes out."""
    inputs = {
        "text_states": Port("text_states", dtype, ("texts", "text", c.text_dim)),
        "text_mask": Port("text_mask", torch.int64, ("texts", "text")),
    }
    caches = cache_ports(c, "cross_key_values", "text", c.head_dim, dtype, rows="texts")
    return inputs, [port for cache in caches for port in cache]


def lm_ports(c: LMConfig, attention: str, dtype: torch.dtype) -> tuple[dict[str, Any], list[Port]]:
    """What goes into lm_inference, by argument, and what comes out."""
    head_dim = GroupQueryAttention.cache_dim(c.head_dim) if attention == "ort" else c.head_dim
    present = "capacity" if CACHE_UPDATE[attention] == "in_place" else "columns"
    inputs = {
        "codes": Port("codes", torch.int64, ("rows", c.codebooks, "columns")),
        "position": Port("position", torch.int64, (1,)),
        "past": cache_ports(c, "past_key_values", "capacity", head_dim, dtype),
        "cross": cache_ports(c, "cross_key_values", "text", c.head_dim, dtype, rows="texts"),
        "uniform": Port("uniform", torch.float32, ("batch", c.codebooks)),
        "cfg_coef": Port("cfg_coef", torch.float32, ()),
        "temperature": Port("temperature", torch.float32, ()),
        "top_k": Port("top_k", torch.int64, ()),
        "top_p": Port("top_p", torch.float32, ()),
    }
    outputs = [
        Port("next_codes", torch.int64, ("batch", c.codebooks)),
        Port("logits", torch.float32, ("batch", c.codebooks, c.card)),
    ]
    return inputs, outputs + [port for cache in cache_ports(c, "present", present, head_dim, dtype) for port in cache]


def cache_ports(
    c: LMConfig, name: str, length: str, head_dim: int, dtype: torch.dtype, rows: str = "rows"
) -> list[tuple[Port, Port]]:
    """The keys and values of every layer."""
    shape = (rows, c.heads, length, head_dim)
    return [(Port(f"{name}.{i}.key", dtype, shape), Port(f"{name}.{i}.value", dtype, shape)) for i in range(c.layers)]


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
    }


def defaults(c: LMConfig) -> dict[str, Any]:
    """The manifest's `defaults`: those of audiocraft's set_generation_params."""
    s = Sampling()
    return {
        "cfg_coef": s.cfg_coef,
        "top_k": s.top_k,
        "top_p": s.top_p,
        "temperature": s.temperature,
        "duration": c.max_duration,
    }


if __name__ == "__main__":
    main()
