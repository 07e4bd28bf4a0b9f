"""What a variant costs: how its next-token distribution differs from float32's, and what float32 says of its weights.

Codes to measure on are a clip's own, or what the float32 model itself draws. On random weights the numbers mean little.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clean_lm import audio
from clean_lm.delay_pattern import delay, prefill_length
from clean_lm.manifest import Manifest
from clean_lm.musicgen import Codec
from clean_lm.runtime import LanguageModel, Rows, Sampling, SelfWav
from clean_lm.text_encoder import TextEncoder

FRAMES = 100  # of codes that are measured on, beyond those of a prompt
PROMPT = 50  # frames of a clip that the calibration continues
GREEDY = 100  # frames that are generated greedily
CFG_COEF = 3.0
KL_BOUND, PERPLEXITY_BOUND = 0.05, 1.03  # a variant that is worse is not made a default
DESCRIPTIONS = ("drum and bass with a deep bass line", "slow ambient pads")
HEADROOM = 1.5  # of an int8 cache's scale over what the calibration saw: what is beyond it is cut off


@dataclass(frozen=True)
class Quality:
    """A variant beside float32, on the same codes."""

    kl: float  # of float32's next-token distribution from this one's: nats, mean over codes
    top1: float  # share of codes for which both have the same most probable one
    perplexity: float  # of the codes
    perplexity_fp32: float
    greedy_frames: int  # generated greedily before the first that differs, of GREEDY
    codes: int  # measured on
    source: str

    @property
    def within_bounds(self) -> bool:
        return self.kl <= KL_BOUND and self.perplexity <= PERPLEXITY_BOUND * self.perplexity_fp32

    def line(self) -> str:
        """For whoever looks on."""
        mark = "" if self.within_bounds else "  worse than the bounds"
        ours, fp32 = (f"{math.log(p):.3f}" for p in (self.perplexity, self.perplexity_fp32))
        return (
            f"KL {self.kl:.2e} nats, top-1 {self.top1:6.1%}, cross-entropy {ours} nats (fp32 {fp32}), perplexity "
            f"{self.perplexity:.2f} (fp32 {self.perplexity_fp32:.2f}), greedy {self.greedy_frames} of {GREEDY} frames, "
            f"{self.codes} codes of {self.source}{mark}"
        )

    def entry(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self) | {"within_bounds": self.within_bounds}


@dataclass(frozen=True)
class Codes:
    """Codes [B, K, T] that are measured on, each row with the text states that it is read with, or None."""

    codes: np.ndarray
    texts: Rows
    wavs: Rows | None  # and with what stands before the text, in melody and style models
    source: str


def text_states(folder: Path, width: int) -> list[np.ndarray]:
    """Some descriptions by the bundle's text encoder; where it has none, random states."""
    if "text_encoder" in Manifest.read(folder).tree["graphs"]:
        found = TextEncoder.load(folder, hashes=False).encode(DESCRIPTIONS)
        return [states for states in found if states is not None]
    return [np.random.default_rng(0).standard_normal((7, width), dtype=np.float32)]


def clip_codes(folder: Path, clips: Sequence[Path], frames: int) -> list[np.ndarray]:
    """The first frames of each clip as codes int64 [K, T]."""
    codec = Codec.load(folder, hashes=False)
    codes = []
    for clip in clips:
        wav, rate = audio.read(clip, seconds=frames / codec.frame_rate)
        codes.append(codec.encode(audio.convert_audio(wav, rate, codec.sample_rate, codec.channels)[None])[0])
    return codes


def calibrate(lm: LanguageModel, folder: Path, clips: Sequence[Path]) -> tuple[list[Codes], dict[str, np.ndarray]]:
    """A short run of the float32 model: the codes to measure on, and the scales of an int8 cache.

    Without clips, takes of null text and of texts; with clips, the clips' own codes, and they are continued.
    Scales: by the name of each cache input, float32 [H * D], HEADROOM times a 127th of the largest of each channel.
    """
    texts: list[np.ndarray | None] = [None, *text_states(folder, lm.text_dim)]
    wavs = example_wavs(lm, texts)
    heard = clip_codes(folder, clips, PROMPT + FRAMES) if clips else []
    runs = [np.repeat(codes[None, :, :PROMPT], len(texts), axis=0) for codes in heard]
    largest: dict[str, np.ndarray] = {}
    measured = []
    for prompt in runs or [None]:
        frames = FRAMES + (0 if prompt is None else prompt.shape[2])
        generation = lm.begin(prompt, texts, always(wavs), frames=frames, seed=0)
        for _ in tqdm(generation, "calibration", generation.total, disable=None):
            pass
        for name, cache in generation.decoder.caches.items():
            peak = np.abs(cache).max(axis=(0, 2)).ravel()
            largest[name] = np.maximum(peak, largest.get(name, 0))
        measured.append(Codes(generation.codes(), texts, wavs, "own samples"))
    if clips:
        measured = [Codes(codes[None], [None], None, clip.name) for codes, clip in zip(heard, clips, strict=True)]
    # A channel that is always zero (a padded head's) needs no scale, only one that is not zero.
    scales = {name: np.where(peak > 0, HEADROOM * peak / 127, 1).astype(np.float32) for name, peak in largest.items()}
    return measured, scales


def always(wavs: Rows | None) -> SelfWav | None:
    """The same in every window."""
    return None if wavs is None else lambda _: wavs


def example_wavs(lm: LanguageModel, texts: Rows) -> Rows | None:
    """What melody and style models are told where they are told a text: noise, which has every pitch in turn."""
    if lm.wav is None:
        return None
    rng = np.random.default_rng(0)
    sizes = {"melodies": 1, "samples": 10 * lm.manifest.need("model")["sample_rate"], "styles": 1, "features": 225}
    feeds = {name: lm.wav.zeros(name, sizes) for name in lm.wav.inputs}
    feeds = {
        name: rng.standard_normal(x.shape, np.float32) if x.ndim else np.asarray(x + 3) for name, x in feeds.items()
    }
    (found,) = lm.wav.session.run(["self_wav"], feeds)
    return [None if text is None else np.asarray(found)[0] for text in texts]


def measure(variant: LanguageModel, reference: "Reference") -> Quality:
    """A variant beside float32 on the reference's codes."""
    kl, same, cross, cross_fp32, count = 0.0, 0, 0.0, 0.0, 0
    for codes, theirs in zip(reference.codes, reference.logits, strict=True):
        ours, mask, targets = log_probabilities(logits(variant, codes)), *known(variant, codes)
        both = np.exp(theirs) * (theirs - ours)
        kl += float(both.sum(axis=-1)[mask].sum())
        same += int((ours.argmax(axis=-1) == theirs.argmax(axis=-1))[mask].sum())
        at = np.where(mask, targets, 0)[..., None]
        cross -= float(np.take_along_axis(ours, at, axis=-1)[..., 0][mask].sum())
        cross_fp32 -= float(np.take_along_axis(theirs, at, axis=-1)[..., 0][mask].sum())
        count += int(mask.sum())
    differs = (greedy(variant, reference.codes[0]) != reference.greedy).any(axis=(0, 1))
    kept = int(differs.argmax()) if differs.any() else GREEDY
    perplexity, perplexity_fp32 = float(np.exp(cross / count)), float(np.exp(cross_fp32 / count))
    source = ", ".join(codes.source for codes in reference.codes)
    return Quality(kl / count, same / count, perplexity, perplexity_fp32, kept, count, source)


class Reference:
    """What float32 has for some codes."""

    def __init__(self, lm: LanguageModel, codes: Sequence[Codes]):
        self.codes = codes
        self.logits = [log_probabilities(logits(lm, c)) for c in codes]
        self.greedy = greedy(lm, codes[0])


def greedy(lm: LanguageModel, c: Codes) -> np.ndarray:
    """codes int64 [B, K, GREEDY] without a prompt."""
    return lm.generate_codes(None, c.texts, always(c.wavs), frames=GREEDY, sampling=Sampling(use_sampling=False))


def logits(lm: LanguageModel, c: Codes) -> np.ndarray:
    """Guided logits of every column that has a code to predict: [S, B, K, card]."""
    columns = columns_of(lm, c)
    start = prefill_length(0, lm.delays)
    sampling = Sampling(use_sampling=False, cfg_coef=CFG_COEF)
    decoder = lm.decoder(len(c.codes), columns.shape[2], c.texts, sampling, c.wavs)
    uniform = np.zeros(columns.shape[:2], dtype=np.float32)
    found, new = [], columns[:, :, :start]
    for s in tqdm(range(start, columns.shape[2]), "measuring", disable=None):
        decoder(new, uniform)
        found.append(decoder.logits.copy())
        new = columns[:, :, s : s + 1]
    return np.stack(found)


def known(lm: LanguageModel, c: Codes) -> tuple[np.ndarray, np.ndarray]:
    """Which of the predicted places hold a frame's code, and the codes: [S, B, K] both."""
    targets = columns_of(lm, c)[:, :, prefill_length(0, lm.delays) :].transpose(2, 0, 1)
    return targets != lm.special_token, targets


def columns_of(lm: LanguageModel, c: Codes) -> np.ndarray:
    return delay(c.codes, lm.delays, c.codes.shape[2], lm.special_token)


def log_probabilities(x: np.ndarray) -> np.ndarray:
    """logits [..., card] -> log of their softmax, float64."""
    x = x.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
