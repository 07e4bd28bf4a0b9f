"""Bars and beats: which part of a track is the prompt, and where the result ends, to the sample.

track    |offset|---- bar 0 ----|---- bar 1 ----|---- bar 2 ----|--- a part of a bar
                                |<- prompt: 2 bars, up to the last line ->|<- new bars ->|
"""

import math
from dataclasses import dataclass, replace

from clean_lm.options import LONGEST, integer, number

SLOWEST, FASTEST = 20.0, 500.0  # beats a minute
MOST_BEATS = 32  # of a bar
MOST_BARS = 10_000
ROUNDING = 2  # samples that a track may be shorter than its bars: what is rounded once more when a track is rendered


@dataclass(frozen=True)
class MusicalTime:
    """A track's grid, and how many of its bars are used."""

    bpm: float  # beats a minute
    prompt_bars: int | None = None  # whole bars to continue from; None: as many as fit into the seconds of the prompt
    bars: int | None = None  # of the result, the prompt's among them; None: as many as fit into the duration
    beats_per_bar: int = 4
    offset: float = 0.0  # seconds from the beginning of the track to its first bar line

    def validate(self) -> None:
        """Raise ValueError: `bpm: got ...`."""
        number("bpm", self.bpm, f"beats a minute, {SLOWEST:g} to {FASTEST:g}", SLOWEST, FASTEST)
        integer("beats_per_bar", self.beats_per_bar, 1, MOST_BEATS)
        number("offset", self.offset, f"seconds to the first bar line, 0 to {LONGEST:g}", 0, LONGEST)
        for name in ("prompt_bars", "bars"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1, MOST_BARS)
        if self.bars is not None and self.prompt_bars is not None and self.bars <= self.prompt_bars:
            raise ValueError(
                f"bars: got {self.bars}, expected more than the prompt's {self.prompt_bars}, which are among them"
            )

    @property
    def beat(self) -> float:
        """Seconds."""
        return 60 / self.bpm

    @property
    def bar(self) -> float:
        """Seconds."""
        return self.beat * self.beats_per_bar

    def resolved(self, prompt_seconds: float, duration: float) -> "MusicalTime":
        """With numbers for None: the whole bars in these seconds, one bar of prompt and one new bar at least."""
        prompt = self.prompt_bars
        if prompt is None:
            most = math.inf if self.bars is None else self.bars - 1
            prompt = int(max(1, min(prompt_seconds / self.bar + 1e-9, most)))
        bars = max(prompt + 1, int(duration / self.bar + 1e-9)) if self.bars is None else self.bars
        return replace(self, prompt_bars=prompt, bars=bars)

    def line(self, bar: int, rate: int) -> int:
        """The sample at which a bar begins, the first one at 0."""
        return round((self.offset + bar * self.bar) * rate)

    def length(self, bars: int, rate: int) -> int:
        """Samples of so many bars: a loop of them goes round in a sequencer of this tempo."""
        return round(bars * self.bar * rate)

    def whole_bars(self, samples: int, rate: int) -> int:
        """How many whole bars a track of so many samples has, less than 0 for one that ends before its offset."""
        whole = math.ceil((samples + ROUNDING - self.offset * rate) / (self.bar * rate))
        while self.line(whole, rate) > samples + ROUNDING:
            whole -= 1
        return whole

    def prompt(self, samples: int, rate: int, at_end: bool) -> tuple[int, int]:
        """The prompt of a track that has so many samples: its first sample, and the one after its last.

        Up to the last bar line of the track, or from its first. Raises ValueError for a track that is too short.
        """
        assert self.prompt_bars is not None
        whole = self.whole_bars(samples, rate)
        if whole < self.prompt_bars:
            raise ValueError(
                f"prompt_bars: got {self.prompt_bars}, the track has {max(0, whole)} whole bars of {self.bar:.3f} s "
                f"from {self.offset:g} s on; expected fewer, or another bpm or offset"
            )
        last = whole if at_end else self.prompt_bars
        return self.line(last - self.prompt_bars, rate), min(samples, self.line(last, rate))


@dataclass(frozen=True)
class Frames:
    """The codec's frames that hold whole bars, at its sample rate."""

    prompt: int  # of the prompt, which end on its last bar line
    total: int
    first: int  # samples before the first bar line, as the prompt's first frame begins before it
    length: int  # samples of the bars

    @classmethod
    def of(cls, time: MusicalTime, sample_rate: int, hop: int) -> "Frames":
        """Those of a time with numbers for its bars; prompt_bars None: no prompt."""
        assert time.bars is not None
        given, length = time.length(time.prompt_bars or 0, sample_rate), time.length(time.bars, sample_rate)
        prompt = -(-given // hop)
        first = prompt * hop - given
        return cls(prompt, -(-(first + length) // hop), first, length)


def seconds_of(frames: int, frame_rate: float) -> float:
    """A duration that int(duration * frame_rate), audiocraft's arithmetic, takes for so many frames."""
    found = frames / frame_rate
    while int(found * frame_rate) < frames:
        found = math.nextafter(found, math.inf)
    return found
