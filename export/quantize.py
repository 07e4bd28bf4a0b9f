"""Add variants to a bundle: the same language model and text encoder with smaller weights and caches.

  python export/quantize.py --bundle bundle --variant int4
  python export/quantize.py --bundle bundle --variant int4 int8 --clip loop.wav track.mp3

  int8, int4         weights in blocks of 128; int8-32, int4-32 in blocks of 32 (com.microsoft MatMulNBits)
  mixed              int4-32, but int8 for the matrices that a sweep measures as sensitive
  dynamic            int8 weights and activations with ai.onnx operators only, for runtimes without MatMulNBits
  fp16, q4f16        float16, and int4-32 in it, for GPU and WebGPU

Embeddings, the text projection and the text encoder are int8 in all of them but fp16. Keys and values in the cache are
int8 in int8, int4 and mixed, or as --cache has it. What a variant costs is measured beside fp32, which the bundle must
hold, on the clips' own codes, or without clips on what fp32 draws. The first variant that is within the bounds becomes
the default: KL divergence at most 0.05 nats a code, perplexity at most 1.03 times that of fp32.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from clean_lm.audio import AudioError
from clean_lm.delay_pattern import delay
from clean_lm.manifest import BundleError, Manifest, chosen, sha256
from clean_lm.models.config import LMConfig
from clean_lm.models.lm import LM
from clean_lm.models.transformer import StandardAttention
from clean_lm.runtime import LanguageModel, Sampling
from clean_lm.text_encoder import TextEncoder
from export.bundle_writer import BACKENDS, ExportError, describe, reported, size
from export.lm_graphs import CACHE_UPDATE, LM_GRAPHS, text_module, write_graphs
from export.onnx_graph import say
from export.quality import CFG_COEF, DESCRIPTIONS, KL_BOUND, Codes, Reference, calibrate, measure
from export.rewrite import Variant, rewrite
from export.sensitivity import COLUMNS, sensitive, sensitivities
from weights.mapping import fill

FP32 = "fp32"
VARIANTS = {
    FP32: Variant(),
    "fp16": Variant("float16"),
    "int8": Variant(bits=8, cache="int8"),
    "int8-32": Variant(bits=8, block=32, cache="int8"),
    "int4": Variant(bits=4, cache="int8"),
    "int4-32": Variant(bits=4, block=32, cache="int8"),
    "mixed": Variant(bits=4, block=32, sensitive=8, cache="int8"),
    "dynamic": Variant(bits=8, dynamic=True),
    "q4f16": Variant("float16", bits=4, block=32),
}
# What runs once a generation, the text projection and the text encoder: more bits cost no step any time.
ONCE = {"int8": Variant(bits=8, block=32), "dynamic": VARIANTS["dynamic"]}


class BundleWeights:
    """The float32 language model of a bundle, its weights read from its graphs."""

    def __init__(self, folder: Path):
        manifest = Manifest.read(folder)
        model = manifest.need("model")
        self.graphs = {
            name: ir.load(folder / f"{graph}.onnx").graph.initializers
            for name, graph in zip(("condition", "lm"), LM_GRAPHS, strict=True)
        }
        prefix = manifest.takes("lm_inference", "prefix")
        hidden, dim = _read(self.graphs["lm"]["layers.0.linear2"]).shape
        same = ("layers", "heads", "dim", "codebooks", "card", "text_dim", "text_encoder", "max_duration",
                "sample_rate", "channels")  # fmt: skip
        self.config = LMConfig(
            hidden_scale=hidden // dim,
            solver="musicgen",  # decides the defaults alone, which the manifest has
            delays=tuple(model["delays"]),
            cross=() if prefix else ("description",),
            prepend=("description",) if prefix else (),
            self_wav=None,
            **{name: model[name] for name in same},
        )

    def weights(self, component: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The tensors of "lm" or "condition" by the names that its module has for them, memory-mapped."""
        module = LM(self.config, StandardAttention()) if component == "lm" else text_module(self.config)
        return {name: _read(self.graphs[component][name]).to(dtype) for name, _ in module.named_parameters()}


def _read(value: ir.Value) -> Tensor:
    """An initializer, mapped copy on write where it lies in a file."""
    tensor = value.const_value
    assert tensor is not None
    if not isinstance(tensor, ir.ExternalTensor):
        return torch.from_numpy(np.array(tensor.numpy()))
    shape = tuple(tensor.shape.numpy())
    return torch.from_numpy(np.memmap(tensor.path, tensor.dtype.numpy(), "c", tensor.offset or 0, shape))


def add(
    folder: Path,
    wanted: Sequence[str],
    clips: Sequence[Path] = (),
    cache: str | None = None,
    keep: bool = True,
) -> list[str]:
    """Write variants into a bundle that holds fp32, and name them in its manifest. Returns a line on each.

    keep: fp32 stays even where it is not wanted; where it is not kept, it stays only for want of another default.
    The default is the first that is wanted and within the bounds, or else what it was.
    cache: "float" or "int8" in place of what those variants choose whose cache may be int8. The manifest is written
    last: where this is interrupted, the bundle is what it was. Raises ExportError, BundleError, FileNotFoundError.
    """
    manifest = Manifest.read(folder)
    check(manifest, wanted)
    new = [name for name in dict.fromkeys(wanted) if name != FP32]
    if not new:
        return []
    lines = []
    with undone(folder):
        exact = LanguageModel.load(folder, variant=FP32, hashes=False)
        measured, scales = calibrate(exact, folder, clips)
        reference = Reference(exact, measured)
        variants = dict(manifest.tree["variants"])
        for name in new:
            say(f"{name}: writing")
            variant = VARIANTS[name]
            if cache and variant.cache != "float":
                variant = replace(variant, cache=cache)
            more = sweep(folder, exact, variant, measured[0]) if variant.sensitive else []
            entry = variants[name] = write(folder, name, variant, more, scales)
            opened = Manifest(folder, chosen(manifest.tree, entry), {"hashes": False})
            say(f"{name}: measuring")
            quality = measure(LanguageModel.open(opened), reference)
            entry["quality"] = quality.entry()
            lines.append(f"{name:8} {quality.line()}")
            if "text_encoder" in entry["graphs"]:
                entry["quality"]["text_error"] = text_error(manifest, opened)
        good = [name for name in wanted if name == FP32 or variants[name]["quality"]["within_bounds"]]
        default = good[0] if good else manifest.tree["variant"]
        if default != wanted[0]:
            lines.append(f"{wanted[0]} is worse than the bounds: the default is {default}")
        if not keep and FP32 not in (default, *wanted):
            del variants[FP32]
        save(folder, manifest.tree, variants, default)
    return lines


def check(manifest: Manifest, wanted: Sequence[str]) -> None:
    """Raise ExportError where these variants cannot be added."""
    held = manifest.tree.get("variants", {})
    if FP32 not in held:
        raise ExportError(f"{manifest.folder}: holds no fp32 variant to measure beside; export it with --variant fp32")
    again = [name for name in wanted if name != FP32 and name in held]
    if again:
        raise ExportError(f"{manifest.folder}: holds {', '.join(again)} already")
    refuse(wanted, held[FP32]["cache_update"] == "in_place")


def needed(parameters: int, wanted: Sequence[str]) -> int:
    """Bytes that the export of some variants takes, fp32 among them."""
    shares = [(v.bits or np.dtype(v.dtype).itemsize * 8) / 8 for v in (VARIANTS[n] for n in wanted if n != FP32)]
    return round(parameters * (4 + sum(shares)))


def refuse(wanted: Sequence[str], ort: bool) -> None:
    """Raise ExportError for variants that need operators of ONNX Runtime's own, where `ort` is not the attention."""
    foreign = [name for name in wanted if not VARIANTS[name].standard and not ort]
    if foreign:
        raise ExportError(
            f"--attention standard with {', '.join(foreign)}: MatMulNBits is no ai.onnx operator; "
            f"take {', '.join(name for name in VARIANTS if VARIANTS[name].standard)}"
        )


@contextlib.contextmanager
def undone(folder: Path) -> Iterator[None]:
    """Remove what the block wrote into a folder where it does not end well."""
    before = set(folder.iterdir())
    try:
        yield
    except BaseException:
        for path in set(folder.iterdir()) - before:
            path.unlink()
        raise


def sweep(folder: Path, exact: LanguageModel, variant: Variant, codes: Codes) -> list[str]:
    """The weights that get more bits, measured on the last of some codes, which is read with a text."""
    traced = BundleWeights(folder)
    c, weights = traced.config, traced.weights("lm")
    told = exact.conditions(codes.texts[-1:], codes.wavs and codes.wavs[-1:], Sampling(cfg_coef=CFG_COEF))
    columns = delay(codes.codes[-1:], c.delays, codes.codes.shape[2], c.special_token)[:, :, :COLUMNS]
    harm = sensitivities(fill(LM(c, StandardAttention()), weights), columns, told, variant.bits or 8, variant.block)
    return sensitive(harm, {name: weights[name].numel() for name in harm}, KL_BOUND / 2)


def write(
    folder: Path, name: str, variant: Variant, sensitive: Sequence[str], scales: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Write a variant's graphs as lm_inference.int4.onnx and so on, and return its entry in the manifest.

    sensitive: weights that have its larger number of bits.
    """
    attention = "ort" if Manifest.read(folder, variant=FP32).tree["cache_update"] == "in_place" else "standard"
    traced = attention  # as the fp32 graphs are lowered
    if variant.dynamic:
        attention = "standard"  # for runtimes without ONNX Runtime's own operators, or that copy caches at every call
    once = "dynamic" if variant.dynamic else "int8"  # what runs once a generation is the same for most variants
    half = variant.dtype == "float16"
    files = {
        "lm_inference": folder / f"lm_inference.{name}.onnx",
        "lm_condition": folder / f"lm_condition.{name if half else once}.onnx",
    }
    source = folder
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".float16-") as temporary:
        if half or attention != traced:
            source = folder if variant.bits is None else Path(temporary)
            suffix = f".{name}" if variant.bits is None else ""
            write_graphs(BundleWeights(folder), source, attention, torch.float16 if half else torch.float32, suffix)
        if variant.bits:
            condition, inference = (source / f"{graph}.onnx" for graph in LM_GRAPHS)
            bits = dict.fromkeys(sensitive, variant.sensitive or variant.bits)
            rewrite(inference, files["lm_inference"], variant, bits, scales if variant.cache == "int8" else None)
            if not files["lm_condition"].exists():
                rewrite(condition, files["lm_condition"], ONCE[once], {}, None)
    text = folder / "text_encoder.onnx"
    if text.exists():
        files["text_encoder"] = folder / f"text_encoder.{once}.onnx" if variant.bits else text
        if not files["text_encoder"].exists():
            rewrite(text, files["text_encoder"], ONCE[once], {}, None)
    entry: dict[str, Any] = {"graphs": {graph: describe(file) for graph, file in files.items()}}
    entry["bytes"] = size(folder, entry["graphs"])
    entry |= {"cache": variant.cache, "cache_update": CACHE_UPDATE[attention]}
    return entry | ({"sensitive": list(sensitive)} if sensitive else {})


def text_error(fp32: Manifest, variant: Manifest) -> float:
    """How far the text encoder's states are from float32's: root mean square, as a share of theirs."""
    ours, theirs = (
        np.concatenate([s for s in TextEncoder.open(m).encode(DESCRIPTIONS) if s is not None]) for m in (variant, fp32)
    )
    return float(np.sqrt(np.square(ours - theirs).mean() / np.square(theirs).mean()))


def save(folder: Path, tree: Mapping[str, Any], variants: Mapping[str, Any], default: str) -> None:
    """Write the manifest anew, whole or not at all: these variants, one of them the default. Remove other graphs."""
    old = {graph["file"] for entry in tree["variants"].values() for graph in entry["graphs"].values()}
    now = {graph["file"] for entry in variants.values() for graph in entry["graphs"].values()}
    files = {name: entry for name, entry in tree["files"].items() if name.removesuffix(".data") not in old}
    for path in sorted(folder / f"{name}{end}" for name in now for end in ("", ".data")):
        files[path.name] = tree["files"].get(path.name) or {"bytes": path.stat().st_size, "sha256": sha256(path)}
    changed = {**chosen(tree, variants[default]), "variant": default, "variants": variants, "files": files}
    changed["backends"] = {backend: preferred(backend, variants, default) for backend in BACKENDS}
    partial = folder / "manifest.json.partial"
    partial.write_text(json.dumps(changed, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / "manifest.json")
    for name in old - now:
        for end in ("", ".data"):
            (folder / f"{name}{end}").unlink()


def preferred(backend: str, variants: Mapping[str, Any], default: str) -> list[str]:
    """The variants that a backend should take, the best first; those that are worse than the bounds last."""
    held = [name for name in BACKENDS[backend] or (default,) if name in variants]
    return sorted(held, key=lambda name: not variants[name].get("quality", {}).get("within_bounds", True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    add_options(parser, required=True)
    args = parser.parse_args()
    with reported(AudioError, BundleError, ExportError, OSError, interrupted="the bundle is as it was"):
        print("\n".join(add(args.bundle, args.variant, args.clip, args.cache)))


def add_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The options of every command that writes variants."""
    default = None if required else [FP32]
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, required=required, default=default,
                        help="how weights are stored (fp32); the first within the bounds is the default")  # fmt: skip
    parser.add_argument("--cache", choices=("float", "int8"), help="of keys and values, where a variant has a choice")
    parser.add_argument("--clip", nargs="+", type=Path, default=[], help="sound to calibrate and to measure on")


if __name__ == "__main__":
    main()
