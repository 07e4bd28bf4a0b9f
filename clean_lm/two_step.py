"""Guidance in two calls, audiocraft's two_step_cfg: nulls are then padded for themselves, not to the longest text.

Only where text stands before the first column is that another model: null text that is attended to adds zero however
long it is.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from clean_lm.runtime import Conditioning, Decoder, Sampling


class TwoStep:
    """A Decoder of two, which differ in the length of their prefix."""

    def __init__(self, told: "Decoder", nulls: "Decoder", sampling: "Sampling"):
        self.told, self.nulls, self.sampling = told, nulls, sampling
        self.rows, self.caches = told.rows, told.caches
        self.logits = np.zeros_like(told.logits)

    @property
    def columns(self) -> int:
        return self.told.columns

    def restart(self, conditions: "Conditioning") -> None:
        self.told.restart(conditions)
        self.nulls.restart(self.nulls.conditions)

    def __call__(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Read columns int64 [B, K, S] and draw the one after the last with uniform [B, K] -> int64 [B, K]."""
        self.told(codes, uniform)
        self.nulls(codes, uniform)
        nulls = self.nulls.logits
        self.logits[...] = nulls + (self.told.logits - nulls) * np.float32(self.sampling.cfg_coef)
        return sample(self.logits, uniform, self.sampling)


def sample(logits: np.ndarray, uniform: np.ndarray, sampling: "Sampling") -> np.ndarray:
    """What lm_inference does with guided logits float32 [B, K, card] and uniform [B, K] -> int64 [B, K]."""
    if not sampling.use_sampling or sampling.temperature == 0:
        return logits.argmax(axis=-1)
    scaled = logits / np.float32(sampling.temperature)
    probs = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    ranked = -np.sort(-probs, axis=-1)
    if sampling.top_p > 0:
        before = ranked.cumsum(axis=-1) - ranked
        least = np.where(before <= np.float32(sampling.top_p), ranked, 1).min(axis=-1, keepdims=True)
    else:
        card = probs.shape[-1]
        least = ranked[..., min(sampling.top_k or card, card) - 1, None]
    total = np.where(probs >= least, probs, 0).cumsum(axis=-1)
    share = np.minimum(uniform, np.float32(1 - 2**-24)).astype(np.float32)[..., None] * total[..., -1:]
    return (total <= share).sum(axis=-1)
