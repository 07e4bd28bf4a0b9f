"""Export a T5 text encoder to ONNX: text_encoder.onnx, tokenizer.json and manifest.json in a new folder.

  python export/text.py --text t5-base
  python export/text.py --text musicgen-small --out bundle

--text is a Hugging Face folder of a T5 (t5-base, t5-large, flan) or of a MusicGen, whose text encoder is taken:
config.json, model.safetensors or pytorch_model.bin, and tokenizer.json or spiece.model. The graph is then run beside
the PyTorch modules, and the largest difference is printed; a graph that disagrees is not kept.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clean_lm.console import Parser
from clean_lm.manifest import TOKENIZER, BundleError
from clean_lm.models.config import ConfigError, TextConfig
from clean_lm.models.t5 import T5Encoder, TextLayer
from clean_lm.session import open_graph
from export.bundle_writer import draft, new_folder, publish
from export.commands import errors_as_one_line, print_files, progress, require_new, tell
from export.onnx_graph import TensorSpec, write
from export.opened import Bundle, opened
from export.parity import Verdict, largest_difference, require_agreement
from weights.checkpoint import CheckpointError
from weights.mapping import MappingError, Model, fill, require_finite
from weights.text import load
from weights.tokenizer import open_tokenizer

DTYPE = torch.float32  # T5's activations leave float16's range
LENGTHS = (20, 7)  # tokens of the texts that are compared: one of them padded
GRAPHS = ("text_encoder",)

ERRORS = (BundleError, CheckpointError, ConfigError, MappingError)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a Hugging Face folder of a T5, or of a MusicGen")
    parser.add_argument("--base", type=Path, help="the model of a LoRA adapter")
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    args = parser.parse_args()
    with errors_as_one_line(*ERRORS):
        export(args.text, args.out, args.base)


def export(text: Path, out: Path, base: Path | None = None) -> None:
    """Write the bundle, and print what was written and how far it is from PyTorch."""
    start = time.perf_counter()
    require_new(out)
    model = load(text, base)
    tell(model.checkpoint.notes)
    require_finite(model)
    tokenizer = open_tokenizer(tokenizer_folder(model), model.config)
    require_new(out, model.parameters * DTYPE.itemsize)
    with new_folder(out, model.parameters * DTYPE.itemsize) as folder:
        write_graphs(model, folder)
        tokenizer.save(str(folder / TOKENIZER))
        bundle = draft(folder, describe(model.config), {}, None, GRAPHS)
        progress("comparing with the PyTorch modules")
        lines = require_agreement({"": parity(bundle, model)})
        publish(bundle)
    print_files(out, model.parameters, time.perf_counter() - start)
    print("\n".join(lines))


def tokenizer_folder(model: Model[TextConfig]) -> Path:
    """Where a text encoder's tokenizer is."""
    return model.checkpoint.tokenizer or model.checkpoint.path


def write_graphs(model: Model[TextConfig], folder: Path) -> None:
    """Write text_encoder.onnx with its weights."""
    inputs, outputs = text_specs(model.config)
    weights = model.weights("text_encoder", DTYPE)
    write(T5Encoder(model.config), weights, DTYPE, inputs, outputs, folder / "text_encoder.onnx")


def text_specs(c: TextConfig) -> tuple[dict[str, Any], list[TensorSpec]]:
    """The inputs of text_encoder, by argument, and its output."""
    inputs = {name: TensorSpec(name, torch.int64, ("rows", "text")) for name in ("input_ids", "attention_mask")}
    return inputs, [TensorSpec("last_hidden_state", DTYPE, ("rows", "text", c.dim))]


def describe(c: TextConfig) -> dict[str, Any]:
    """What the manifest's `model` says of the text encoder: the width of its states, and its special tokens."""
    return {"text_dim": c.dim, "text_vocab": c.vocab, "text_pad_token": c.pad_token, "text_eos_token": c.eos_token}


def parity(bundle: Bundle, model: Model[TextConfig], seed: int = 0) -> Verdict:
    """The graph beside the PyTorch modules in float64, on random tokens."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    tokens = np.where(mask, rng.integers(0, model.config.vocab, mask.shape), model.config.pad_token)
    exact, pytorch = (reference_states(model, tokens, mask, dtype) for dtype in (torch.float64, DTYPE))
    # The bundle is opened last: its weights and PyTorch's are not in memory at once.
    graph = open_graph(opened(bundle, hashes=False), "text_encoder")
    ours = graph.run({"input_ids": tokens, "attention_mask": mask})["last_hidden_state"]
    text = mask.astype(bool)
    difference = largest_difference(ours[text], pytorch[text], exact[text], "the largest state")
    return Verdict(f"texts of {' and '.join(map(str, LENGTHS))} tokens", (difference,))


@torch.inference_mode()
def reference_states(model: Model[TextConfig], tokens: np.ndarray, mask: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The PyTorch modules in `dtype` on tokens and mask int64 [R, N] -> [R, N, E], one layer's weights at a time."""
    c, weights = model.config, model.weights("text_encoder", dtype)
    ends = {name: weights[name] for name in weights if not name.startswith("layers.")}
    shell = fill(T5Encoder(replace(c, layers=0)), ends)
    x, bias = shell.embed(torch.from_numpy(tokens)), shell.bias(torch.from_numpy(mask))
    for i in range(c.layers):
        x = fill(TextLayer(c), model.weights(f"text_encoder.layers.{i}", dtype))(x, bias)
    return shell.out_norm(x).numpy()


if __name__ == "__main__":
    main()
