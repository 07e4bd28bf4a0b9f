"""Runs the export with a growing cache as optimum runs its own: every step returns a new cache."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from bench import ours
from bench.numpy_loop import NumpyLoop
from bench.weights import read_bytes
from bench.workload import Coder, Mode, fill_random

FILE = "decoder.onnx"


class Optimum(NumpyLoop):
    """Every row attends to a text: those without one to zeros."""

    name = "optimum-style"

    def __init__(self, folder: Path, bundle: Path, coder: Coder):
        super().__init__(bundle, coder)
        self.path, self.condition = folder / FILE, ours.condition(bundle)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def step_bytes(self, mode: Mode, at: int) -> int:
        m = self.model
        return read_bytes(self.path, text=True) + at * self.rows(mode) * m.layers * 2 * m.heads * m.head_dim * 4

    def reader(self, mode: Mode, at: int) -> "Growing":
        rows, m = self.rows(mode), self.model
        states = np.zeros((rows, len(m.text()) if mode.text else 1, m.text_dim), dtype=np.float32)
        mask = np.zeros(states.shape[:2], dtype=np.int64)
        if mode.text:
            states[: mode.takes], mask[: mode.takes] = m.text(), 1
        cross = self.condition.run({"text_states": states, "text_mask": mask})
        past = np.zeros((rows, m.heads, at, m.head_dim), dtype=np.float32)
        fill_random(past)
        feeds = cross | {name.replace("present", "past_key_values"): past.copy() for name in self.outputs[1:]}
        return Growing(self, feeds)


class Growing:
    """The cache of one generation: each call's outputs are the next one's inputs."""

    def __init__(self, decoder: Optimum, feeds: dict[str, np.ndarray]):
        self.decoder, self.feeds = decoder, feeds

    def __call__(self, rows: np.ndarray, at: int) -> np.ndarray:
        self.feeds |= {"codes": rows, "position": np.array([at])}
        logits, *presents = map(np.asarray, self.decoder.session.run(self.decoder.outputs, self.feeds))
        names = self.decoder.outputs[1:]
        self.feeds |= {n.replace("present", "past_key_values"): p for n, p in zip(names, presents, strict=True)}
        return logits[:, -1]
