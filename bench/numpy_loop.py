"""The loop of contenders whose graph gives logits: guidance, sampling and the delay pattern in numpy."""

from pathlib import Path
from typing import Protocol

import numpy as np

from bench import ours
from bench.workload import CFG_COEF, TOP_K, Coder, Mode, Step, Workload
from clean_lm.delay_pattern import UNKNOWN, delay, undelay


class Reader(Protocol):
    """A graph and the cache of one generation."""

    def __call__(self, rows: np.ndarray, at: int) -> np.ndarray:
        """Read columns int64 [R, K, S], `at` columns being in the cache -> logits [R, K, card] of the last one."""
        ...


class NumpyLoop:
    """Two rows with a text, one without. Contenders say how a generation's reader is made."""

    def __init__(self, bundle: Path, coder: Coder):
        self.bundle, self.coder, self.model = bundle, coder, ours.sizes(bundle)

    def reader(self, mode: Mode, at: int) -> Reader:
        """A new generation's, with `at` columns of random keys and values in its cache."""
        raise NotImplementedError

    def rows(self, mode: Mode) -> int:
        return mode.takes * (2 if mode.text else 1)

    def run(self, mode: Mode, at: int, top_k: int = TOP_K) -> "Run":
        return Run(self.reader(mode, at), mode, at, top_k)

    def prefill(self, mode: Mode, columns: int) -> Step:
        return self.run(mode, 0).after(self.model.codes(mode.takes, columns))

    def seek(self, mode: Mode, at: int) -> Step:
        return self.run(mode, at).after(self.model.codes(mode.takes, 1))

    def continue_audio(self, mode: Mode, audio: np.ndarray, workload: Workload) -> np.ndarray:
        return self.coder.decode(self.generate(mode, self.coder.encode(audio), workload.frames(self.model)[1]))

    def generate(self, mode: Mode, prompt: np.ndarray, frames: int, top_k: int = TOP_K) -> np.ndarray:
        """prompt codes int64 [B, K, P] -> [B, K, frames]. top_k 1 is greedy."""
        columns = delay(prompt, self.model.delays, frames, self.model.card)
        run = self.run(mode, 0, top_k)
        known = prompt.shape[2] + min(self.model.delays) + 1
        new = columns[:, :, :known]
        for s in range(known, columns.shape[2]):
            drawn = run(new)
            columns[:, :, s] = np.where(columns[:, :, s] == UNKNOWN, drawn, columns[:, :, s])
            new = columns[:, :, s : s + 1]
        return undelay(columns, self.model.delays)


class Run:
    """One generation: the body of its loop."""

    def __init__(self, reader: Reader, mode: Mode, at: int, top_k: int):
        self.reader, self.mode, self.at, self.top_k = reader, mode, at, top_k
        self.rng = np.random.default_rng(0)
        self.logits = np.zeros(0, dtype=np.float32)

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Read columns int64 [B, K, S], draw the one after the last [B, K]."""
        rows = np.concatenate([codes] * (2 if self.mode.text else 1))
        logits = self.reader(rows, self.at)
        self.at += codes.shape[2]
        cond, uncond = logits[: len(codes)], logits[-len(codes) :]
        self.logits = uncond + (cond - uncond) * CFG_COEF if self.mode.text else cond
        return draw(self.logits, self.rng.random((*codes.shape[:2], 1)), self.top_k)

    def after(self, codes: np.ndarray) -> Step:
        """Read columns int64 [B, K, S]. Returns the step that reads the column after them, and so on."""
        codes = self(codes)

        def step() -> None:
            nonlocal codes
            codes = self(codes[:, :, None])

        return step


def draw(logits: np.ndarray, uniform: np.ndarray, top_k: int) -> np.ndarray:
    """Draw one of the top_k codes: logits [B, K, card], uniform [B, K, 1] in [0, 1) -> int64 [B, K]."""
    least = np.partition(logits, -top_k, axis=-1)[..., -top_k, None]
    weights = np.where(logits >= least, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0).cumsum(axis=-1)
    return (weights <= uniform * weights[..., -1:]).sum(axis=-1)
