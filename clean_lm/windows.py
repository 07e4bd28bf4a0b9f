"""Windows: how audio longer than the model was trained on is generated, each window continuing the one before.

frames   0         10        20        30        40        50
window 0 ==========--------------------                          = known: the prompt
window 1           ==========--------------------                - generated
window 2                     ==========----------...             here: 30 frames at most, a stride of 10
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clean_lm.options import MOST_WINDOWS


@dataclass(frozen=True)
class Window:
    """Frames of a generation that the model reads and draws without forgetting any."""

    start: int  # its first frame in the whole
    known: int  # its first frames, which are not generated
    frames: int  # of it in all

    @property
    def end(self) -> int:
        return self.start + self.frames


@dataclass(frozen=True)
class Windows:
    """The windows of one generation, computed anew each time they are iterated over: a list would grow with them."""

    duration: float  # seconds
    max_duration: float
    extend_stride: float
    frame_rate: float
    prompt: int  # frames that are known

    def __iter__(self) -> Iterator[Window]:
        """audiocraft's arithmetic, in its own floats: the whole may come out a frame short of duration * frame_rate.

        Raises ValueError if a later window would have nothing to generate.
        """
        total, stride = int(self.duration * self.frame_rate), int(self.frame_rate * self.extend_stride)
        if self.duration <= self.max_duration:
            yield Window(0, self.prompt, total)
            return
        start, known = 0, self.prompt
        while start + known < total:
            frames = int(min(self.duration - start / self.frame_rate, self.max_duration) * self.frame_rate)
            if frames <= known:
                raise ValueError(
                    f"the prompt fills a window: got a prompt of {self.prompt / self.frame_rate:g} s, windows of "
                    f"{self.max_duration:g} s every {self.extend_stride:g} s, {self.duration:g} s in all; expected a "
                    "shorter prompt"
                )
            yield Window(start, known, frames)
            start, known = start + stride, max(0, frames - stride)


def windows(duration: float, max_duration: float, extend_stride: float, frame_rate: float, prompt: int) -> Windows:
    """The windows of `duration` seconds that begin with `prompt` known frames; none if nothing is left to generate.

    Raises ValueError if the windows would not advance, or would be too many.
    """
    found = Windows(duration, max_duration, extend_stride, frame_rate, prompt)
    if duration <= max_duration:
        return found
    stride = int(frame_rate * min(max(extend_stride, 0), max_duration))
    if not 0 < stride < int(max_duration * frame_rate):
        raise ValueError(
            f"extend_stride: got {extend_stride} s, expected {1 / frame_rate:g} s (a frame) or more, less than "
            f"{max_duration:g} s (a window)"
        )
    if (count := math.ceil(duration * frame_rate / stride)) > MOST_WINDOWS:
        raise ValueError(
            f"extend_stride: got {extend_stride} s, about {count} windows in {duration:g} s; expected a longer one, "
            f"for {MOST_WINDOWS} windows at most"
        )
    return found


def plan(duration: float, max_duration: float, extend_stride: float, frame_rate: float, prompt: int) -> Windows:
    """The windows of a generation that has something to generate. Raises ValueError if it has not."""
    found = windows(duration, max_duration, extend_stride, frame_rate, prompt)
    if end(found) <= prompt:
        raise ValueError(
            f"duration: requested {duration:g} s, but the prompt already has {prompt / frame_rate:g} s; "
            "the duration includes the prompt: ask for more, or give a shorter prompt"
        )
    return found


def end(found: Iterable[Window]) -> int:
    """The frame at which the last window ends; 0 without windows."""
    return max((window.end for window in found), default=0)


def longest(found: Iterable[Window]) -> int:
    """Frames of the longest window."""
    return max(window.frames for window in found)
