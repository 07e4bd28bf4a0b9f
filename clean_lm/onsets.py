"""Where notes and beats begin in audio, and how well two pieces of music agree in it."""

import numpy as np

RATE = 100.0  # values of an onset curve a second
WINDOW = 0.04  # seconds of sound that one value sees
SHORTEST, LONGEST = 0.2, 2.0  # seconds between two beats or bars that are compared
STEPS = 48  # of a bar: divisible into thirds and sixteenths


def onset_curve(wav: np.ndarray, rate: int) -> np.ndarray:
    """How much louder the spectrum becomes, RATE times a second: float [channels, samples] -> float32 [n].

    The half-wave rectified spectral flux of log magnitudes (Dixon 2006, "Onset Detection Revisited", section 2.1).
    """
    mono, hop, size = wav.mean(axis=0), rate / RATE, round(WINDOW * rate)
    starts = (np.arange(int(len(mono) / hop)) * hop).astype(int)
    padded = np.pad(mono, (size // 2, size))
    curve, window, last = np.zeros(len(starts), np.float32), np.hanning(size), None
    for number, start in enumerate(starts):
        now = np.log1p(1000 * np.abs(np.fft.rfft(padded[start : start + size] * window)))
        if last is not None:
            curve[number] = np.maximum(now - last, 0).sum()
        last = now
    return curve


def agreement(prompt: np.ndarray, take: np.ndarray, bar: float | None) -> float:
    """How alike the rhythm of two onset curves is, the second going on where the first ends: -1 to 1.

    bar: seconds; both are laid over one bar and compared, so that the place in the bar counts. None: their
    autocorrelations are, so that the tempo counts. 0 where one of them has no onsets.
    """
    if bar is None:
        return correlation(autocorrelation(prompt), autocorrelation(take))
    return correlation(folded(prompt, bar, -len(prompt) / RATE), folded(take, bar, 0.0))


def folded(curve: np.ndarray, bar: float, start: float) -> np.ndarray:
    """The mean of a curve at STEPS places of a bar; it begins `start` seconds after a bar line."""
    places = (((np.arange(len(curve)) / RATE + start) / bar % 1) * STEPS).astype(int) % STEPS
    return np.bincount(places, curve, STEPS) / np.maximum(np.bincount(places, minlength=STEPS), 1)


def autocorrelation(curve: np.ndarray) -> np.ndarray:
    """Of a curve at distances from SHORTEST to LONGEST; 0 beyond its length."""
    curve = curve - curve.mean() if len(curve) else curve
    lags = range(round(SHORTEST * RATE), round(LONGEST * RATE))
    return np.array([float(curve[lag:] @ curve[: len(curve) - lag]) if lag < len(curve) else 0.0 for lag in lags])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0
