"""Measures of audio and of codes, for the demo's model, in numpy."""

from collections.abc import Callable, Sequence

import numpy as np

from demo.train import synth

RATE = synth.RATE
WINDOW, HOP = 1024, 160  # of onsets: one every 5 ms
LAGS = np.arange(60, 170)  # of a beat, in onsets: 300 to 850 ms
SAME = 0.03  # log of the ratio up to which two tempi are the same
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
    """Mean difference of log-magnitudes in dB over windows of 2048, 512 and 128 samples, with a floor at -60 dB."""
    pairs = [[spectrum(w, window, window // 4) for w in (ours, theirs)] for window in (2048, 512, 128)]
    return float(np.mean([np.abs(20 * np.log10((a + 1e-3) / (b + 1e-3))).mean() for a, b in pairs]))


def onsets(wave: np.ndarray) -> np.ndarray:
    """[samples] -> how much louder each column is than the one before, summed over the spectrum [columns]."""
    loud = np.log1p(100 * spectrum(wave, WINDOW, HOP))
    rise = np.maximum(0, np.diff(loud, axis=0)).sum(axis=1)
    return rise - rise.mean()


def rhythm(wave: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Autocorrelation of the onsets at some lags, 1 at lag 0; of a lag and its neighbours the highest."""
    rise = onsets(wave)
    power = rise @ rise / len(rise)
    near = lags[:, None] + np.arange(-1, 2)
    return np.array([[rise[lag:] @ rise[:-lag] / (len(rise) - lag) / power for lag in row] for row in near]).max(axis=1)


def beat(wave: np.ndarray) -> float:
    """Seconds of a beat, or of two or half of one: the lag at which, with twice the lag, onsets correlate best."""
    score = rhythm(wave, LAGS) + rhythm(wave, 2 * LAGS)
    return float(LAGS[score.argmax()] * HOP / RATE)


def same_tempo(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two waves have one tempo; half and double are others."""
    return abs(np.log(beat(after) / beat(before))) < SAME


def features(wave: np.ndarray) -> np.ndarray:
    """The classifier's input: loudness in bands, its spread, the onsets' autocorrelation at every tempo's beat."""
    bands = np.array_split(np.log1p(100 * spectrum(wave, WINDOW, HOP)), np.geomspace(2, 400, BANDS).astype(int), axis=1)
    loud = np.stack([band.mean(axis=1) for band in bands])
    lags = np.array(BEATS) * synth.HOP // HOP
    return np.concatenate([loud.mean(axis=1), loud.std(axis=1), rhythm(wave, lags), rhythm(wave, 2 * lags), [1]])


class Listener:
    """Classifies loops as one of nine kinds (style and tempo) by least squares on the features of decoded loops."""

    def __init__(self, loops: Sequence[synth.Loop], round_trip: Callable[[np.ndarray], np.ndarray]):
        """round_trip: [samples] -> [samples], encoded and decoded."""
        x, y = (
            np.stack([features(round_trip(loop.wave)) for loop in loops]),
            np.eye(len(BEATS))[[kind(x) for x in loops]],
        )
        self.scale = np.abs(x).max(axis=0) + 1e-9
        self.weights = np.linalg.lstsq(np.vstack([x / self.scale, 0.03 * np.eye(x.shape[1])]),
                                       np.vstack([y, np.zeros((x.shape[1], y.shape[1]))]))[0]  # fmt: skip

    def __call__(self, wave: np.ndarray) -> int:
        return int((features(wave) / self.scale @ self.weights).argmax())


def kind(loop: synth.Loop) -> int:
    """The index of a loop's beat in BEATS, which says its style too: no two styles share a tempo."""
    return BEATS.index(loop.beat)


class Unigram:
    """Predicts each code by how often it occurs in its codebook."""

    def __init__(self, codes: np.ndarray, card: int):
        """codes [N, K, T] of the training set."""
        counts = np.stack([np.bincount(k.ravel(), minlength=card) + 1.0 for k in codes.swapaxes(0, 1)])
        self.probabilities = counts / counts.sum(axis=1, keepdims=True)  # [K, card]

    def of(self, codes: np.ndarray) -> np.ndarray:
        """codes [N, K, T] -> probabilities [N, K, T]."""
        return np.stack([table[k] for table, k in zip(self.probabilities, codes.swapaxes(0, 1), strict=True)], axis=1)


class Again:
    """Predicts the code of a given number of frames ago, with one probability a codebook; otherwise the unigram."""

    def __init__(self, unigram: Unigram, codes: np.ndarray, lags: Sequence[int]):
        """Fits the probabilities to codes [N, K, T] of the training set; lags: frames to look back in each."""
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
