"""A sound as a picture: waveform and spectrogram, with the seam marked."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from clean_lm import atomic, audio_files
from clean_lm.audio import AudioError
from clean_lm.console import plain

WINDOW, HOP = 2048, 512
COLUMNS = 4000  # at most: more than the picture has, so that a long track takes no more memory
RANGE_DB = 90.0


def plot(path: Path, output: Path, seam: float | None = None) -> None:
    """Draw a sound file into a picture; `seam` in seconds. Raises AudioError, ValueError for an unknown format."""
    wav, rate = audio_files.read(path)
    seconds = wav.shape[1] / rate
    if seam is not None and not 0 <= seam <= seconds:
        raise AudioError(f"seam: got {seam} s, expected 0 .. {seconds:.2f}, the length of {path}")
    figure, (wave, spectrum) = plt.subplots(
        2, 1, figsize=(12, 6), sharex=True, layout="constrained", height_ratios=(1, 2)
    )
    for channel in wav:
        low, high = envelope(channel)
        time = (np.arange(len(low)) + 0.5) * seconds / len(low)
        wave.fill_between(time, low, high, linewidth=0.3, alpha=0.6)
    wave.set(ylabel="amplitude", ylim=(-1.05, 1.05), xlim=(0, seconds))
    wave.set_title(plain(path.name), parse_math=False)
    image = spectrum.imshow(
        spectrogram(wav.mean(axis=0)), origin="lower", aspect="auto", extent=(0, seconds, 0, rate / 2000), cmap="magma",
        vmin=-RANGE_DB, vmax=0,
    )  # fmt: skip
    spectrum.set(xlabel="seconds", ylabel="kHz")
    figure.colorbar(image, ax=spectrum, label="dB below the loudest", pad=0.01)
    if seam is not None:
        for axes in (wave, spectrum):
            axes.axvline(seam, color="tab:cyan", linewidth=1.5)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        wave.text(seam, 0.9, " new from here", color="black", va="top", clip_on=True, bbox=box)
    try:
        with atomic.file(output) as file:
            figure.savefig(file, dpi=110, format=output.suffix.removeprefix(".") or "png")
    finally:
        plt.close(figure)


def envelope(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float [samples] -> the lowest and the highest sample of each column [columns]."""
    starts = np.unique(np.arange(COLUMNS) * len(wave) // COLUMNS)
    return np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """float [samples] -> magnitudes in dB below the largest [WINDOW / 2 + 1, columns], Hann windows."""
    hop = max(HOP, -(-len(wave) // COLUMNS))
    padded = np.pad(wave, WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::hop] * np.hanning(WINDOW).astype(np.float32)
    magnitude = np.abs(np.fft.rfft(windows)).T
    return 20 * np.log10(np.maximum(magnitude / max(magnitude.max(), 1e-9), 10 ** (-RANGE_DB / 20)))
