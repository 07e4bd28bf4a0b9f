"""What is measured of the demo's model: numbers of waves and of codes, in numpy."""

from collections.abc import Callable, Sequence

import numpy as np

from demo.train import synth

RATE = synth.RATE
WINDOW, HOP = 1024, 160  # of onsets: one every 5 ms
LAGS = np.arange(60, 170)  # of a beat, in onsets: 300 to 850 ms
SAME = 0.03  # how far two tempi may be apart
BEATS = [beat for tempi in synth.TEMPI.values() for beat in tempi]  # frames
BANDS = 12


def si_sdr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio of [samples] in dB (Le Roux et al. 2019, equation 5)."""
    target = theirs * (ours @ theirs) / (theirs @ theirs)
    return float(10 * np.log10((target @ target) / ((ours - target) @ (ours - target))))


def spectrum(wave: np.ndarray, window: int, hop: int) -> np.ndarray:
    """[samples] -> magnitudes [columns, window / 2 + 1], a full sine about 1."""
    rows = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    return np.abs(np.fft.rfft(rows * np.hanning(window).astype(np.float32))) * 4 / window


def stft_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean difference of log-magnitudes in dB over windows of 2048, 512 and 128 samples; under -60 dB all is one."""
    pairs = [[spectrum(w, window, window // 4) for w in (ours, theirs)] for window in (2048, 512, 128)]
    return float(np.mean([np.abs(20 * np.log10((a + 1e-3) / (b + 1e-3))).mean() for a, b in pairs]))


def onsets(wave: np.ndarray) -> np.ndarray:
    """[samples] -> how much louder each moment is than the one before [columns], summed over the spectrum."""
    loud = np.log1p(100 * spectrum(wave, WINDOW, HOP))
    rise = np.maximum(0, np.diff(loud, axis=0)).sum(axis=1)
    return rise - rise.mean()


def rhythm(wave: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Autocorrelation of the onsets at some lags, 1 at lag 0; of each lag's neighbours the best."""
    rise = onsets(wave)
    power = rise @ rise / len(rise)
    near = lags[:, None] + np.arange(-1, 2)
    return np.array([[rise[lag:] @ rise[:-lag] / (len(rise) - lag) / power for lag in row] for row in near]).max(axis=1)


def beat(wave: np.ndarray) -> float:
    """Seconds of a beat, or of two or a half: the lag whose onsets agree best, one and two lags apart."""
    score = rhythm(wave, LAGS) + rhythm(wave, 2 * LAGS)
    return float(LAGS[score.argmax()] * HOP / RATE)


def same_tempo(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two waves have one tempo; half and double are others."""
    return abs(np.log(beat(after) / beat(before))) < SAME


def features(wave: np.ndarray) -> np.ndarray:
    """What a kind of loop is told by: loudness in bands, its spread, and how much every tempo's beat repeats."""
    bands = np.array_split(np.log1p(100 * spectrum(wave, WINDOW, HOP)), np.geomspace(2, 400, BANDS).astype(int), axis=1)
    loud = np.stack([band.mean(axis=1) for band in bands])
    lags = np.array(BEATS) * synth.HOP // HOP
    return np.concatenate([loud.mean(axis=1), loud.std(axis=1), rhythm(wave, lags), rhythm(wave, 2 * lags), [1]])


class Listener:
    """Tells which of the nine kinds (style and tempo) a loop is: least squares on features of loops as the codec
    returns them."""

    def __init__(self, loops: Sequence[synth.Loop], heard: Callable[[np.ndarray], np.ndarray]):
        """heard: [samples] -> [samples], the codec's way there and back."""
        x, y = np.stack([features(heard(loop.wave)) for loop in loops]), np.eye(len(BEATS))[[kind(x) for x in loops]]
        self.scale = np.abs(x).max(axis=0) + 1e-9
        self.weights = np.linalg.lstsq(np.vstack([x / self.scale, 0.03 * np.eye(x.shape[1])]),
                                       np.vstack([y, np.zeros((x.shape[1], y.shape[1]))]))[0]  # fmt: skip

    def __call__(self, wave: np.ndarray) -> int:
        return int((features(wave) / self.scale @ self.weights).argmax())


def kind(loop: synth.Loop) -> int:
    """Which of BEATS a loop's is: every style has tempi of its own."""
    return BEATS.index(loop.beat)


class Unigram:
    """How often every code comes, by codebook: what a model without memory knows."""

    def __init__(self, codes: np.ndarray, card: int):
        """codes [N, K, T] of the training set."""
        counts = np.stack([np.bincount(k.ravel(), minlength=card) + 1.0 for k in codes.swapaxes(0, 1)])
        self.probabilities = counts / counts.sum(axis=1, keepdims=True)  # [K, card]

    def of(self, codes: np.ndarray) -> np.ndarray:
        """codes [N, K, T] -> probabilities [N, K, T]."""
        return np.stack([table[k] for table, k in zip(self.probabilities, codes.swapaxes(0, 1), strict=True)], axis=1)


class Again:
    """What stood some frames ago comes again, with a probability for each codebook; else the unigram. It is told how
    many frames a bar of the loop has."""

    def __init__(self, unigram: Unigram, codes: np.ndarray, lags: Sequence[int]):
        """codes [N, K, T] of the training set, frames to look back in each: finds the best probabilities."""
        self.unigram, hits, chances = unigram, [], []
        for row, lag in zip(codes, lags, strict=True):
            hits.append(row[:, lag:] == row[:, :-lag])
            chances.append(unigram.of(row[None, :, lag:])[0])
        hit, chance = np.concatenate(hits, axis=1), np.concatenate(chances, axis=1)
        shares = np.linspace(0.01, 0.99, 99)
        cost = np.stack([-np.log(share * hit + (1 - share) * chance).mean(axis=1) for share in shares])
        self.share = shares[cost.argmin(axis=0)]  # [K]

    def of(self, codes: np.ndarray, lag: int) -> np.ndarray:
        """codes [K, T] -> probabilities of those that have one to look back at [K, T - lag]."""
        hit, share = codes[:, lag:] == codes[:, :-lag], self.share[:, None]
        return share * hit + (1 - share) * self.unigram.of(codes[None, :, lag:])[0]
