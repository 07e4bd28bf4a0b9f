"""Runs the export with a growing cache as optimum runs its own: every step returns a new cache."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from bench import ours
from bench.weights import read_bytes
from bench.workload import CFG_COEF, TOP_K, Coder, Mode, Step, Workload, fill_random
from clean_lm.delay_pattern import UNKNOWN, delay, undelay

FILE = "decoder.onnx"


class Optimum:
    """Two rows with a text, one without; guidance and sampling in numpy."""

    name = "optimum-style"

    def __init__(self, folder: Path, bundle: Path, coder: Coder):
        self.coder: Coder = coder
        self.model, self.path = ours.sizes(bundle), folder / FILE
        self.condition = ours.condition(bundle)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def rows(self, mode: Mode) -> int:
        return mode.takes * (2 if mode.text else 1)

    def prefill(self, mode: Mode, columns: int) -> Step:
        return self._go_on(self._run(mode, 0), mode, columns)

    def seek(self, mode: Mode, at: int) -> Step:
        return self._go_on(self._run(mode, at), mode, 1)

    def step_bytes(self, mode: Mode, at: int) -> int:
        m = self.model
        return read_bytes(self.path, text=True) + at * self.rows(mode) * m.layers * 2 * m.heads * m.head_dim * 4

    def continue_audio(self, mode: Mode, audio: np.ndarray, workload: Workload) -> np.ndarray:
        return self.coder.decode(self.generate(mode, self.coder.encode(audio), workload.frames(self.model)[1]))

    def generate(self, mode: Mode, prompt: np.ndarray, frames: int, top_k: int = TOP_K) -> np.ndarray:
        """prompt codes int64 [B, K, P] -> [B, K, frames]. top_k 1 is greedy."""
        columns = delay(prompt, self.model.delays, frames, self.model.card)
        run = self._run(mode, 0, top_k)
        known = prompt.shape[2] + min(self.model.delays) + 1
        new = columns[:, :, :known]
        for s in range(known, columns.shape[2]):
            drawn = run(new)
            columns[:, :, s] = np.where(columns[:, :, s] == UNKNOWN, drawn, columns[:, :, s])
            new = columns[:, :, s : s + 1]
        return undelay(columns, self.model.delays)

    def _go_on(self, run: "Run", mode: Mode, columns: int) -> Step:
        codes = run(self.model.codes(mode.takes, columns))

        def step() -> None:
            nonlocal codes
            codes = run(codes[:, :, None])

        return step

    def _run(self, mode: Mode, at: int, top_k: int = TOP_K) -> "Run":
        rows, m = self.rows(mode), self.model
        states = np.zeros((rows, len(m.text()) if mode.text else 1, m.text_dim), dtype=np.float32)
        mask = np.zeros(states.shape[:2], dtype=np.int64)
        if mode.text:
            states[: mode.takes], mask[: mode.takes] = m.text(), 1
        cross = self.condition.run({"text_states": states, "text_mask": mask})
        past = np.zeros((rows, m.heads, at, m.head_dim), dtype=np.float32)
        fill_random(past)
        feeds = cross | {name.replace("present", "past_key_values"): past.copy() for name in self.outputs[1:]}
        return Run(self, feeds, at, mode, top_k)


class Run:
    """One generation: its cache, and the body of its loop."""

    def __init__(self, decoder: Optimum, feeds: dict[str, np.ndarray], at: int, mode: Mode, top_k: int):
        self.decoder, self.feeds, self.at, self.mode, self.top_k = decoder, feeds, at, mode, top_k
        self.rng = np.random.default_rng(0)
        self.logits = np.zeros(0, dtype=np.float32)

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Read columns int64 [B, K, S], draw the one after the last [B, K]."""
        rows = np.concatenate([codes] * (2 if self.mode.text else 1))
        self.feeds |= {"codes": rows, "position": np.array([self.at])}
        logits, *presents = map(np.asarray, self.decoder.session.run(self.decoder.outputs, self.feeds))
        names = self.decoder.outputs[1:]
        self.feeds |= {n.replace("present", "past_key_values"): p for n, p in zip(names, presents, strict=True)}
        self.at += codes.shape[2]
        last = logits[:, -1]
        cond, uncond = last[: len(codes)], last[-len(codes) :]
        self.logits = uncond + (cond - uncond) * CFG_COEF if self.mode.text else cond
        return draw(self.logits, self.rng.random((*codes.shape[:2], 1)), self.top_k)


def draw(logits: np.ndarray, uniform: np.ndarray, top_k: int) -> np.ndarray:
    """Draw one of the top_k codes: logits [B, K, card], uniform [B, K, 1] in [0, 1) -> int64 [B, K]."""
    least = np.partition(logits, -top_k, axis=-1)[..., -top_k, None]
    weights = np.where(logits >= least, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0).cumsum(axis=-1)
    return (weights <= uniform * weights[..., -1:]).sum(axis=-1)
