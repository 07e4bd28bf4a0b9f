"""Levels: audiocraft's strategies of its audio_write, and the loudness of ITU-R BS.1770-4 that one of them needs."""

import math

import numpy as np

from clean_lm.audio import AudioError, decibels, require_rates

HEADROOM_DB = {"clip": 1.0, "peak": 1.0, "rms": 18.0, "loudness": 14.0}  # audiocraft's
QUIET = 2e-3  # RMS under which `loudness` leaves a wave alone, audiocraft's energy_floor

# K-weighting at 48 kHz, (b, a) of a shelf and a high-pass: ITU-R BS.1770-4, tables 1 and 2
K_WEIGHTING = (
    ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)),
    ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)),
)
CHANNEL_WEIGHTS = {5: (1, 1, 1, 1.41, 1.41), 6: (1, 1, 1, 0, 1.41, 1.41)}  # L R C (LFE) Ls Rs; else all 1


def normalize(
    wav: np.ndarray, sample_rate: int, strategy: str | None, headroom_db: float | None = None, compressor: bool = False
) -> tuple[np.ndarray, int]:
    """audiocraft's strategies on float32 [channels, samples] -> (wave, samples that `clip` clipped).

    clip: values are cut at -headroom (1 dB). peak: the largest goes to -headroom (1 dB).
    rms: the RMS of the mono mix goes to -headroom (18 dB). loudness: to -headroom LUFS (14), then `compressor` is tanh.
    Silence stays silence. Raises AudioError.
    """
    if strategy is None:
        return wav, 0
    if not isinstance(strategy, str) or strategy not in HEADROOM_DB:
        raise AudioError(f"strategy: got {strategy!r}, expected one of {', '.join(HEADROOM_DB)} or None")
    level = -(HEADROOM_DB[strategy] if headroom_db is None else decibels("headroom_db", headroom_db))
    scale = 10 ** (level / 20)
    if strategy == "clip":
        return np.clip(wav, -scale, scale), int(np.count_nonzero(np.abs(wav) > scale))
    if strategy == "loudness":
        found = loudness(wav, sample_rate) if np.sqrt(np.mean(np.square(wav))) >= QUIET else -math.inf
        if found > -math.inf:
            wav = wav * np.float32(10 ** ((level - found) / 20))
        return np.tanh(wav) if compressor else wav, 0
    found = np.abs(wav).max() if strategy == "peak" else np.sqrt(np.mean(np.square(wav.mean(axis=0))))
    return wav * np.float32(scale / found) if found > 0 else wav, 0


def loudness(wav: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness in LUFS of [channels, samples], after ITU-R BS.1770-4; -inf for silence.

    K-weighted by the response that the standard's 48 kHz filters have at each frequency, so at any rate. Power in
    blocks of 400 ms every 100 ms; blocks under -70 LUFS are left out, then those 10 LU under the mean of the rest.
    Audio shorter than a block is one. Raises AudioError for a rate that is none.
    """
    require_rates(sample_rate, sample_rate)
    samples = wav.shape[1]
    size = 1 << (samples + sample_rate - 1).bit_length()  # a second of silence, so that no tail wraps around
    hertz = np.minimum(np.fft.rfftfreq(size, 1 / sample_rate), 24000)
    z = np.exp(-2j * np.pi * hertz / 48000)
    response = np.ones_like(z)
    for b, a in K_WEIGHTING:
        response *= np.polynomial.polynomial.polyval(z, b) / np.polynomial.polynomial.polyval(z, a)
    block, hop = min(samples, round(0.4 * sample_rate)), max(1, round(0.1 * sample_rate))
    starts = np.arange(0, samples - block + 1, hop)
    power = np.zeros(len(starts))
    for channel, weight in zip(wav, CHANNEL_WEIGHTS.get(len(wav), (1,) * len(wav)), strict=True):
        weighted = np.fft.irfft(np.fft.rfft(channel, size) * response, size)[:samples]
        energy = np.concatenate([[0], np.cumsum(np.square(weighted))])
        power += weight * (energy[starts + block] - energy[starts]) / block
    power = power[power > lufs_to_power(-70)]
    power = power[power > 0.1 * power.mean()] if len(power) else power
    return -0.691 + 10 * math.log10(power.mean()) if len(power) else -math.inf


def lufs_to_power(lufs: float) -> float:
    """The weighted mean square that has this loudness."""
    return 10 ** ((lufs + 0.691) / 10)
