"""Export a MERT to ONNX: style_features.onnx and manifest.json in a new folder.

  python export/mert.py --mert MERT-v1-95M
  python export/mert.py --mert MERT-v1-95M --out bundle

--mert is a Hugging Face folder of a MERT: config.json, and model.safetensors or pytorch_model.bin. The graph is then
run beside the PyTorch modules, and the largest difference is printed.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clean_lm.manifest import Manifest
from clean_lm.models.config import ConfigError, MertConfig
from clean_lm.models.mert import Mert
from export.bundle_writer import ExportError, new_folder, print_files, reported, write_manifest
from export.onnx_graph import TensorSpec, say, write
from export.verify import AGREES, DISAGREES, SHARP, TOLERANCE
from weights.checkpoint import CheckpointError
from weights.mapping import MappingError, Model, fill
from weights.mert import load

DTYPE = torch.float32
FEATURES = 75  # of the audio that is compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mert", type=Path, required=True, help="a Hugging Face folder of a MERT")
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    args = parser.parse_args()
    with reported(CheckpointError, ConfigError, MappingError, ExportError, FileNotFoundError):
        export(args.mert, args.out)


def export(mert: Path, out: Path) -> None:
    """Write the bundle, and print what was written and how far it is from PyTorch."""
    start = time.perf_counter()
    model = load(mert)
    with new_folder(out, model.parameters * DTYPE.itemsize) as folder:
        write_graphs(model, folder)
        write_manifest(folder, describe(model.config), {}, None, ["style_features"])
        say("comparing with the PyTorch modules")
        verdict = parity(folder, model)
        if not verdict.startswith(AGREES):
            raise ExportError(f"nothing was written: the graph is not what PyTorch computes. {verdict}")
    print_files(out, model.parameters, time.perf_counter() - start)
    print(verdict)


def write_graphs(model: Model[MertConfig], folder: Path) -> None:
    """Write style_features.onnx with its weights."""
    inputs, outputs = mert_ports(model.config)
    write(Mert(model.config), model.weights("mert", DTYPE), DTYPE, inputs, outputs, folder / "style_features.onnx")


def mert_ports(c: MertConfig) -> tuple[dict[str, Any], list[TensorSpec]]:
    """What goes into style_features, by argument, and what comes out."""
    inputs = {"audio": TensorSpec("audio", DTYPE, ("styles", "samples"))}
    return inputs, [TensorSpec("features", DTYPE, ("styles", "features", c.dim))]


def describe(c: MertConfig) -> dict[str, Any]:
    """What the manifest's `model` says of what hears a style: the audio that it takes, and its features."""
    return {
        "style_sample_rate": c.sample_rate,
        "style_feature_dim": c.dim,
        "style_hop": c.hop,
        "style_receptive_field": c.receptive_field,
    }


def parity(bundle: Path, model: Model[MertConfig], seed: int = 0) -> str:
    """One line on the graph beside the PyTorch modules in float64, on noise; it begins with the verdict."""
    c, rng = model.config, np.random.default_rng(seed)
    samples = c.receptive_field + FEATURES * c.hop - 1
    audio = 0.3 * rng.standard_normal((2, samples)).astype(np.float32)
    exact, own = (reference_features(model, audio, dtype) for dtype in (torch.float64, DTYPE))
    # The bundle is opened last: its weights and PyTorch's are not in memory at once.
    graph = Manifest.read(bundle, hashes=False).graph("style_features")
    (ours,) = graph.session.run(["features"], {"audio": audio})
    largest = np.abs(exact).max()
    difference, rounding = (float(np.abs(np.asarray(x) - exact).max() / largest) for x in (ours, own))
    tolerance = max(TOLERANCE, SHARP * rounding)
    return (
        f"{AGREES if difference <= tolerance else DISAGREES} with the PyTorch modules: {exact.shape[1]} features of "
        f"{samples / c.sample_rate:.1f} s, largest difference {difference:.1e} of the largest (tolerance "
        f"{tolerance:.1e}, PyTorch's own {rounding:.1e})"
    )


@torch.inference_mode()
def reference_features(model: Model[MertConfig], audio: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The PyTorch modules in `dtype`: audio [B, samples] -> features [B, T, dim]."""
    return fill(Mert(model.config), model.weights("mert", dtype))(torch.from_numpy(audio).to(dtype)).numpy()


if __name__ == "__main__":
    main()
