"""A sound as a picture: waveform and spectrogram, with the seam marked."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from clean_lm import audio

WINDOW, HOP = 2048, 512
RANGE_DB = 90.0


def plot(path: Path, output: Path, seam: float | None = None) -> None:
    """Draw a sound file into a picture; `seam` in seconds. Raises AudioError."""
    wav, rate = audio.read(path)
    seconds = wav.shape[1] / rate
    figure, (wave, spectrum) = plt.subplots(
        2, 1, figsize=(12, 6), sharex=True, layout="constrained", height_ratios=(1, 2)
    )
    time = np.arange(wav.shape[1]) / rate
    for channel in wav:
        wave.plot(time, channel, linewidth=0.3, alpha=0.8)
    wave.set(ylabel="amplitude", ylim=(-1.05, 1.05), title=path.name)
    image = spectrum.imshow(
        spectrogram(wav.mean(axis=0)), origin="lower", aspect="auto", extent=(0, seconds, 0, rate / 2000), cmap="magma",
        vmin=-RANGE_DB, vmax=0,
    )  # fmt: skip
    spectrum.set(xlabel="seconds", ylabel="kHz")
    figure.colorbar(image, ax=spectrum, label="dB below the loudest", pad=0.01)
    if seam is not None:
        for axes in (wave, spectrum):
            axes.axvline(seam, color="tab:cyan", linewidth=1.5)
        wave.text(seam, 0.9, " new from here", color="tab:cyan", va="top")
    figure.savefig(output, dpi=110)
    plt.close(figure)


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """float [samples] -> magnitudes in dB below the largest [WINDOW / 2 + 1, frames], Hann windows."""
    padded = np.pad(wave, (WINDOW // 2, WINDOW // 2 + -len(wave) % HOP))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW).astype(np.float32)
    magnitude = np.abs(np.fft.rfft(windows)).T
    return 20 * np.log10(np.maximum(magnitude / max(magnitude.max(), 1e-9), 10 ** (-RANGE_DB / 20)))
