"""A bundle's graphs, opened in ONNX Runtime when they are first run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort

from clean_lm.manifest import BundleError, GraphInfo, LoadOptions, Manifest, TensorInfo

DTYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int8": np.int8}


@dataclass(frozen=True)
class Graph:
    """A graph and its tensors by name."""

    path: Path
    info: GraphInfo
    options: LoadOptions

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        return self.info.inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        return self.info.outputs

    def open(self) -> "Graph":
        """Open its session now, for a graph that every generation runs. Raises BundleError."""
        assert self.session
        return self

    @cached_property
    def session(self) -> ort.InferenceSession:
        """Opened at the first use: without texts, the graphs that read them are never loaded. Raises BundleError."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.options.get("threads") or 0
        options.log_severity_level = 3
        providers = list(self.options.get("providers", ("CPUExecutionProvider",)))
        try:
            session = ort.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime has no common base class for its own
            raise BundleError(f"{self.path}: ONNX Runtime does not load it: {error}") from None
        differ = {tensor.name for tensor in session.get_inputs()} ^ self.inputs.keys()
        if differ:
            raise BundleError(f"{self.path}: its inputs are not those of manifest.json: {sorted(differ)}")
        return session

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run the graph once: arrays by input name -> arrays by output name: of `outputs`, or of all."""
        names = list(outputs or self.outputs)
        found = self.session.run(names, dict(feeds))
        return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}

    def zeros(self, name: str, sizes: Mapping[str, int]) -> np.ndarray:
        """An array for one tensor, its symbolic sizes taken from `sizes`."""
        tensor = self.inputs.get(name) or self.outputs[name]
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        return np.zeros(shape, dtype=DTYPES[tensor.dtype])


def open_graph(manifest: Manifest, name: str) -> Graph:
    """One graph of a bundle, its files checked, its session not yet open. Raises FileNotFoundError, BundleError."""
    info = manifest.require_graph(name)
    manifest.check_files(manifest.files_of(name))
    return Graph(manifest.folder / info.file, info, manifest.options)
