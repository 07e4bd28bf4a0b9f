"""The melody conditioner: audio -> the strongest pitch class of each frame -> vectors of the conditioning prefix."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from clean_lm.models.config import MelodyConfig
from clean_lm.models.transformer import weight

HOPS = 4  # of a frame: frames overlap by three quarters


class Melody(nn.Module):
    """Audio -> pitch classes, one a frame -> vectors in the language model's width."""

    def __init__(self, config: MelodyConfig):
        super().__init__()
        self.config = config
        self.filters = filters(config)
        self.window = weight(config.n_fft)
        self.output_proj, self.output_bias = weight(config.chroma, config.output_dim), weight(config.output_dim)

    def forward(self, audio: Tensor) -> Tensor:
        """audio [M, samples], one sample or more at the model's rate -> [M, frames, output_dim].

        Audio with fewer frames is repeated from its start; audio with more is cut.
        """
        classes = self.chroma(audio).argmax(dim=2)  # the first of equal ones: silence is class 0
        return F.embedding(self.fit(classes), self.output_proj) + self.output_bias

    def fit(self, x: Tensor) -> Tensor:
        """x [M, T] -> [M, frames]: repeated from the start where T is less."""
        return repeat(x, "m t -> m (times t)", times=self.config.frames)[:, : self.config.frames]

    def chroma(self, audio: Tensor) -> Tensor:
        """audio [M, samples] -> the power of each pitch class [M, T, chroma], T <= frames.

        Upstream also normalises by the window's power and by each frame's largest value: the argmax is the same.
        """
        spectrum = torch.view_as_real(torch.fft.rfft(self.cut(audio) * self.window))
        power = spectrum.square().sum(dim=3)
        return power @ self.filters.to(power.dtype)

    def cut(self, audio: Tensor) -> Tensor:
        """audio [M, samples] -> its frames [M, T, n_fft], T <= frames, for any number of samples.

        Audio shorter than a frame is padded to one with zeros on both sides; then half a frame is mirrored at each
        end. For 5 samples, frames of 8, hops of 2:

            place        -4 -3 -2 -1  0  1  2  3  4  5  6  7  8  9 10 11
            mirrored      4  3  2  1  0  1  2  3  4  5  6  7  6  5  4  3
            sample        3  2  1  0  .  0  1  2  3  4  .  .  .  4  3  2
            frame 0      |--------------------|
            frame 1            |--------------------|
        """
        n_fft, hop = self.config.n_fft, self.config.hop
        samples = audio.shape[1]
        length = torch.sym_max(samples, n_fft)
        count = torch.sym_min(1 + length // hop, self.config.frames)
        place = torch.arange((count + HOPS - 1) * hop) - n_fft // 2
        mirrored = length - 1 - (length - 1 - place.abs()).abs()
        sample = mirrored - (length - samples) // 2
        inside = (sample >= 0) & (sample < samples)
        sound = torch.where(inside, audio.index_select(1, sample.clamp(0, samples - 1)), 0)
        hops = rearrange(sound, "m (t hop) -> m t hop", hop=hop)
        return torch.cat([hops[:, i : i + count] for i in range(HOPS)], dim=2)


def filters(c: MelodyConfig) -> Tensor:
    """The weight of each bin of a spectrum in each pitch class: float32 [n_fft / 2 + 1, chroma], from C on.

    Ellis, "Chroma feature analysis and synthesis" (Columbia University, LabROSA, 2007): a bell around each pitch class
    in every octave, half a class wide or as wide as a bin, of the same power in all bins; then a bell over the octaves
    around the fifth over 27.5 Hz, two wide.
    """
    bins = np.arange(1, c.n_fft // 2 + 2)  # one more than there are: widths are from each to the next
    octave = np.log2(bins * c.sample_rate / c.n_fft / 27.5)
    octave = np.concatenate([octave[:1] - 1.5, octave])  # bin 0 has no pitch: one and a half octaves below bin 1
    width = np.maximum(np.diff(octave) * c.chroma, 1)[:, None]
    octave, half = octave[:-1, None], round(c.chroma / 2)
    distance = (octave * c.chroma - np.arange(c.chroma) + half) % c.chroma - half
    bell = np.exp(-0.5 * (2 * distance / width) ** 2)
    bell *= np.exp(-0.5 * ((octave - 5) / 2) ** 2) / np.linalg.norm(bell, axis=1, keepdims=True)
    return torch.from_numpy(np.roll(bell, -3 * (c.chroma // 12), axis=1).astype(np.float32))  # from A on to from C on
