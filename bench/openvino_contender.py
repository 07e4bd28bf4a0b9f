"""OpenVINO's CPU plugin, as its documentation has decoders run: a stateful graph, latency first, an 8-bit cache.

Of the rows, only those with a text compute cross-attention, as clean_lm's do. Guidance and sampling are numpy's. What
is not set here is the plugin's default: threads, precision, and in products with compressed weights 8-bit activations
where the processor has instructions for them.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov  # pyright: ignore[reportMissingImports]

from bench import ours
from bench.numpy_loop import NumpyLoop
from bench.weights import read_bytes
from bench.workload import Coder, Mode, fill_random
from clean_lm.session import Graph

WEIGHTS = ("fp32", "int8", "int4")  # how openvino_export.py stores them
FILE = "decoder.xml"
EXACT = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
BYTES = {"fp32": 4, "int8": 1, "int4": (4 + (16 + 4) / 128) / 8}  # of a weight; in 4 bits 128 share a scale and a zero


class OpenVINO(NumpyLoop):
    """One way to store weights. In fp32 nothing is rounded."""

    def __init__(self, folder: Path, weights: str, bundle: Path, coder: Coder):
        super().__init__(bundle, coder)
        self.name, self.weights = f"openvino {weights}", weights
        options = {"PERFORMANCE_HINT": "LATENCY", "KV_CACHE_PRECISION": "u8"}
        options |= EXACT if weights == "fp32" else {}
        self.compiled: Any = ov.Core().compile_model(folder / weights / FILE, "CPU", options)

    @functools.cached_property
    def condition(self) -> Graph:
        """The text's keys and values: opened for the first text."""
        return ours.condition(self.bundle)

    def step_bytes(self, mode: Mode, at: int) -> int:
        m = self.model
        weights = read_bytes(ours.graph_file(self.bundle, ours.FP32), mode.text) // 4 * BYTES[self.weights]
        head = 4 * m.head_dim if self.weights == "fp32" else m.head_dim + 8  # a float32 scale and zero
        return round(weights + at * self.rows(mode) * m.layers * 2 * m.heads * head)

    def reader(self, mode: Mode, at: int) -> "Stateful":
        request, m = self.compiled.create_infer_request(), self.model
        if at:
            past = np.empty((self.rows(mode), m.heads, at, m.head_dim), dtype=np.float32)
            fill_random(past)
            for state in request.query_state():
                state.state = ov.Tensor(past)
        return Stateful(request, {**self.cross(mode), "beam_idx": np.arange(self.rows(mode), dtype=np.int32)})

    def cross(self, mode: Mode) -> dict[str, np.ndarray]:
        """Keys and values of the text for the rows that have one."""
        m = self.model
        if mode.text:
            states = np.repeat(m.text()[None], mode.takes, axis=0)
            return self.condition.run({"text_states": states, "text_mask": np.ones(states.shape[:2], dtype=np.int64)})
        none = np.zeros((0, m.heads, 1, m.head_dim), dtype=np.float32)
        names = [value.any_name for value in self.compiled.inputs]
        return {name: none for name in names if name.startswith("cross_key_values.")}


class Stateful:
    """The state of one generation, which the graph keeps."""

    def __init__(self, request: Any, feeds: dict[str, np.ndarray]):
        self.request, self.feeds = request, feeds

    def __call__(self, rows: np.ndarray, at: int) -> np.ndarray:
        self.feeds |= {"codes": rows, "position": np.array([at])}
        return self.request.infer(self.feeds, share_inputs=True)["logits"]
