"""Synthesise loops to train on: drum and bass, house and chords, each at three tempi, in four keys.

    python -m demo.train.synth --seed 1 --style house --out house.wav

A loop repeats one or two bars, with small changes in every bar and a fill in some, so that to continue it takes more
than copying. Drum hits come from a fixed sample pack, notes are synthesised each time. A beat is a whole number of the
codec's frames and every hit begins with one: what sounds the same then has about the same codes, and a model of this
size can learn it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clean_lm import audio_files

RATE, HOP = 32_000, 640  # samples a second, samples of the codec's frames
# style: frames of a beat, from fast to slow
TEMPI = {"drum and bass": (16, 18, 20), "house": (22, 24, 28), "chords": (30, 34, 40)}
PACE = ("fast", "", "slow")  # what each of the three is called
NAMES = {
    "drum and bass": ("drum and bass", "drum and bass with a deep bass line"),
    "house": ("house", "four on the floor house"),
    "chords": ("chords", "ambient pads and chords"),
}
HITS = 4  # of every drum in the sample pack
KEYS = (0, 3, 5, 7)  # semitones over a style's lowest root
LEVEL = 0.8  # of the loudest moment there can be
MINOR, MAJOR = (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 5, 7, 9, 11)
PROGRESSIONS = ((0, 5, 2, 6), (0, 3, 5, 4), (0, 6, 5, 6), (5, 3, 0, 4), (0, 4, 5, 3), (0, 2, 3, 4))  # scale degrees


@dataclass(frozen=True)
class Loop:
    wave: np.ndarray  # float32 [samples]
    style: str
    beat: int  # frames
    text: str


def loop(seed: int, seconds: float, style: str | None = None, pace: int | None = None) -> Loop:
    """The loop of a seed, always the same; it begins with a bar. pace: 0 fast, 1, 2 slow."""
    rng = np.random.default_rng((seed, 1))
    style = style or str(rng.choice(list(TEMPI)))
    pace = int(rng.integers(3)) if pace is None else pace
    beat = TEMPI[style][pace]
    track = Track(beat, round(seconds * RATE))
    {"drum and bass": drum_and_bass, "house": house, "chords": chords}[style](track, rng)
    return Loop(track.mix().astype(np.float32), style, beat, describe(style, pace, rng))


def describe(style: str, pace: int, rng: np.random.Generator) -> str:
    """A text for a loop: its style, and in two of three its tempo as a word or a number."""
    return texts(str(rng.choice(NAMES[style])), style, pace)[int(rng.integers(3))]


def texts(name: str, style: str, pace: int) -> tuple[str, str, str]:
    """The name of a style: alone, with its tempo as a number, with its tempo as a word (none for the middle one)."""
    return name, f"{name}, {bpm(TEMPI[style][pace])} bpm", f"{PACE[pace]} {name}".strip()


def bpm(beat: int) -> int:
    """frames of a beat -> beats a minute, rounded."""
    return round(60 * RATE / HOP / beat)


class Track:
    """A time line in sixteenths, each at the nearest frame. `music` is ducked under the kick, `drums` are not."""

    def __init__(self, beat: int, samples: int):
        self.beat = beat  # frames
        self.bars = -(-samples // (4 * beat * HOP))
        self.drums, self.music, self.duck = (np.zeros(samples + RATE) for _ in range(3))
        self.samples = samples

    def seconds(self, steps: float) -> float:
        return steps * self.beat / 4 * HOP / RATE

    def hit(self, step: float, sound: np.ndarray, gain: float) -> None:
        self._add(self.drums, step, sound * gain)

    def play(self, step: float, sound: np.ndarray, gain: float) -> None:
        self._add(self.music, step, sound * gain)

    def kick(self, step: float, sound: np.ndarray, gain: float) -> None:
        self.hit(step, sound, gain)
        self._add(self.duck, step, decay(0.25, 14))

    def _add(self, line: np.ndarray, step: float, sound: np.ndarray) -> None:
        start = int(step * self.beat / 4 + 0.5) * HOP
        if start < self.samples:
            sound = sound[: len(line) - start]
            line[start : start + len(sound)] += sound

    def mix(self) -> np.ndarray:
        """[samples], LEVEL at most."""
        return LEVEL * np.tanh(self.drums + self.music * (1 - 0.7 * np.minimum(self.duck, 1)))[: self.samples]


# Styles


def drum_and_bass(track: Track, rng: np.random.Generator) -> None:
    """Two-step breaks and a long bass."""
    kick, snare, hat = (pick(name, rng) for name in ("kick", "snare", "hat"))
    kicks = [(0, 10), (0, 7, 10), (0, 3, 10), (0, 10, 14), (0, 2, 10)]
    first, second = (kicks[i] for i in rng.integers(len(kicks), size=2))
    ghosts = [tuple(np.flatnonzero(rng.random(16) < 0.12).tolist()) for _ in range(2)]
    every = int(rng.choice((1, 2, 2)))
    root, scale, timbre = key(28, rng), MINOR, int(rng.integers(3))
    line = [(0, 0, 6), (6, int(rng.integers(7)), 4), (10, 0, 6)] if rng.random() < 0.5 else [(0, 0, 10), (10, 2, 6)]
    answer = [(step, int(rng.integers(7)), length) for step, _, length in line]
    pad, period = rng.random() < 0.35, int(rng.integers(1, 3))
    for bar in range(track.bars):
        at, odd = 16 * bar, bar % period
        fill = rng.random() < 0.12
        for step in (first, second)[odd]:
            track.kick(at + step, kick, 0.9)
        for step in (4, 12):
            track.hit(at + step, snare, 0.7)
        for step in (*ghosts[odd], *((13, 14, 15) if fill else ())):
            track.hit(at + step, snare, 0.16 + 0.2 * fill)
        for step in range(0, 16, every):
            track.hit(at + step, hat, (0.3 if step % 4 == 0 else 0.2) * (rng.random() > 0.08))
        for step, degree, length in answer if odd else line:
            track.play(at + step, bass(note(root, scale, degree), track.seconds(length), timbre), 0.4)
        if pad and not odd:
            track.play(at, chord_sound(root + 24, scale, 0, track.seconds(16 * period), "pad"), 0.25)


def house(track: Track, rng: np.random.Generator) -> None:
    """Four on the floor: a kick on every beat, a clap on the second and fourth, hats and bass between."""
    kick, clap, hat, open_hat = (pick(name, rng) for name in ("kick", "clap", "hat", "open"))
    root, scale, timbre = key(33, rng), (MINOR, MAJOR)[int(rng.random() < 0.3)], int(rng.integers(3))
    progression = PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))][: int(rng.integers(1, 3))]
    lines = [(2, 6, 10, 14), (2, 3, 6, 10, 11, 14), (0, 3, 6, 10, 13), (2, 6, 9, 12, 14)]
    line, stabs = lines[int(rng.integers(4))], [(0, 6, 12), (3, 6, 11), (2, 6, 10, 14), ()][int(rng.integers(4))]
    shaker = rng.random() < 0.5
    for bar in range(track.bars):
        at, degree = 16 * bar, progression[bar % len(progression)]
        fill = rng.random() < 0.12
        for step in (0, 4, 8, 12, *((14,) if fill else ())):
            track.kick(at + step, kick, 0.9)
        for step in (4, 12, *((15,) if fill else ())):
            track.hit(at + step, clap, 0.5)
        for step in (2, 6, 10, 14):
            track.hit(at + step, open_hat, 0.3)
        for step in range(16) if shaker else ():
            track.hit(at + step, hat, (0.1, 0.18)[step % 2] * (rng.random() > 0.08))
        for step in line:
            jump = 12 if rng.random() < 0.08 else 0
            track.play(at + step, bass(note(root, scale, degree) + jump, track.seconds(1.8), timbre), 0.4)
        for step in stabs:
            track.play(at + step, chord_sound(root + 24, scale, degree, track.seconds(1.5), "keys"), 0.35)


def chords(track: Track, rng: np.random.Generator) -> None:
    """Two chords in a bar or four in two, struck in a rhythm over pads; at most a soft beat."""
    root, scale = key(48, rng), (MINOR, MAJOR)[int(rng.random() < 0.5)]
    progression = PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))][: int(rng.choice((2, 4)))]
    rhythm = [(0, 4), (0, 3, 6), (0, 2, 4, 6), (0, 6)][int(rng.integers(4))]
    arpeggio, pads, beat = rng.random() < 0.5, rng.random() < 0.7, rng.random() < 0.4
    kick, hat = pick("kick", rng), pick("hat", rng)
    for half in range(2 * track.bars):
        at, degree = 8 * half, progression[half % len(progression)]
        if pads:
            track.play(at, chord_sound(root, scale, degree, track.seconds(8), "pad"), 0.25)
        for step in rhythm:
            track.play(at + step, chord_sound(root, scale, degree, track.seconds(3), "keys"), 0.4)
        track.play(at, bass(note(root - 24, scale, degree), track.seconds(7), 0), 0.3)
        for step in range(0, 8, 2) if arpeggio else ():
            tone = degree + (0, 2, 4, 7)[step // 2 if rng.random() > 0.1 else 3]
            track.play(at + step, keys(note(root + 12, scale, tone), track.seconds(2)), 0.2)
        if beat:
            track.kick(at, kick, 0.5)
            track.hit(at + 4, hat, 0.25)


# Sounds


def time(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * RATE)) / RATE


def decay(seconds: float, rate: float) -> np.ndarray:
    return np.exp(-rate * time(seconds))


def pick(name: str, rng: np.random.Generator) -> np.ndarray:
    return pack()[name][int(rng.integers(HITS))]


@lru_cache
def pack() -> dict[str, list[np.ndarray]]:
    """The sample pack: HITS sounds of every drum."""
    rng = np.random.default_rng(0)
    makers = {"kick": kick_drum, "snare": snare_drum, "clap": hand_clap, "hat": closed_hat, "open": open_hi_hat}
    return {name: [make(rng) for _ in range(HITS)] for name, make in makers.items()}


def kick_drum(rng: np.random.Generator) -> np.ndarray:
    t, low, fall = time(0.35), rng.uniform(42, 58), rng.uniform(20, 40)
    body = np.sin(2 * np.pi * (low * t + rng.uniform(3, 8) * (1 - np.exp(-t * fall)))) * np.exp(-t * rng.uniform(8, 14))
    return fade(body + 0.15 * noise(rng, len(t)) * np.exp(-t * 400))


def snare_drum(rng: np.random.Generator) -> np.ndarray:
    t = time(0.22)
    tone = np.sin(2 * np.pi * rng.uniform(160, 230) * t) * np.exp(-t * 28)
    return fade(0.5 * noise(rng, len(t)) * np.exp(-t * rng.uniform(16, 30)) + 0.7 * tone)


def hand_clap(rng: np.random.Generator) -> np.ndarray:
    t = time(0.2)
    bursts = sum(np.where(t >= d, np.exp(-(t - d) * 120), 0) for d in (0, 0.011, 0.022)) + np.exp(-t * 22)
    return fade(0.4 * np.diff(noise(rng, len(t) + 1)) * bursts * rng.uniform(0.6, 1))


def closed_hat(rng: np.random.Generator) -> np.ndarray:
    t = time(0.07)
    return fade(0.35 * np.diff(noise(rng, len(t) + 2), 2) * np.exp(-t * rng.uniform(50, 90)))


def open_hi_hat(rng: np.random.Generator) -> np.ndarray:
    t = time(0.2)
    return fade(0.35 * np.diff(noise(rng, len(t) + 2), 2) * np.exp(-t * rng.uniform(12, 25)))


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    return rng.standard_normal(samples)


def key(lowest: int, rng: np.random.Generator) -> int:
    """The MIDI note of a loop's root."""
    return lowest + int(rng.choice(KEYS))


def note(root: int, scale: Sequence[int], degree: int) -> int:
    """The MIDI note of a scale's degree, 7 an octave higher."""
    return root + 12 * (degree // 7) + scale[degree % 7]


def hertz(pitch: int) -> float:
    return 440 * 2 ** ((pitch - 69) / 12)


@lru_cache(4096)
def bass(pitch: int, seconds: float, timbre: int) -> np.ndarray:
    """A sine, a saw whose filter closes, or a hollow sound."""
    t, f = time(seconds), hertz(pitch)
    k = np.arange(1, (2, 13, 10)[timbre])[:, None]
    k = 2 * k - 1 if timbre == 2 else k
    bright = np.exp(-(k - 1) * (0.15 + 2.0 * t * (timbre == 1)))
    wave = (np.sin(2 * np.pi * f * k * t) / k * bright).sum(axis=0)
    return fade(wave * np.minimum(1, t * 300), 0.012)


@lru_cache(4096)
def keys(pitch: int, seconds: float) -> np.ndarray:
    """An electric piano: one sine bends another (Chowning's FM)."""
    t, f = time(seconds + 0.3), hertz(pitch)
    wave = np.sin(2 * np.pi * f * t + 1.6 * np.exp(-t * 6) * np.sin(2 * np.pi * 2 * f * t))
    return fade(wave * np.exp(-t * 4) * np.minimum(1, t * 400))


@lru_cache(4096)
def pad(pitch: int, seconds: float) -> np.ndarray:
    """Six soft harmonics that swell."""
    t, f, k = time(seconds), hertz(pitch), np.arange(1, 7)[:, None]
    wave = (np.sin(2 * np.pi * f * k * t) / k**1.7).sum(axis=0)
    return fade(wave * np.minimum(1, t * 8), 0.1)


@lru_cache(4096)
def chord_sound(root: int, scale: Sequence[int], degree: int, seconds: float, kind: str) -> np.ndarray:
    """Three notes, and the seventh."""
    play = {"pad": pad, "keys": keys}[kind]
    return sum((play(note(root, scale, degree + tone), seconds) for tone in (0, 2, 4, 6)), np.zeros(1)) / 3


def fade(wave: np.ndarray, seconds: float = 0.005) -> np.ndarray:
    """No click at the end."""
    ramp = np.minimum(1, np.arange(len(wave), 0, -1) / (seconds * RATE))
    return wave * ramp


# Sets


def render(folder: Path, count: int, seconds: float) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """The loops of seeds 0 .. count: int16 [count, samples], mapped, and each one's style and pace. Made once."""
    waves, kinds = folder / f"loops-{count}-{seconds:g}.npy", folder / f"loops-{count}-{seconds:g}.json"
    if not kinds.exists():
        made = np.lib.format.open_memmap(waves, "w+", np.int16, (count, round(seconds * RATE)))
        found = []
        for seed in tqdm(range(count), "loops", disable=None):
            one = loop(seed, seconds)
            made[seed] = np.round(one.wave * 32767)
            found.append((one.style, TEMPI[one.style].index(one.beat)))
        made.flush()
        kinds.write_text(json.dumps(found), encoding="utf-8")
    return np.load(waves, mmap_mode="r"), [tuple(kind) for kind in json.loads(kinds.read_text(encoding="utf-8"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--style", choices=TEMPI)
    parser.add_argument("--pace", type=int, choices=range(3), help="0 fast, 1, 2 slow")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    made = loop(args.seed, args.seconds, args.style, args.pace)
    audio_files.write(args.out, made.wave[None], RATE)
    print(f"wrote {args.out}: {made.text}, {bpm(made.beat)} beats a minute")


if __name__ == "__main__":
    main()
