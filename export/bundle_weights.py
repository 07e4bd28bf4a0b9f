"""The float32 weights of a bundle's language model, read back from its graphs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from clean_lm.manifest import BundleError
from clean_lm.models.config import LMConfig
from clean_lm.models.lm import LM
from clean_lm.models.transformer import StandardAttention
from export.bundle_writer import FP32
from export.lm_graphs import LM_GRAPHS, text_module
from export.onnx_graph import load, weight_of
from export.opened import Bundle, opened

# What the manifest's `model` and LMConfig have by the same name.
SAME = ("layers", "heads", "dim", "codebooks", "card", "delays", "text_dim", "text_encoder", "max_duration",
        "sample_rate", "channels")  # fmt: skip


class BundleWeights:
    """A source of weights for write_graphs, where the checkpoint is no longer at hand."""

    def __init__(self, bundle: Bundle):
        """Raises FileNotFoundError, BundleError."""
        self.manifest = opened(bundle, variant=FP32)
        for graph in LM_GRAPHS:
            self.manifest.check_files(self.manifest.files_of(graph))
        self.graphs = {
            name: load(self.manifest.folder / f"{graph}.onnx").graph.initializers
            for name, graph in zip(("condition", "lm"), LM_GRAPHS, strict=True)
        }
        self.config = self._config()

    def weights(self, component: str, dtype: torch.dtype = torch.float32) -> "Initializers":
        """The tensors of "lm" or "condition" by the names that its module has for them."""
        module = LM(self.config, StandardAttention()) if component == "lm" else text_module(self.config)
        names, there = [name for name, _ in module.named_parameters()], self.graphs[component]
        if missing := [name for name in names if name not in there]:
            raise BundleError(f"{self.manifest.folder}: fp32 has no weight {missing[0]}; export the bundle again")
        return Initializers({name: there[name] for name in names}, dtype)

    def _config(self) -> LMConfig:
        model = self.manifest.language_model
        prefix = "prefix" in self.manifest.graphs["lm_inference"].inputs
        hidden, dim = weight_of(self.graphs["lm"]["layers.0.linear2"]).shape
        return LMConfig(
            hidden_scale=hidden // dim,
            solver="musicgen",  # decides the defaults alone, which the manifest has
            cross=() if prefix else ("description",),
            prepend=("description",) if prefix else (),
            self_wav=None,
            **{name: getattr(model, name) for name in SAME},
        )


@dataclass(frozen=True)
class Initializers(Mapping[str, Tensor]):
    """A graph's weights, memory-mapped, or converted when asked for and not kept."""

    initializers: Mapping[str, ir.Value]
    dtype: torch.dtype

    def __getitem__(self, name: str) -> Tensor:
        return weight_of(self.initializers[name]).to(self.dtype)

    def __contains__(self, name: object) -> bool:  # Mapping's own reads the tensor
        return name in self.initializers

    def __iter__(self) -> Iterator[str]:
        return iter(self.initializers)

    def __len__(self) -> int:
        return len(self.initializers)
