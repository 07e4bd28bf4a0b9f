"""Compare a bundle with the PyTorch modules that it was exported from, and with upstream's own arrays.

  python export/verify.py --bundle bundle --ckpt state_dict.bin
  python export/verify.py --bundle bundle --ckpt state_dict.bin --golden tests/golden/text

Prefill and steps, guided and not, on the same codes; exits with 1 where they disagree.
"""

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clean_lm.layers import StandardAttention
from clean_lm.lm import LM, Condition
from clean_lm.runtime import Decoder, LanguageModel, Sampling
from weights.lm import Model, fill, load

PREFILL, STEPS = 13, 20
GREEDY = Sampling(use_sampling=False)


@dataclass(frozen=True)
class Comparison:
    """One call of the model, ours beside a reference."""

    case: str
    step: str
    max: float
    mean: float
    largest: float  # the reference's largest logit
    top5: float  # how many of the reference's five best codes are among ours
    tokens: float  # how many greedy codes are equal

    @property
    def relative(self) -> float:
        return self.max / self.largest


def compare(case: str, step: str, ours: np.ndarray, reference: np.ndarray) -> Comparison:
    """Logits [B, K, card] of one call."""
    difference = np.abs(ours.astype(np.float64) - reference)
    best, best_reference = (np.argsort(-x, axis=-1, kind="stable")[..., :5] for x in (ours, reference))
    shared = (best[..., :, None] == best_reference[..., None, :]).any(-1).mean()
    tokens = (best[..., 0] == best_reference[..., 0]).mean()
    return Comparison(
        case, step, difference.max(), difference.mean(), np.abs(reference).max(), float(shared), float(tokens)
    )


class TorchDecoder:
    """The PyTorch modules with the calls of runtime.Decoder."""

    def __init__(self, lm: LM, batch: int, cross: list, sampling: Sampling, capacity: int):
        c = lm.config
        self.lm, self.cross, self.sampling = lm, cross, sampling
        self.rows, self.columns = cross[0][0].shape[0], 0
        shape = (self.rows, c.heads, capacity, c.head_dim)
        self.caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(c.layers)]

    @torch.inference_mode()
    def __call__(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        s, new = self.sampling, codes.shape[2]
        rows = np.concatenate([codes] * (self.rows // codes.shape[0]))
        scalars = (torch.tensor(float(x)) for x in (s.cfg_coef, s.temperature if s.use_sampling else 0))
        position = torch.tensor([self.columns])
        next_codes, logits, present = self.lm(
            torch.from_numpy(rows), position, self.caches, self.cross, torch.from_numpy(uniform),
            *scalars, torch.tensor(s.top_k), torch.tensor(float(s.top_p)),
        )  # fmt: skip
        for cache, columns in zip(self.caches, present, strict=True):
            for buffer, fresh in zip(cache, columns, strict=True):
                buffer[:, :, self.columns : self.columns + new] = fresh
        self.columns += new
        self.logits = logits.numpy()
        return next_codes.numpy()


def force(decoder: Decoder | TorchDecoder, columns: np.ndarray, prefill: int) -> np.ndarray:
    """Feed given columns int64 [B, K, S], a prefill and then one by one -> logits [calls, B, K, card]."""
    uniform = np.zeros(columns.shape[:2], dtype=np.float32)
    logits = []
    for start, end in [(0, prefill), *((s, s + 1) for s in range(prefill, columns.shape[2]))]:
        decoder(columns[:, :, start:end], uniform)
        logits.append(decoder.logits.copy())
    return np.stack(logits)


def parity(bundle: Path, model: Model, seed: int = 0) -> list[Comparison]:
    """The bundle beside the PyTorch modules in float32: random codes and texts, guided and null text.

    One after the other, so that the weights are in memory once.
    """
    rng = np.random.default_rng(seed)
    c = model.config
    columns = rng.integers(0, c.card, (1, c.codebooks, PREFILL + STEPS))
    columns[:, :, 0] = c.special_token
    texts = [rng.standard_normal((7, c.text_dim), dtype=np.float32)]
    reference = torch_logits(model, columns, texts)
    gc.collect()
    ours = bundle_logits(LanguageModel.load(bundle, hashes=False), columns, texts)
    names = [f"prefill of {PREFILL}", *(f"step {i + 1}" for i in range(STEPS))]
    return [
        compare(case, name, ours[case][i], reference[case][i]) for case in reference for i, name in enumerate(names)
    ]


def torch_logits(model: Model, columns: np.ndarray, texts: list[np.ndarray]) -> dict[str, np.ndarray]:
    c = model.config
    with torch.inference_mode():
        condition = fill(Condition(c), model.weights("condition"))
        states = torch.from_numpy(np.stack(texts))
        guided = condition(torch.cat([states, states]), torch.tensor([[1], [0]]).expand(2, states.shape[1]))
        null = condition(states[:, :1], torch.zeros(1, 1, dtype=torch.int64))
        lm = fill(LM(c, StandardAttention()), model.weights("lm"))
    cases = {"guided": guided, "null text": null}
    return {
        case: force(TorchDecoder(lm, 1, cross, GREEDY, columns.shape[2]), columns, PREFILL)
        for case, cross in cases.items()
    }


def bundle_logits(lm: LanguageModel, columns: np.ndarray, texts: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {
        case: force(lm.decoder(1, columns.shape[2], given, GREEDY), columns, PREFILL)
        for case, given in {"guided": texts, "null text": None}.items()
    }
