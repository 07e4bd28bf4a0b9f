"""Export a MERT to ONNX: style_features.onnx and manifest.json in a new folder.

  python export/mert.py --mert MERT-v1-95M
  python export/mert.py --mert MERT-v1-95M --out bundle

MERT turns audio into the features that style models are conditioned on. --mert is a Hugging Face folder of a MERT:
config.json, and model.safetensors or pytorch_model.bin. The graph is then run beside the PyTorch modules, and the
largest difference is printed; a graph that disagrees is not kept.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clean_lm.console import Parser
from clean_lm.manifest import BundleError
from clean_lm.models.config import ConfigError, MertConfig
from clean_lm.models.mert import Mert
from clean_lm.session import open_graph
from export.bundle_writer import draft, new_folder, publish
from export.commands import errors_as_one_line, print_files, progress, require_new, tell
from export.onnx_graph import TensorSpec, write
from export.opened import Bundle, opened
from export.parity import Verdict, largest_difference, require_agreement
from weights.checkpoint import CheckpointError
from weights.mapping import MappingError, Model, fill, require_finite
from weights.mert import load

DTYPE = torch.float32
FEATURES = 75  # vectors of the audio that is compared
GRAPHS = ("style_features",)

ERRORS = (BundleError, CheckpointError, ConfigError, MappingError)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mert", type=Path, required=True, help="a Hugging Face folder of a MERT")
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    args = parser.parse_args()
    with errors_as_one_line(*ERRORS):
        export(args.mert, args.out)


def export(mert: Path, out: Path) -> None:
    """Write the bundle, and print what was written and how far it is from PyTorch."""
    start = time.perf_counter()
    require_new(out)
    model = load(mert)
    tell(model.checkpoint.notes)
    require_finite(model)
    require_new(out, model.parameters * DTYPE.itemsize)
    with new_folder(out, model.parameters * DTYPE.itemsize) as folder:
        write_graphs(model, folder)
        bundle = draft(folder, describe(model.config), {}, None, GRAPHS)
        progress("comparing with the PyTorch modules")
        lines = require_agreement({"": parity(bundle, model)})
        publish(bundle)
    print_files(out, model.parameters, time.perf_counter() - start)
    print("\n".join(lines))


def write_graphs(model: Model[MertConfig], folder: Path) -> None:
    """Write style_features.onnx with its weights."""
    inputs, outputs = mert_specs(model.config)
    write(Mert(model.config), model.weights("mert", DTYPE), DTYPE, inputs, outputs, folder / "style_features.onnx")


def mert_specs(c: MertConfig) -> tuple[dict[str, Any], list[TensorSpec]]:
    """The input of style_features, by argument, and its output."""
    inputs = {"audio": TensorSpec("audio", DTYPE, ("styles", "samples"))}
    return inputs, [TensorSpec("features", DTYPE, ("styles", "features", c.dim))]


def describe(c: MertConfig) -> dict[str, Any]:
    """What the manifest's `model` says of MERT: the audio that it takes, and the features that it gives."""
    return {
        "style_sample_rate": c.sample_rate,
        "style_feature_dim": c.dim,
        "style_hop": c.hop,
        "style_receptive_field": c.receptive_field,
    }


def parity(bundle: Bundle, model: Model[MertConfig], seed: int = 0) -> Verdict:
    """The graph beside the PyTorch modules in float64, on noise."""
    c, rng = model.config, np.random.default_rng(seed)
    samples = c.receptive_field + FEATURES * c.hop - 1
    audio = 0.3 * rng.standard_normal((2, samples)).astype(np.float32)
    exact, pytorch = (reference_features(model, audio, dtype) for dtype in (torch.float64, DTYPE))
    # The bundle is opened last: its weights and PyTorch's are not in memory at once.
    ours = open_graph(opened(bundle, hashes=False), "style_features").run({"audio": audio})["features"]
    difference = largest_difference(ours, pytorch, exact, "the largest feature")
    return Verdict(f"{exact.shape[1]} features of {samples / c.sample_rate:.1f} s", (difference,))


@torch.inference_mode()
def reference_features(model: Model[MertConfig], audio: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The PyTorch modules in `dtype`: audio [B, samples] -> features [B, T, dim]."""
    return fill(Mert(model.config), model.weights("mert", dtype))(torch.from_numpy(audio).to(dtype)).numpy()


if __name__ == "__main__":
    main()
