"""Write a checkpoint of random weights in audiocraft's format: the layout of a released model, or a tiny one.

python demo/checkpoint.py --out folder                    tiny
python demo/checkpoint.py --size small --out folder       musicgen-small's layout, 420 M parameters
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

import weights.codec
from clean_lm.models.config import CodecConfig, LMConfig
from weights.audiocraft_config import CODEC_SUPPORTED, SUPPORTED
from weights.checkpoint import Checkpoint
from weights.lm import audiocraft
from weights.mapping import Source

TINY = LMConfig(
    solver="musicgen",
    layers=4, heads=4, dim=128, hidden_scale=4, codebooks=4, card=256, delays=(0, 1, 2, 3), text_dim=512,
    text_encoder="t5-small", max_duration=30.0, sample_rate=32_000, channels=1, cross=("description",), prepend=(),
    self_wav=None,
)  # fmt: skip
RELEASED = replace(TINY, card=2048, text_dim=768, text_encoder="t5-base")
SIZES = {
    "tiny": TINY,
    "small": replace(RELEASED, layers=24, heads=16, dim=1024),
    "medium": replace(RELEASED, layers=48, heads=24, dim=1536),
    "large": replace(RELEASED, layers=48, heads=32, dim=2048),
}
RELEASED_CODEC = CodecConfig(
    sample_rate=32_000, channels=1, ratios=(8, 5, 4, 4), filters=64, dimension=128, kernel_size=7, last_kernel_size=7,
    residual_kernel_size=3, residual_layers=1, dilation_base=2, compress=2, lstm_layers=2, pad_mode="constant",
    codebooks=4, card=2048,
)  # fmt: skip
TINY_CODEC = replace(RELEASED_CODEC, filters=4, dimension=32, card=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--layers", type=int, help="how many, in place of the size's own")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the language model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    config = SIZES[args.size]
    if args.layers:
        config = replace(config, layers=args.layers)
    args.out.mkdir(parents=True, exist_ok=True)
    codec = TINY_CODEC if args.size == "tiny" else RELEASED_CODEC
    write(args.out / "state_dict.bin", audiocraft(config), xp_cfg(config), getattr(torch, args.dtype), args.seed)
    path = args.out / "compression_state_dict.bin"
    write(path, codec_table(codec), codec_xp_cfg(codec), torch.float32, args.seed)


def codec_table(codec: CodecConfig) -> dict[str, Source]:
    """The tensors of audiocraft's codec, with weight norm."""
    return weights.codec.table(Checkpoint(Path(), "audiocraft", {}, {}, lambda: {}.__getitem__), codec)


def write(path: Path, rows: Mapping[str, Source], tree: Mapping[str, Any], dtype: torch.dtype, seed: int) -> None:
    """Random weights, of a scale that keeps every layer's output near 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {piece.name: piece.shape for source in rows.values() for piece in source.pieces}
    tensors = {name: random_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    torch.save({"best_state": tensors, "xp.cfg": yaml.safe_dump(tree), "version": "1.3.0", "exported": True}, path)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith("weight_g"):  # the length of each channel's weights
        return torch.ones(shape)
    if "norm" in name:
        return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
    if name.startswith("emb.") or len(shape) == 1:
        return values * (1 if name.startswith("emb.") else 0.1)
    return values * (3 if name.startswith("linears.") else 1) * shape[-1] ** -0.5


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}, as xp.cfg has them."""
    tree: dict[str, Any] = {}
    for name, value in fields.items():
        node = tree
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def codec_xp_cfg(c: CodecConfig) -> dict[str, Any]:
    """The fields of the codec's xp.cfg that weights/ checks, and those that audiocraft needs to build the model."""
    supported = {name: value for name, (value, _) in CODEC_SUPPORTED.items()}
    del supported["rvq.codebook_dim"]  # an argument that audiocraft's own quantizer does not take
    return nested(
        supported
        | {
            "sample_rate": c.sample_rate,
            "channels": c.channels,
            "encodec.sample_rate": c.sample_rate,
            "encodec.channels": c.channels,
            "seanet.channels": c.channels,
            "seanet.ratios": list(c.ratios),
            "seanet.n_filters": c.filters,
            "seanet.dimension": c.dimension,
            "seanet.kernel_size": c.kernel_size,
            "seanet.last_kernel_size": c.last_kernel_size,
            "seanet.residual_kernel_size": c.residual_kernel_size,
            "seanet.n_residual_layers": c.residual_layers,
            "seanet.dilation_base": c.dilation_base,
            "seanet.compress": c.compress,
            "seanet.lstm": c.lstm_layers,
            "seanet.pad_mode": c.pad_mode,
            "seanet.encoder": {},
            "rvq.n_q": c.codebooks,
            "rvq.bins": c.card,
        }
    )


def xp_cfg(config: LMConfig) -> dict[str, Any]:
    """The fields of xp.cfg that weights/ checks, and those that audiocraft needs to build the model."""
    return nested(
        {name: value for name, (value, _) in SUPPORTED.items()}
        | {
            "solver": config.solver,
            "transformer_lm.n_q": config.codebooks,
            "transformer_lm.card": config.card,
            "transformer_lm.dim": config.dim,
            "transformer_lm.num_heads": config.heads,
            "transformer_lm.num_layers": config.layers,
            "transformer_lm.hidden_scale": config.hidden_scale,
            "transformer_lm.memory_efficient": True,  # otherwise its attention's tensors have other names
            "codebooks_pattern.modeling": "delay",
            "codebooks_pattern.delay.delays": list(config.delays),
            "conditioners.description.model": "t5",
            "conditioners.description.t5.name": config.text_encoder,
            "conditioners.description.t5.finetune": False,
            "fuser.cross": list(config.cross),
            "fuser.prepend": list(config.prepend),
            "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
            "attribute_dropout": {},
            "interleave_stereo_codebooks.use": False,
            "dataset.segment_duration": config.max_duration,
            "sample_rate": config.sample_rate,
            "channels": config.channels,
        }
    )


if __name__ == "__main__":
    main()
