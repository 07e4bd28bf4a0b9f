"""What several test files share: where things are, upstream's arrays, and stand-ins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
NAMES = ("text", "stereo", "audiogen", "finetune_fp16")  # whose layers attend to the text
PREFIXED = ("melody", "style")  # which read melody or style and text before the first column
ATTENTION = ("ort", "standard")


@dataclass(frozen=True)
class Golden:
    """One folder of upstream's arrays."""

    folder: Path
    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "state_dict.bin"

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def get(self, name: str) -> np.ndarray | None:
        return self.arrays.get(name)

    def texts(self, descriptions: list[str | None]) -> list[np.ndarray | None]:
        """Text states without padding, None for null text."""
        states, mask = self["t5.two.hidden"], self["t5.two.attention_mask"].astype(bool)
        known = {self.meta["D1"]: states[0][mask[0]], self.meta["D2"]: states[1][mask[1]], None: None}
        return [known[description] for description in descriptions]


class GoldenTexts:
    """Stands for the text encoder: gives upstream's states, whose tokenizer was a stand-in."""

    def __init__(self, golden: Golden):
        self.golden = golden

    def encode(self, descriptions: Sequence[str | None]) -> list[np.ndarray | None]:
        return self.golden.texts(list(descriptions))


def feed(decoder: Any, columns: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Columns to a decoder: a prefill into empty caches, else a step."""
    return (decoder.step if decoder.columns else decoder.prefill)(columns, uniform)
