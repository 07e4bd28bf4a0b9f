"""Write a random checkpoint in audiocraft's own format: the layout of a released model, or a tiny one of the same kind.

python demo/checkpoint.py                                      the demo's: demo/state_dict.bin
python demo/checkpoint.py --size small --out small.bin         musicgen-small's layout, 420 M parameters
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from clean_lm.config import IMPLEMENTED, LMConfig
from weights.lm import audiocraft

TINY = LMConfig(
    layers=4, heads=4, dim=128, hidden_scale=4, codebooks=4, card=256, delays=(0, 1, 2, 3), text_dim=512,
    text_encoder="t5-small", max_duration=30.0, sample_rate=32_000, channels=1, cross=("description",), prepend=(),
)  # fmt: skip
RELEASED = replace(TINY, card=2048, text_dim=768, text_encoder="t5-base")
SIZES = {
    "tiny": TINY,
    "small": replace(RELEASED, layers=24, heads=16, dim=1024),
    "medium": replace(RELEASED, layers=48, heads=24, dim=1536),
    "large": replace(RELEASED, layers=48, heads=32, dim=2048),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--layers", type=int, help="fewer layers than the size has")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: float16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("state_dict.bin"))
    args = parser.parse_args()
    config = SIZES[args.size]
    if args.layers:
        config = replace(config, layers=args.layers)
    write(config, args.out, getattr(torch, args.dtype), args.seed)
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")


def write(config: LMConfig, path: Path, dtype: torch.dtype, seed: int) -> None:
    """Random weights, of a scale that keeps every layer's output near 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {piece.name: piece.shape for source in audiocraft(config).values() for piece in source.pieces}
    tensors = {name: random_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    package = {"best_state": tensors, "xp.cfg": yaml.safe_dump(xp_cfg(config)), "version": "1.3.0", "exported": True}
    torch.save(package, path)


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
    if name.startswith("emb."):
        return values
    return values * (3 if name.startswith("linears.") else 1) * shape[-1] ** -0.5


def xp_cfg(config: LMConfig) -> dict[str, Any]:
    """The fields that a reader of the checkpoint looks at, as audiocraft nests them."""
    tree: dict[str, Any] = {}
    fields = {name: value for name, (value, _) in IMPLEMENTED.items()} | {
        "transformer_lm.n_q": config.codebooks,
        "transformer_lm.card": config.card,
        "transformer_lm.dim": config.dim,
        "transformer_lm.num_heads": config.heads,
        "transformer_lm.num_layers": config.layers,
        "transformer_lm.hidden_scale": config.hidden_scale,
        "codebooks_pattern.modeling": "delay",
        "codebooks_pattern.delay.delays": list(config.delays),
        "conditioners.description.model": "t5",
        "conditioners.description.t5.name": config.text_encoder,
        "fuser.cross": list(config.cross),
        "fuser.prepend": list(config.prepend),
        "dataset.segment_duration": config.max_duration,
        "sample_rate": config.sample_rate,
        "channels": config.channels,
    }
    for name, value in fields.items():
        node = tree
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


if __name__ == "__main__":
    main()
