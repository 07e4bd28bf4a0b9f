"""Defines what is measured: the reference workload, and what a contender must be able to do.

columns   0 ........ 300 | 301 ............... 1503        a prompt of 6 s, 30 s in all, 50 frames a second
          prefill: one call   1202 steps, one column each: 301 .. 1502 columns are in the cache before them
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Step = Callable[[], object]  # reads one more column, and draws the one after it

TEXT_TOKENS = 12
CFG_COEF, TOP_K = 3.0, 250
GUIDED, NULL = "guided", "null text"


@dataclass(frozen=True)
class Mode:
    """How a model is used: how many continuations at once, with or without a text."""

    name: str
    text: bool
    takes: int


@dataclass(frozen=True)
class Model:
    """The model's sizes that contenders need."""

    layers: int
    heads: int
    head_dim: int
    codebooks: int
    card: int
    delays: tuple[int, ...]
    text_dim: int
    sample_rate: int
    frame_rate: float

    def prompt(self, seconds: float) -> np.ndarray:
        """Random notes as audio: float32 [1, 1, samples]."""
        rng = np.random.default_rng(0)
        time = np.arange(round(seconds * self.sample_rate)) / self.sample_rate
        waves = [np.sin(2 * np.pi * pitch * time + phase) for pitch, phase in rng.uniform(60, 2000, (8, 2))]
        return (np.mean(waves, axis=0) + 0.05 * rng.standard_normal(len(time))).astype(np.float32)[None, None]

    def codes(self, batch: int, columns: int) -> np.ndarray:
        """Random codes int64 [B, K, S]."""
        return np.random.default_rng(1).integers(0, self.card, (batch, self.codebooks, columns))

    def text(self) -> np.ndarray:
        """A text encoder's states, random: float32 [TEXT_TOKENS, E]."""
        return np.random.default_rng(2).standard_normal((TEXT_TOKENS, self.text_dim), dtype=np.float32)


@dataclass(frozen=True)
class Workload:
    """Seconds of the prompt and of the whole, and the cache lengths in columns at which steps are sampled."""

    prompt: float
    duration: float
    lengths: tuple[int, ...]

    def frames(self, model: Model) -> tuple[int, int]:
        """Of the prompt, and in all."""
        return int(self.prompt * model.frame_rate), int(self.duration * model.frame_rate)

    def prefill(self, model: Model) -> int:
        """Columns that are known from the prompt."""
        return self.frames(model)[0] + min(model.delays) + 1

    def capacity(self, model: Model) -> int:
        """Columns that are read in all: the last one is drawn, but not read."""
        return self.frames(model)[1] + max(model.delays)

    def steps(self, model: Model) -> range:
        """How many columns are in the cache before each step."""
        return range(self.prefill(model), self.capacity(model))


REFERENCE = Workload(prompt=6.0, duration=30.0, lengths=(100, 750, 1490))


class Coder(Protocol):
    """A codec."""

    name: str

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """audio float32 [B, 1, samples] -> codes int64 [B, K, T]."""
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """codes int64 [B, K, T] -> audio float32 [B, 1, samples]."""
        ...


class Contender(Protocol):
    """One way to run the model."""

    name: str
    coder: Coder

    def rows(self, mode: Mode) -> int:
        """How many rows it computes."""
        ...

    def prefill(self, mode: Mode, columns: int) -> Step:
        """Read a prompt into an empty cache and draw the column after it. Returns the step that follows."""
        ...

    def seek(self, mode: Mode, at: int) -> Step:
        """A step with `at` columns of random keys and values in the cache."""
        ...

    def step_bytes(self, mode: Mode, at: int) -> int:
        """Bytes that a step reads at least: every weight that it uses, and `at` columns of the cache, once."""
        ...

    def continue_audio(self, mode: Mode, audio: np.ndarray, workload: Workload) -> np.ndarray:
        """The whole workload: audio float32 [B, 1, samples] -> [B, 1, longer]."""
        ...


def fill_random(array: np.ndarray) -> None:
    """Fill a cache of any type with plausible values: normal floats, or integers from their whole range."""
    rng, flat, block = np.random.default_rng(3), array.reshape(-1), 1 << 20
    if array.dtype.kind == "f":
        values = rng.standard_normal(min(block, flat.size), dtype=np.float32).astype(array.dtype)
    else:
        info = np.iinfo(array.dtype)
        values = rng.integers(info.min, info.max, min(block, flat.size), dtype=array.dtype, endpoint=True)
    for start in range(0, flat.size, block):  # one block again and again: 600 MB of random numbers take seconds
        part = flat[start : start + block]
        part[...] = values[: part.size]
