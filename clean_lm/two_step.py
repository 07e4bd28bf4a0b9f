"""Guidance in two calls, audiocraft's two_step_cfg: the unconditional rows are padded apart, not to the longest text.

Only melody and style models, where text stands before the first column, then have other logits: null text that is
attended to adds zero however long it is.
"""

import numpy as np

from clean_lm.conditioning import Conditioning
from clean_lm.generation import Decoder, Sampling


class TwoStep:
    """A conditioned and an unconditional Decoder, whose prefixes differ in length."""

    def __init__(self, conditioned: Decoder, unconditional: Decoder, sampling: Sampling):
        self.conditioned, self.unconditional, self.sampling = conditioned, unconditional, sampling
        self.caches = conditioned.caches
        self.logits = np.zeros_like(conditioned.logits)

    def fetch_logits(self) -> None:
        """Does nothing: both passes' logits are always read, see _draw."""

    def restart(self, conditioning: Conditioning) -> None:
        self.conditioned.restart(conditioning)
        self.unconditional.restart(self.unconditional.conditioning)

    def prefill(self, columns: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """As Decoder.prefill."""
        for decoder in (self.conditioned, self.unconditional):
            decoder.prefill(columns, uniform)
        return self._draw(uniform)

    def step(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """As Decoder.step."""
        for decoder in (self.conditioned, self.unconditional):
            decoder.step(codes, uniform)
        return self._draw(uniform)

    def _draw(self, uniform: np.ndarray) -> np.ndarray:
        conditioned, unconditional = self.conditioned.logits, self.unconditional.logits
        self.logits[...] = unconditional + (conditioned - unconditional) * np.float32(self.sampling.cfg_coef)
        return sample(self.logits, uniform, self.sampling)


def sample(logits: np.ndarray, uniform: np.ndarray, sampling: Sampling) -> np.ndarray:
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
