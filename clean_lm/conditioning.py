"""What melody and style models are told beside a text: a sound, to what stands before the first column."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clean_lm.manifest import Graph
from clean_lm.philox import uniforms
from clean_lm.runtime import Rows, SelfWav


def melody(graph: Graph, wavs: Sequence[np.ndarray | None], sample_rate: int, window: float | None) -> SelfWav:
    """Melodies, mono [samples] at the model's rate or None, by lm_melody.

    window: seconds, in each of which a melody that has ended goes on from its start, as audiocraft has it. None: there
    is but one window; lm_melody repeats what is too short, the shorter of a batch are silent to the longest's end.
    """
    heard = [wav for wav in wavs if wav is not None]
    samples = max(map(len, heard)) if window is None else int(window * sample_rate)

    def rows(start: float) -> Rows:
        audio = np.zeros((len(heard), samples), np.float32)
        for row, wav in zip(audio, heard, strict=True):
            if window is None:
                row[: len(wav)] = wav
            else:
                row[:] = wav[(int(start * sample_rate) + np.arange(samples)) % len(wav)]
        (found,) = graph.session.run(["self_wav"], {"audio": audio})
        left = iter(np.asarray(found))
        return [None if wav is None else next(left) for wav in wavs]

    return rows


def style(graph: Graph, features: Rows, eval_q: int) -> SelfWav:
    """MERT's features [F, width] of an excerpt, or None, by lm_style; the same in every window."""

    def read(row: np.ndarray) -> np.ndarray:
        feeds = {"features": row[None].astype(np.float32), "eval_q": np.array(eval_q)}
        (found,) = graph.session.run(["self_wav"], feeds)
        return np.asarray(found)[0]

    rows = [None if row is None else read(row) for row in features]
    return lambda _: rows


@dataclass(frozen=True)
class Excerpt:
    """What of a sound a style model hears, and how closely; audiocraft's defaults."""

    eval_q: int = 3  # levels of quantisation that are kept
    length: float = 3.0  # seconds
    start: float | None = None  # None: drawn

    def of(self, wav: np.ndarray, sample_rate: int, seed: int | None) -> np.ndarray:
        """The excerpt [length x rate] of a sound [samples]; without a start, from a place drawn with the seed.

        Raises ValueError where the sound is too short.
        """
        samples = int(self.length * sample_rate)
        last = len(wav) - samples  # that it may start from
        draw = np.random.default_rng().random() if seed is None else float(uniforms(seed, 1, 1)[0, 0])
        start = int(draw * (last + 1)) if self.start is None else int(self.start * sample_rate)
        if not 0 <= start <= last:
            raise ValueError(
                f"style: got {len(wav) / sample_rate:.2f} s of sound, expected an excerpt of {self.length:g} s"
                + ("" if self.start is None else f" from {self.start:g} s on")
            )
        return wav[start : start + samples]
