"""Windows: how audio longer than the model was trained on is generated, each window continuing the one before.

frames   0         10        20        30        40        50
window 0 ==========--------------------                          = known: the prompt
window 1           ==========--------------------                - generated
window 2                     ==========----------...             here: 30 frames at most, a stride of 10
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Frames of a generation that the model reads and draws without forgetting any."""

    start: int  # its first frame in the whole
    known: int  # its first frames, which are not generated
    frames: int  # of it in all

    @property
    def end(self) -> int:
        return self.start + self.frames


def windows(duration: float, max_duration: float, extend_stride: float, frame_rate: float, prompt: int) -> list[Window]:
    """The windows of `duration` seconds that begin with `prompt` known frames; none if nothing is left to generate.

    audiocraft's arithmetic, in its own floats: the whole may come out a frame short of duration * frame_rate.
    Raises ValueError if a later window would have nothing to generate.
    """
    total = int(duration * frame_rate)
    if duration <= max_duration:
        return [Window(0, prompt, total)]
    stride = int(frame_rate * extend_stride)
    if not 0 < stride < int(max_duration * frame_rate):
        raise ValueError(
            f"extend_stride: got {extend_stride} s, expected {1 / frame_rate:g} s (a frame) or more, less than "
            f"{max_duration:g} s (a window)"
        )
    found, start, known = [], 0, prompt
    while start + known < total:
        frames = int(min(duration - start / frame_rate, max_duration) * frame_rate)
        if frames <= known:
            raise ValueError(
                f"the prompt fills a window: got a prompt of {prompt / frame_rate:g} s, windows of {max_duration:g} s "
                f"every {extend_stride:g} s, {duration:g} s in all; expected a shorter prompt"
            )
        found.append(Window(start, known, frames))
        start, known = start + stride, max(0, frames - stride)
    return found


def plan(duration: float, max_duration: float, extend_stride: float, frame_rate: float, prompt: int) -> list[Window]:
    """The windows of a generation that has something to generate. Raises ValueError if it has not."""
    found = windows(duration, max_duration, extend_stride, frame_rate, prompt)
    if not found or found[-1].end <= prompt:
        raise ValueError(
            f"duration: requested {duration:g} s, but the prompt already has {prompt / frame_rate:g} s; "
            "the duration includes the prompt: ask for more, or give a shorter prompt"
        )
    return found
