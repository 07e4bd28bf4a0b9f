"""What a generation is conditioned on, as lm_inference takes it: texts, and in melody and style models audio.

Text models       texts -> lm_condition -> keys and values for the cross-attention of every layer
Melody models     audio -> lm_melody    \\
Style models      audio -> MERT -> lm_style  -> a prefix [melody or style | text], read before the first column

Rows of a batch are conditioned rows first, unconditional rows (null text, no melody or style) last.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clean_lm.philox import uniforms
from clean_lm.session import Graph

PerRow = Sequence[np.ndarray | None]  # one entry per prompt of a batch; None: no condition
SelfWav = Callable[[float], PerRow]  # by the start of a window in seconds: each prompt's melody or style [F, dim]


@dataclass(frozen=True)
class Conditioning:
    """The conditions of B prompts: `passes` x B rows, in each pass the same prompts.

    passes: 1 without guidance, 2 with it, 3 with double guidance (all conditions; melody or style alone; none).
    """

    batch: int
    passes: int
    cross: Mapping[
        str, np.ndarray
    ]  # every layer's keys and values [X, H, N, D]; X: B, 2B with negative texts, 0 without texts
    prefix: np.ndarray | None  # [passes x B, M, dim] in melody and style models

    @property
    def places(self) -> int:
        """How many places of the cache the prefix takes: M."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    def repeat(self, takes: int) -> "Conditioning":
        """Each prompt `takes` times: the takes of the first prompt, those of the second, ..."""
        if takes == 1:
            return self
        cross = {name: array.repeat(takes, axis=0) for name, array in self.cross.items()}
        prefix = None if self.prefix is None else self.prefix.repeat(takes, axis=0)
        return Conditioning(self.batch * takes, self.passes, cross, prefix)


class Conditioner:
    """lm_condition, and lm_melody or lm_style, of a bundle."""

    def __init__(self, lm: Graph, condition: Graph, self_wav: Graph | None, text_dim: int):
        """lm: lm_inference, which says what it takes."""
        self.lm, self.condition, self.self_wav, self.text_dim = lm, condition, self_wav, text_dim

    def __call__(
        self, texts: PerRow, self_wav: PerRow | None, guidance: str, negatives: PerRow | None = None
    ) -> Conditioning:
        """The conditions of one window.

        texts: the text encoder's states [N, E] of each prompt, or None for null text. self_wav: what lm_melody or
        lm_style made [F, dim], or None. guidance: Sampling.guidance. negatives: texts of the unconditional rows, which
        are null text without. Raises ValueError.
        """
        batch = len(texts)
        negatives = negatives or [None] * batch
        if self_wav is not None and self.self_wav is None:
            raise ValueError("this model takes no melody and no style: its fuser has no self_wav")
        if guidance == "double" and self.self_wav is None:
            raise ValueError("cfg_coef_beta: this model takes no melody or style beside which a text could count more")
        wavs = self_wav or [None] * batch
        if len(wavs) != batch:
            raise ValueError(f"rows: got {len(wavs)} melodies or styles for {batch} rows, expected one each")
        self._validate(texts, "text_states")
        self._validate(negatives, "negative_states")
        passes = passes_of(texts, wavs, guidance, negatives)
        if self.prefixed:
            every_text, every_wav = ([row for one in passes for row in one[part]] for part in (0, 1))
            prefix = np.concatenate([self._audio_part(every_wav), self._text_part(every_text)], axis=1)
            return Conditioning(batch, len(passes), {}, prefix)
        attending = [*texts, *negatives] if len(passes) > 1 and some(negatives) else texts
        return Conditioning(batch, len(passes), self.cross(attending), None)

    @property
    def prefixed(self) -> bool:
        """Whether conditions are a prefix, as in melody and style models."""
        return "prefix" in self.lm.inputs

    def cross(self, texts: PerRow) -> dict[str, np.ndarray]:
        """Every layer's keys and values; no rows if all are null text, which adds exactly zero. Zeros on devices, whose
        kernels take no attention of no rows."""
        if all(text is None for text in texts):
            name = next(n for n in self.lm.inputs if n.startswith("cross_key_values."))
            sizes = {"texts": 0 if self.lm.on_host(name) else len(texts), "text": 1}
            return {n: self.lm.zeros(n, sizes) for n in self.lm.inputs if n.startswith("cross_key_values.")}
        return self.project(texts)

    def project(self, texts: PerRow) -> dict[str, np.ndarray]:
        """lm_condition of texts (None: null text): every layer's keys and values, or the text's part of a prefix.

        Texts are padded with zeros to the longest: nothing masks them later, so padding is part of the model.
        """
        sizes = {"texts": len(texts), "text": max((len(text) for text in texts if text is not None), default=1)}
        states = _padded(texts, self.condition.zeros("text_states", sizes))
        mask = self.condition.zeros("text_mask", sizes)
        for row, text in enumerate(texts):
            mask[row, : 0 if text is None else len(text)] = 1
        return self.condition.run({"text_states": states, "text_mask": mask})

    @cached_property
    def null_wav(self) -> np.ndarray | None:
        """What stands for no melody [F, dim]: lm_melody's output for silence. None in style models: zeros."""
        if self.self_wav is None or "audio" not in self.self_wav.inputs:
            return None
        return self.self_wav.run({"audio": np.zeros((1, 1), np.float32)})["self_wav"][0]

    def _audio_part(self, rows: PerRow) -> np.ndarray:
        """[R, F, dim], the shorter ones padded with zeros."""
        rows = [self.null_wav if row is None else row for row in rows]
        dim = self.lm.inputs["prefix"].shape[2]
        for row in rows:
            if row is not None and (row.ndim != 2 or row.shape[1] != dim or not np.isfinite(row).all()):
                raise ValueError(f"self_wav: got {list(row.shape)}, expected finite numbers [F, {dim}]")
        # Without any, audiocraft leaves one place of zeros.
        longest = max((len(row) for row in rows if row is not None), default=int(self.self_wav is not None))
        return _padded(rows, self.lm.zeros("prefix", {"rows": len(rows), "prefix": longest}))

    def _text_part(self, rows: PerRow) -> np.ndarray:
        """Texts [N, E] -> [R, N, dim], padded with zeros to the longest; zeros for null text."""
        texts = [row for row in rows if row is not None]
        longest = max((len(text) for text in texts), default=1)
        found = iter(self.project(texts)["description"]) if texts else iter(())
        projected = [None if row is None else next(found)[: len(row)] for row in rows]
        return _padded(projected, self.lm.zeros("prefix", {"rows": len(rows), "prefix": longest}))

    def _validate(self, texts: PerRow, name: str) -> None:
        for row, text in enumerate(texts):
            if text is not None and (text.ndim != 2 or text.shape[1] != self.text_dim or not len(text)):
                raise ValueError(f"{name}[{row}]: got {list(text.shape)}, expected [N, {self.text_dim}], N > 0")
            if text is not None and not np.isfinite(text).all():
                raise ValueError(f"{name}[{row}]: got NaN or infinity, expected finite numbers")


def passes_of(
    texts: PerRow, wavs: PerRow, guidance: str, negatives: PerRow | None = None
) -> list[tuple[PerRow, PerRow]]:
    """The texts and melodies or styles of every pass: the conditioned one first, the unconditional one last.

    The unconditional one has the negative texts, where there are some. Without any text, melody or style both would be
    the same, so one is exact.
    """
    none: PerRow = [None] * len(texts)
    last = none if negatives is None else negatives
    if guidance == "double" and some(texts):
        return [(texts, wavs), (none, wavs), (last, none)]
    if guidance != "none" and some([*texts, *wavs, *last]):
        return [(texts, wavs), (last, none)]
    return [(texts, wavs)]


def some(rows: PerRow) -> bool:
    """Whether a row has a condition."""
    return any(row is not None for row in rows)


def _padded(rows: PerRow, zeros: np.ndarray) -> np.ndarray:
    """rows [N, ...] written into zeros [R, longest, ...]; None leaves them."""
    for row, array in zip(zeros, rows, strict=True):
        if array is not None:
            row[: len(array)] = array
    return zeros


def melody(graph: Graph, wavs: Sequence[np.ndarray | None], sample_rate: int, window: float | None) -> SelfWav:
    """lm_melody of melodies, mono [samples] at the model's rate, or None for no melody.

    window: its length in seconds; a melody that has ended goes on from its start, as in audiocraft. None: there is one
    window; lm_melody repeats a short melody, and in a batch silence fills the shorter ones up to the longest.
    """
    melodies = [wav for wav in wavs if wav is not None]
    samples = max(map(len, melodies)) if window is None else int(window * sample_rate)

    def rows(start: float) -> PerRow:
        audio = np.zeros((len(melodies), samples), np.float32)
        for row, wav in zip(audio, melodies, strict=True):
            if window is None:
                row[: len(wav)] = wav
            else:
                row[:] = wav[(int(start * sample_rate) + np.arange(samples)) % len(wav)]
        found = iter(graph.run({"audio": audio})["self_wav"])
        return [None if wav is None else next(found) for wav in wavs]

    return rows


def style(graph: Graph, features: PerRow, eval_q: int) -> SelfWav:
    """lm_style of MERT's features [F, width] of an excerpt, or None for no style; the same in every window."""
    feeds = {"eval_q": np.array(eval_q)}
    read = lambda row: graph.run({"features": row[None].astype(np.float32), **feeds})["self_wav"][0]  # noqa: E731
    rows = [None if row is None else read(row) for row in features]
    return lambda _: rows


@dataclass(frozen=True)
class Excerpt:
    """Which part of its audio a style model is given, and how closely it follows it; audiocraft's defaults."""

    eval_q: int = 3  # levels of quantisation that are kept
    length: float = 3.0  # seconds
    start: float | None = None  # seconds; None: drawn

    def of(self, wav: np.ndarray, sample_rate: int, seed: int | None) -> np.ndarray:
        """The excerpt [length x rate] of mono audio [samples]; without a start, from a place drawn with the seed.

        Raises ValueError if the audio is too short.
        """
        samples = int(self.length * sample_rate)
        last = len(wav) - samples  # that it may start from
        draw = np.random.default_rng().random() if seed is None else float(uniforms(seed, 1, 1)[0, 0])
        start = int(draw * (last + 1)) if self.start is None else int(self.start * sample_rate)
        if not 0 <= start <= last:
            raise ValueError(
                f"style: got {len(wav) / sample_rate:.2f} s of audio, expected an excerpt of {self.length:g} s"
                + ("" if self.start is None else f" from {self.start:g} s on")
            )
        return wav[start : start + samples]
