"""Melodies, and audio whose style is taken: from arrays to what a model's conditioner gives for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clean_lm.audio import ONE, as_array, check, convert_audio
from clean_lm.conditioning import Excerpt, PerRow, SelfWav, melody, style
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError
from clean_lm.options import WHOLE, rate, seeds
from clean_lm.session import Graph

Wavs = np.ndarray | Sequence[np.ndarray | None]  # [B, channels, samples], [channels, samples], or a list of the latter
Descriptions = Sequence[str | None]


@dataclass(frozen=True)
class Reference:
    """Reads the melodies or styles of one generation."""

    lm: LanguageModel
    mert: Graph | None
    sample_rate: int
    channels: int  # of the model
    window: float | None  # seconds, where there are several windows
    excerpt: Excerpt

    def of_audio(
        self,
        descriptions: Descriptions,
        wavs: Wavs,
        from_rate: int | None,
        seed: int | Sequence[int] | np.ndarray | None,
    ) -> SelfWav | None:
        """Melodies, or audio of a style, as the model takes them; None if there are none. Raises ValueError."""
        if self.lm.self_wav is None:
            raise ValueError("melody_wavs: this model takes no melody: it has no conditioners.self_wav")
        if hasattr(wavs, "ndim"):  # an array, or a tensor
            array = as_array(wavs, "melody_wavs")
            wavs = [array] if array.ndim == 2 else list(array)
        if len(wavs) != len(descriptions):
            raise ValueError(f"melody_wavs: got {len(wavs)} for {len(descriptions)} descriptions, expected one each")
        checked = [None if wav is None else check(wav, "melody", ONE) for wav in wavs]
        given_rate = rate("melody_sample_rate", from_rate)
        if self.lm.info.self_wav == "style":
            features = [None if wav is None else self.style_features(wav, given_rate, seed) for wav in checked]
            return self.of_features(descriptions, features)
        mono = [None if wav is None else self._mono(wav, given_rate) for wav in checked]
        return None if all(w is None for w in mono) else melody(self.lm.self_wav, mono, self.sample_rate, self.window)

    def of_features(self, descriptions: Descriptions, features: PerRow) -> SelfWav | None:
        """MERT's features [F, width] of a style as the model takes it; None if there is none. Raises ValueError."""
        if self.lm.self_wav is None or self.lm.info.self_wav != "style":
            raise ValueError("style_features: this model takes no style: it has no conditioners.self_wav.style")
        if len(features) != len(descriptions):
            raise ValueError(f"style_features: got {len(features)} for {len(descriptions)} descriptions")
        width = self.lm.self_wav.inputs["features"].shape[2]
        for row in (row for row in features if row is not None):
            if row.ndim != 2 or row.shape[1] != width or not len(row) or not np.isfinite(row).all():
                raise ValueError(f"style_features: got {list(row.shape)}, expected finite numbers [F, {width}], F > 0")
        return None if all(row is None for row in features) else style(self.lm.self_wav, features, self.excerpt.eval_q)

    def style_features(
        self, wav: np.ndarray, from_rate: int, seed: int | Sequence[int] | np.ndarray | None
    ) -> np.ndarray:
        """MERT's features [F, width] of an excerpt of audio [channels, samples]."""
        if self.mert is None:
            raise BundleError(
                f"{self.lm.manifest.folder}: contains no MERT; export it again with --mert, or pass MERT's features to "
                "generate_with_style"
            )
        info = self.lm.manifest.mert
        drawn = None if seed is None else seeds(seed, 1 if isinstance(seed, WHOLE) else len(seed))[0]
        excerpt = self.excerpt.of(self._mono(wav, from_rate), self.sample_rate, drawn)
        audio = convert_audio(excerpt[None, None], self.sample_rate, info.style_sample_rate, 1)[0]
        if audio.shape[1] < info.style_receptive_field:
            raise ValueError(f"excerpt_length: got {self.excerpt.length:g} s, too short for one of MERT's features")
        return self.mert.run({"audio": audio})["features"][0]

    def _mono(self, wav: np.ndarray, from_rate: int) -> np.ndarray:
        """Audio [channels, samples] at the model's rate, [samples]; by way of its channels, as audiocraft does."""
        return convert_audio(wav[None], from_rate, self.sample_rate, self.channels)[0].mean(axis=0)
