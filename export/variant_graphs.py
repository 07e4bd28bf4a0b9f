"""Write the graphs of one variant beside the float32 ones that a bundle holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clean_lm import atomic
from clean_lm.manifest import Manifest
from export.bundle_weights import BundleWeights
from export.bundle_writer import FP32, describe, size
from export.lm_graphs import CACHE_UPDATE, LM_GRAPHS, write_graphs
from export.rewrite import Calibrated, rewrite
from export.variants import ONCE, Variant


def write_variant(manifest: Manifest, name: str, variant: Variant, calibrated: Calibrated) -> dict[str, Any]:
    """Write lm_inference.int4.onnx and so on; the variant's entry in the manifest, its quality not yet in it."""
    folder, traced = manifest.folder, fp32_attention(manifest)
    # "dynamic" is for runtimes without ONNX Runtime's own operators, or that copy caches at every call
    attention = "standard" if variant.dynamic else traced
    once = "dynamic" if variant.dynamic else "int8"  # what runs once a generation is the same for most variants
    files = {
        "lm_inference": folder / f"lm_inference.{name}.onnx",
        "lm_condition": folder / f"lm_condition.{name if variant.dtype == 'float16' else once}.onnx",
    }
    if variant.bits is None:
        write_graphs(BundleWeights(manifest), folder, attention, getattr(torch, variant.dtype), f".{name}")
    else:
        with atomic.scratch(folder.parent / "traced") as temporary:
            source = folder
            if variant.dtype != "float32" or attention != traced:
                source = temporary
                write_graphs(BundleWeights(manifest), source, attention, getattr(torch, variant.dtype))
            quantize_graphs(source, files, variant, once, calibrated)
    files |= text_encoder_file(folder, variant, once)
    graphs = {graph: describe(file) for graph, file in files.items()}
    entry = {"graphs": graphs, "bytes": size(folder, graphs)}
    entry |= {"cache": variant.cache, "cache_update": CACHE_UPDATE[attention]}
    return entry | ({"sensitive": list(calibrated.others)} if calibrated.others else {})


def fp32_attention(manifest: Manifest) -> str:
    """Which attention a bundle's float32 graphs were traced with."""
    update = manifest.variants[FP32].cache_update
    return next(attention for attention, does in CACHE_UPDATE.items() if does == update)


def quantize_graphs(
    source: Path, files: Mapping[str, Path], variant: Variant, once: str, calibrated: Calibrated
) -> None:
    """Write the language model's graphs of `source` with rounded weights to `files`; one that is there stays."""
    condition, inference = (source / f"{graph}.onnx" for graph in LM_GRAPHS)
    rewrite(calibrated.stored or inference, files["lm_inference"], variant, calibrated)
    if not files["lm_condition"].exists():
        rewrite(condition, files["lm_condition"], ONCE[once], Calibrated())


def text_encoder_file(folder: Path, variant: Variant, once: str) -> dict[str, Path]:
    """The file of a variant's text encoder, written where it is not there; {} where the bundle holds no own one."""
    traced = folder / "text_encoder.onnx"
    if not traced.exists():
        return {}
    file = folder / f"text_encoder.{once}.onnx" if variant.bits else traced
    if not file.exists():
        rewrite(traced, file, ONCE[once], Calibrated())
    return {"text_encoder": file}
