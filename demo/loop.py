"""Synthesise the demo's loop: two bars of drums and bass at 120 beats a minute, demo/loop.wav.

python demo/loop.py
"""

from pathlib import Path

import numpy as np

from clean_lm import audio

RATE, BEAT = 32_000, 0.5  # samples a second, seconds


def main() -> None:
    path = Path(__file__).with_name("loop.wav")
    audio.write(path, loop()[None], RATE, strategy="peak")
    print(f"wrote {path}")


def loop(bars: int = 2, seed: int = 0) -> np.ndarray:
    """Kick on every beat, snare on the second and fourth, hats between, a bass line: float32 [samples]."""
    rng = np.random.default_rng(seed)
    wave = np.zeros(round(bars * 4 * BEAT * RATE))
    for beat in range(bars * 4):
        place(wave, beat, kick())
        if beat % 2:
            place(wave, beat, 0.5 * snare(rng))
        place(wave, beat + 0.5, 0.25 * hat(rng))
        for half, note in enumerate((33, 33 if beat % 4 < 3 else 36)):
            place(wave, beat + half / 2, 0.4 * bass(note))
    return wave.astype(np.float32)


def place(wave: np.ndarray, beat: float, sound: np.ndarray) -> None:
    start = round(beat * BEAT * RATE)
    wave[start : start + len(sound)] += sound[: len(wave) - start]


def seconds(length: float) -> np.ndarray:
    return np.arange(round(length * RATE)) / RATE


def kick() -> np.ndarray:
    t = seconds(0.3)
    return np.sin(2 * np.pi * (45 * t + 8 * (1 - np.exp(-t * 25)))) * np.exp(-t * 12)


def snare(rng: np.random.Generator) -> np.ndarray:
    t = seconds(0.2)
    return rng.standard_normal(len(t)) * np.exp(-t * 22) + 0.6 * np.sin(2 * np.pi * 190 * t) * np.exp(-t * 30)


def hat(rng: np.random.Generator) -> np.ndarray:
    t = seconds(0.06)
    return np.diff(rng.standard_normal(len(t) + 1)) * np.exp(-t * 70)


def bass(note: int) -> np.ndarray:
    """A MIDI note as a few harmonics of a saw."""
    t, pitch = seconds(BEAT / 2), 440 * 2 ** ((note - 69) / 12)
    return sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 6)) * np.minimum(1, (t[-1] - t) * 40)


if __name__ == "__main__":
    main()
