"""What a variant costs: how far its next-token distribution is from float32's, on the same codes.

The codes are those of audio clips, or what the model itself draws. The same pass of the float32 model calibrates int8
caches. On random weights the numbers mean little.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from clean_lm.audio import convert_audio
from clean_lm.audio_codec import Codec
from clean_lm.audio_files import read
from clean_lm.conditioning import PerRow, SelfWav
from clean_lm.console import plain
from clean_lm.delay_pattern import delay, prefill_length
from clean_lm.generation import Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import Manifest
from clean_lm.models.lm import LM
from clean_lm.models.transformer import StandardAttention
from clean_lm.session import Graph
from clean_lm.text_encoder import TextEncoder
from export.bundle_weights import BundleWeights
from export.bundle_writer import FP32
from export.commands import ExportError
from export.layerwise import CFG_COEF, Sequences, read_all
from export.opened import Bundle, mapped_language_model, opened
from export.rewrite import Calibrated, rewrite
from export.variants import Variant
from weights.mapping import fill

FRAMES = 100  # of own samples that are measured on
SAMPLES = (400, 400, 200)  # frames of the draws that matrices are rounded on, and last of the one for what that costs
PROMPT, CLIP = 50, 250  # frames of a clip that the calibration continues, and that are measured
GREEDY = 100  # frames that are generated greedily
OWN, LONGEST = "own samples", 100  # characters of the names of clips
SAMPLER = Variant(bits=8)
KL_BOUND, PERPLEXITY_BOUND = 0.05, 1.03  # a variant that may be worse is not made a default
PIECE = 50  # frames that are resampled together for the interval: neighbours are alike
DRAWS, CERTAINTY = 2000, 0.95  # of the bootstrap
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
    kl_high: float | None = None  # the upper ends of their intervals; None: too few codes for one
    perplexity_high: float | None = None

    @property
    def within_bounds(self) -> bool:
        """Whether both are below their bounds, up to the ends of their intervals."""
        kl, perplexity = self.kl_high or self.kl, self.perplexity_high or self.perplexity
        return kl <= KL_BOUND and perplexity <= PERPLEXITY_BOUND * self.perplexity_fp32

    def line(self) -> str:
        """For print."""
        mark = "" if self.within_bounds else "  worse than the bounds"
        ours, fp32 = (f"{math.log(p):.3f}" for p in (self.perplexity, self.perplexity_fp32))
        kl = "" if self.kl_high is None else f" (at most {self.kl_high:.2e})"
        ratio = f"{self.perplexity / self.perplexity_fp32:.3f}"
        if self.perplexity_high is not None:
            ratio += f" (at most {self.perplexity_high / self.perplexity_fp32:.3f})"
        return (
            f"KL {self.kl:.2e}{kl} nats, top-1 {self.top1:6.1%}, cross-entropy {ours} nats (fp32 {fp32}), perplexity "
            f"{ratio} times fp32's, greedy {self.greedy_frames} of {GREEDY} frames, "
            f"{self.codes} codes of {self.source}{mark}"
        )

    def entry(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self) | {"within_bounds": self.within_bounds}


@dataclass(frozen=True)
class Codes:
    """Codes that variants are measured on, and the conditions that they are read with."""

    codes: np.ndarray  # int64 [B, K, T]
    texts: PerRow  # text states of each row, or None for null text
    self_wav: PerRow | None  # melody and style models: of each row, what stands in the prefix before the text
    source: str

    def last_row(self) -> "Codes":
        """The last row of the batch."""
        return Codes(self.codes[-1:], self.texts[-1:], self.self_wav and self.self_wav[-1:], self.source)


@dataclass(frozen=True)
class Exact:
    """A bundle's float32 model, which is never run in ONNX Runtime: large ones are read in one pass, layer by layer."""

    manifest: Manifest
    lm: LanguageModel  # for what conditions it
    module: LM  # on memory-mapped weights

    @classmethod
    def of(cls, bundle: Bundle) -> "Exact":
        """Raises FileNotFoundError, BundleError."""
        manifest, weights = opened(bundle, variant=FP32, hashes=False), BundleWeights(bundle)
        module = fill(LM(weights.config, StandardAttention()), weights.weights("lm"))
        return cls(manifest, mapped_language_model(manifest), module)

    def sequences(self, c: Codes) -> Sequences:
        """Some codes, with their conditions and guidance."""
        guidance = Sampling(cfg_coef=CFG_COEF).guidance
        return Sequences(self.module, c.codes, self.lm.conditioner(c.texts, c.self_wav, guidance))

    def sampler(self, scratch: Path) -> LanguageModel:
        """The same model with int8 weights and a float cache, to draw with: nearly the same in a third of the time.

        Its session is closed with the last reference to the result.
        """
        graph = Graph(self.sampler_file(scratch), self.manifest.require_graph("lm_inference"), {})
        return LanguageModel(self.manifest, graph, self.lm.conditioner.condition, self.lm.self_wav)

    def sampler_file(self, scratch: Path) -> Path:
        """The sampler's graph in the folder `scratch`, written once."""
        path = scratch / "samples.onnx"
        if not path.exists():
            rewrite(
                self.manifest.folder / self.manifest.require_graph("lm_inference").file, path, SAMPLER, Calibrated()
            )
        return path


# Calibration


def drawn_codes(sampler: LanguageModel, bundle: Bundle, clips: Sequence[Path]) -> list[Codes]:
    """What the model draws: continuations of the beginnings of clips, or without any takes from nothing; with null text
    and with texts."""
    texts, self_wav = example_conditions(sampler, bundle)
    rows = clip_codes(bundle, clips, PROMPT) if clips else []
    prompts = [np.repeat(codes[None], len(texts), axis=0) for codes in rows]
    return [Codes(generate(sampler, prompt, texts, self_wav), texts, self_wav, OWN) for prompt in prompts or [None]]


def measured_codes(drawn: Sequence[Codes], bundle: Bundle, clips: Sequence[Path]) -> list[Codes]:
    """What variants are measured on: the clips' own codes with null text, or else what the model drew.

    Raises ExportError for clips that are too short.
    """
    rows = clip_codes(bundle, clips, CLIP) if clips else []
    if clips and (frames := sum(row.shape[1] for row in rows)) < 2 * PIECE:
        raise ExportError(
            f"--clip: the clips have {frames} frames of codes in all, expected {2 * PIECE} or more: too few to tell "
            "how good a variant is; give longer clips"
        )
    own = [Codes(codes[None], [None], None, clip.name) for codes, clip in zip(rows, clips, strict=True)]
    return own or list(drawn)


def scales_of_caches(peaks: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The largest values of every channel -> the scales of an int8 cache, by the names of its inputs.

    float32 [H * D]: HEADROOM times a 127th of the largest. A channel of zeros (a padded head's) has any scale but zero.
    """
    scales = {name: HEADROOM * peak.numpy() / 127 for name, peak in peaks.items()}
    return {name: np.where(scale > 0, scale, 1).astype(np.float32) for name, scale in scales.items()}


def own_samples(sampler: LanguageModel, bundle: Bundle) -> list[Codes]:
    """What the model draws without a prompt, to round its matrices on, and last for what that costs; none of it is
    measured."""
    texts, self_wav = example_conditions(sampler, bundle)
    drawn = [
        generate(sampler, None, texts, self_wav, frames, seed=draw * len(texts))  # row b is drawn with seed + b
        for draw, frames in enumerate(SAMPLES, 1)
    ]
    return [Codes(codes, texts, self_wav, OWN) for codes in drawn]


def clip_samples(bundle: Bundle, clips: Sequence[Path]) -> list[Codes]:
    """The codes of clips, to round matrices on: what follows the part that is measured.

    Raises ExportError where no clip is long enough to have both.
    """
    rows = clip_codes(bundle, clips, CLIP + SAMPLES[0])
    found = [(row[:, CLIP:], clip) for row, clip in zip(rows, clips, strict=True) if row.shape[1] >= CLIP + FRAMES]
    if not found:
        raise ExportError(
            f"--calibration clips: the longest clip has {max(row.shape[1] for row in rows)} frames of codes, expected "
            f"{CLIP + FRAMES} or more: the first {CLIP} are measured, the rest is rounded on; give longer clips, or "
            "leave --calibration out"
        )
    return [Codes(part[None], [None], None, clip.name) for part, clip in found]


def generate(
    lm: LanguageModel,
    prompt: np.ndarray | None,
    texts: PerRow,
    self_wav: PerRow | None,
    frames: int = FRAMES,
    seed: int = 0,
) -> np.ndarray:
    """Codes [B, K, T] of a generation; frames: that are new."""
    frames += 0 if prompt is None else prompt.shape[2]
    generation = lm.begin(prompt, texts, always(self_wav), frames=frames, seed=seed)
    for _ in tqdm(generation, "drawing samples", generation.total, disable=None):
        pass
    return generation.codes()


def example_conditions(lm: LanguageModel, bundle: Bundle) -> tuple[PerRow, PerRow | None]:
    """Null text and some texts, and in melody and style models what comes before them."""
    texts: list[np.ndarray | None] = [None, *text_states(bundle, lm.text_dim)]
    return texts, example_self_wav(lm, texts)


def text_states(bundle: Bundle, width: int) -> list[np.ndarray]:
    """States [N, width] of some descriptions by the bundle's text encoder; random ones where it has none."""
    if "text_encoder" in opened(bundle).graphs:
        encoded = TextEncoder.open(opened(bundle, hashes=False)).encode(DESCRIPTIONS)
        return [states for states in encoded if states is not None]
    return [np.random.default_rng(0).standard_normal((7, width), dtype=np.float32)]


def clip_codes(bundle: Bundle, clips: Sequence[Path], frames: int) -> list[np.ndarray]:
    """The first frames of each clip as codes int64 [K, T], by the bundle's codec."""
    codec = Codec.open(opened(bundle, hashes=False))
    codes = []
    for clip in clips:
        wav, rate = read(clip, seconds=frames / codec.frame_rate)
        codes.append(codec.encode(convert_audio(wav, rate, codec.sample_rate, codec.channels)[None])[0])
    return codes


def example_self_wav(lm: LanguageModel, texts: PerRow) -> PerRow | None:
    """For melody and style models, the first part of a prefix beside each text, made of noise: it has every pitch."""
    graph = lm.self_wav
    if graph is None:
        return None
    rng = np.random.default_rng(0)
    sizes = {"melodies": 1, "samples": 10 * lm.info.sample_rate, "styles": 1, "features": 225}
    feeds = {name: graph.zeros(name, sizes) for name in graph.inputs}
    feeds = {
        name: rng.standard_normal(x.shape, np.float32) if x.ndim else np.asarray(x + 3) for name, x in feeds.items()
    }
    (row,) = graph.run(feeds)["self_wav"]
    return [None if text is None else row for text in texts]


def always(self_wav: PerRow | None) -> SelfWav | None:
    """The same in every window."""
    return None if self_wav is None else lambda _: self_wav


# Measurement


class Reference:
    """What float32 makes of some codes."""

    def __init__(self, exact: Exact, codes: Sequence[Codes], others: Sequence[Codes] = ()):
        """others: codes that are read in the same pass, for the scales of caches alone."""
        self.exact, self.codes = exact, codes
        sequences = [exact.sequences(c) for c in (*codes, *others)]
        outputs, peaks = read_all(exact.module, sequences)
        read = zip(sequences, outputs, strict=True)
        self.scales = scales_of_caches(peaks)
        self.logits = [by_column(exact, s.logits(x)) for s, x in list(read)[: len(codes)]]

    def greedy_frames(self, variant: LanguageModel) -> int:
        """How many frames a variant draws greedily before a column that float32 has otherwise, having read the same:
        of the last text that was measured with, or null text."""
        row = self.codes[0].last_row()
        s = self.exact.sequences(replace(row, codes=greedy(variant, row)))
        (x,), _ = read_all(self.exact.module, [s])
        differs = (s.logits(x).argmax(dim=-1) != s.targets) & s.known
        columns = differs.any(dim=2).any(dim=0).nonzero()
        return GREEDY if not len(columns) else max(0, int(columns[0]) - max(variant.delays))


def by_column(exact: Exact, logits: Tensor) -> np.ndarray:
    """Logits [B, S, K, card] of every column -> [S, B, K, card] of those that have a code to predict."""
    return rearrange(logits, "b s k c -> s b k c")[prefill_length(0, exact.lm.delays) - 1 :].numpy()


def measure(variant: LanguageModel, reference: Reference) -> Quality:
    """A variant beside float32 on the reference's codes."""
    pairs = zip(reference.codes, reference.logits, strict=True)
    pieces = np.concatenate([sums(variant, *pair) for pair in pairs], axis=1)
    kl, same, cross, cross_fp32, count = pieces.sum(axis=1)
    perplexity, perplexity_fp32 = float(np.exp(cross / count)), float(np.exp(cross_fp32 / count))
    source = named([codes.source for codes in reference.codes])
    kl_high, ratio_high = intervals(pieces)
    perplexity_high = None if ratio_high is None else ratio_high * perplexity_fp32
    numbers = float(kl / count), float(same / count), perplexity, perplexity_fp32, reference.greedy_frames(variant)
    return Quality(*numbers, int(count), source, kl_high, perplexity_high)


def named(sources: Sequence[str]) -> str:
    """What was measured on, in one line that a manifest takes."""
    line = plain(", ".join(dict.fromkeys(sources)))
    return line if len(line) <= LONGEST else f"{len(sources)} clips: {line[:LONGEST]}..."


def intervals(pieces: np.ndarray) -> tuple[float | None, float | None]:
    """The upper ends of the intervals of KL divergence and of the ratio of perplexities; None for a single piece.

    pieces [5, n], as `sums` gives them. A percentile bootstrap: n pieces are drawn with replacement, again and again.
    """
    if pieces.shape[1] < 2:
        return None, None
    drawn = np.random.default_rng(0).integers(0, pieces.shape[1], (DRAWS, pieces.shape[1]))
    kl, _, cross, cross_fp32, count = pieces[:, drawn].sum(axis=-1)
    kl, ratio = kl / count, np.exp((cross - cross_fp32) / count)
    high = 1 - (1 - CERTAINTY) / 2
    return float(np.quantile(kl, high)), float(np.quantile(ratio, high))


def sums(variant: LanguageModel, codes: Codes, theirs: np.ndarray) -> np.ndarray:
    """Over each piece of some codes: KL divergence, how many most probable codes are equal, cross-entropy, float32's,
    how many codes: float64 [5, pieces].

    theirs: float32's logits [S, B, K, card].
    """
    ours, theirs = log_probabilities(logits(variant, codes)), log_probabilities(theirs)
    mask, targets = known(variant, codes)
    at = np.where(mask, targets, 0)[..., None]
    kl = (np.exp(theirs) * (theirs - ours)).sum(axis=-1)
    same = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
    cross, cross_fp32 = (-np.take_along_axis(x, at, axis=-1)[..., 0] for x in (ours, theirs))
    numbers = np.stack([kl, same, cross, cross_fp32, np.ones(mask.shape)]) * mask
    starts = np.arange(0, max(1, len(mask) - PIECE // 2), PIECE)  # a short rest belongs to the last piece
    return np.add.reduceat(numbers.sum(axis=-1), starts, axis=1).reshape(5, -1)


def greedy(lm: LanguageModel, c: Codes) -> np.ndarray:
    """Greedy codes int64 [B, K, GREEDY] without a prompt, with the texts of some codes."""
    return lm.generate_codes(None, c.texts, always(c.self_wav), frames=GREEDY, sampling=Sampling(use_sampling=False))


def logits(lm: LanguageModel, c: Codes) -> np.ndarray:
    """Guided logits [S, B, K, card] of every column that has a code to predict."""
    columns = columns_of(lm, c)
    start = prefill_length(0, lm.delays)
    sampling = Sampling(use_sampling=False, cfg_coef=CFG_COEF)
    decoder = lm.decoder(len(c.codes), columns.shape[2], c.texts, sampling, c.self_wav)
    uniform = np.zeros(columns.shape[:2], dtype=np.float32)
    found = []
    for s in tqdm(range(start, columns.shape[2]), "measuring", disable=None):
        if s == start:
            decoder.prefill(columns[:, :, :start], uniform)
        else:
            decoder.step(columns[:, :, s - 1 : s], uniform)
        found.append(decoder.logits.copy())
    return np.stack(found)


def known(lm: LanguageModel, c: Codes) -> tuple[np.ndarray, np.ndarray]:
    """Which of the predicted places hold a frame's code, and the codes: [S, B, K] both."""
    targets = columns_of(lm, c)[:, :, prefill_length(0, lm.delays) :].transpose(2, 0, 1)
    return targets != lm.special_token, targets


def columns_of(lm: LanguageModel, c: Codes) -> np.ndarray:
    """The codes in the delay pattern's columns, int64 [B, K, S]."""
    return delay(c.codes, lm.delays, c.codes.shape[2], lm.special_token)


def log_probabilities(x: np.ndarray) -> np.ndarray:
    """logits [..., card] -> log of their softmax, float64."""
    x = x.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
