"""One request for music, from files to takes: what the command line and the service do with their options.

validate -> read_source (source.py) -> draw_takes (takes.py) -> finish (joining.py)
"""

import math
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from clean_lm import audio, memory
from clean_lm.generation import Sampling
from clean_lm.manifest import BundleError, Manifest
from clean_lm.musical_time import MusicalTime, seconds_of
from clean_lm.options import LONGEST, MOST_TAKES, flag, integer, number, one_of, seconds, text
from clean_lm.windows import Windows, plan

SHORTEST_PROMPT = 1e-6  # seconds: a sample of the highest rate
LOOP_CROSSFADE = 0.01  # seconds, in which a loop's end meets its beginning
PARTS = 1  # frame: a prompt of whole bars begins with a part of one before its first bar line
MOST_RETRIES = 20
ROUNDED = 1e-5  # seconds by which a length that was read may be shorter than its bars
SPREAD = (0.8, 1.25)  # times the temperature: that of the first take, and of the last
SIDES, RATES = ("end", "start"), ("source", "codec")
JOINS = ("rendered", "splice", "append")


@dataclass(frozen=True)
class Request:
    """What is asked for; the command line's options, under their names."""

    input: Path | None = None  # the track to continue; None: music from a text, a melody or a style alone
    text: str | None = None
    negative_text: str | None = None
    melody: tuple[Path, ...] = ()  # stems, which are added up
    style: Path | None = None
    style_start: float | None = None  # seconds; None: drawn by the seed
    style_length: float = 3.0
    style_levels: int = 3
    duration: float | None = None  # seconds in all, the prompt included; None: the bundle's
    extend_stride: float | None = None  # seconds; None: the bundle's
    takes: int = 1
    seed: int | None = None  # take n is drawn with seed + n - 1; None: a new one
    top_k: int = 250
    top_p: float = 0.0
    temperature: float = 1.0
    cfg_coef: float = 3.0
    cfg_coef_beta: float | None = None
    fade_in: float = 0.0  # seconds
    fade_out: float = 0.0
    bpm: float | None = None  # beats a minute of the track; lengths are then in whole bars
    beats_per_bar: int = 4
    offset: float = 0.0  # seconds from the beginning of the track to its first bar line
    prompt_bars: int | None = None  # None: as many as fit into prompt_seconds, and as the track has
    bars: int | None = None  # of the result, the prompt's among them; None: as many as fit into duration
    loop: bool = False  # the end meets the beginning
    until_silence: bool = False  # end where the music has been quiet for a bar, or without bpm for 2 s
    retry_silent: int = 0  # draw a take again, so many times at most, whose first beat is near-silent
    spread: bool = False  # takes of different temperatures
    rank: bool = False  # takes in the order of how well they go on
    prompt_seconds: float = 6.0
    side: str = "end"  # of the track, which the prompt is taken from
    # rendered: the prompt as the codec renders it, then what is new. splice: the track untouched to the seam, then what
    # is new. append: the track without the prompt, then what rendered gives.
    join: str = "rendered"
    match_level: bool = True  # with splice
    channel: str = "mix"  # what a mono model is given of a track with several channels
    rate: str = "source"  # sample rate and channels of the result: the track's, or the codec's
    region: tuple[float, float] | None = None  # seconds of the track that are made anew; what is before and after stays
    codes: Path | None = None  # those of `input`, as save_codes writes them: it is then not encoded again

    @property
    def sampling(self) -> Sampling:
        return Sampling(True, self.temperature, self.top_k, self.top_p, self.cfg_coef, self.cfg_coef_beta)

    @property
    def time(self) -> MusicalTime | None:
        """The track's bars; None where lengths are in seconds."""
        if self.bpm is None:
            return None
        return MusicalTime(self.bpm, self.prompt_bars, self.bars, self.beats_per_bar, self.offset)

    @property
    def tail(self) -> float:
        """Seconds that are generated beyond the end, for the crossfade of a loop."""
        return LOOP_CROSSFADE if self.loop else 0.0


def validate(request: Request, manifest: Manifest) -> Request:
    """The request with the bundle's defaults, and a seed. Raises ValueError before any audio is read: `takes: got ...`,
    and BundleError for what the bundle cannot do."""
    number("prompt_seconds", request.prompt_seconds, f"more than 0, {LONGEST:g} at most", SHORTEST_PROMPT, LONGEST)
    try:
        integer("takes", request.takes, 1, MOST_TAKES)
    except ValueError:
        raise ValueError(
            f"takes: got {request.takes}, expected 1 or more, {MOST_TAKES} at most: each has its own caches"
        ) from None
    for name in ("text", "negative_text"):
        text(name, getattr(request, name))
    _validate_seed(request)
    for name, choices in (("side", SIDES), ("join", JOINS), ("channel", audio.CHANNELS), ("rate", RATES)):
        one_of(name, getattr(request, name), choices)
    if request.join != "rendered" and request.rate == "codec":
        raise ValueError(f"rate: got codec, expected source: {request.join} keeps the track as it is, its rate too")
    request.sampling.validate()
    _validate_controls(request)
    _validate_conditions(request, manifest)
    _validate_style(request)
    defaults = {name: getattr(manifest.defaults, name) for name in ("duration", "extend_stride")}
    request = replace(request, **{n: value for n, value in defaults.items() if getattr(request, n) is None})
    frame = 1 / manifest.codec.frame_rate
    seconds("duration", request.duration, frame, f"{frame:g} s (a frame) or more")
    number("extend_stride", request.extend_stride, f"seconds, {LONGEST:g} at most", 0, LONGEST)
    request = _in_bars(request)
    assert request.duration is not None
    seconds("duration", request.duration, frame, f"{frame:g} s (a frame) or more")
    _require_memory(request, manifest)
    validate_fades(request, request.duration)
    return replace(request, seed=secrets.randbits(32)) if request.seed is None else request


def _validate_seed(request: Request) -> None:
    if request.seed is None:
        return
    try:
        integer("seed", request.seed, 0, 2**64 - request.takes)
    except ValueError:
        raise ValueError(f"seed: got {request.seed}, expected a number from 0 to 2^64 - {request.takes}") from None


def _validate_conditions(request: Request, manifest: Manifest) -> None:
    """Raise BundleError if the bundle does not take the text, melody or style that is given."""
    bundle, model = manifest.folder, manifest.language_model
    for name in ("text", "negative_text"):
        if getattr(request, name) and "text_encoder" not in manifest.graphs:
            raise BundleError(f"{name}: {bundle} contains no text encoder; export it again with --text")
    if request.negative_text and request.cfg_coef == 1:
        raise ValueError("negative_text: counts for nothing with a cfg_coef of 1, which turns guidance off")
    for kind in ("melody", "style"):
        if getattr(request, kind) and model.self_wav != kind:
            found = f"a {model.self_wav} model" if model.self_wav else "a model of texts alone"
            raise BundleError(f"{kind}: {bundle} takes none: it is {found}")
    if request.style and "style_features" not in manifest.graphs:
        raise BundleError(f"style: {bundle} contains no MERT; export it again with --mert")
    if request.cfg_coef_beta is not None and not model.self_wav:
        raise BundleError(f"cfg_coef_beta: {bundle} takes none: it is for melody and style models")


def _validate_style(request: Request) -> None:
    """Raise ValueError for an excerpt of a style that is none."""
    number("style_length", request.style_length, f"seconds, more than 0, {LONGEST:g} at most", 1e-3, LONGEST)
    if request.style_start is not None:
        number("style_start", request.style_start, f"seconds, 0 to {LONGEST:g}", 0, LONGEST)


def _require_memory(request: Request, manifest: Manifest) -> None:
    """Raise ValueError if this machine has not the memory for the takes."""
    conditioned = request.text or request.negative_text or request.melody or request.style
    guidance = request.sampling.guidance if conditioned else "none"
    need = memory.of_generation(manifest, request.takes, plan_of(request, manifest, 0), guidance)
    name = "takes" if request.takes > 1 else "duration"
    memory.require(name, need, f"{request.takes} takes of {request.duration:g} s")


def plan_of(request: Request, manifest: Manifest, known: int) -> Windows:
    """The windows after `known` frames of a prompt. Raises ValueError."""
    model, rate = manifest.language_model, manifest.codec.frame_rate
    assert request.extend_stride is not None
    return plan(duration_of(request, rate), model.max_duration, request.extend_stride, rate, known)


def duration_of(request: Request, frame_rate: float, more: float = 0.0) -> float:
    """Seconds that are generated, the prompt included: with what is cut off again where bars or a loop end.

    more: seconds between the prompt and the bar that is the first new one, less what the prompt lacks of its bars.
    """
    assert request.duration is not None
    if request.bpm is None and not request.loop and request.region is None:
        return request.duration
    return seconds_of(math.ceil((request.duration + request.tail + more) * frame_rate - 1e-6) + PARTS, frame_rate)


def validate_fades(request: Request, new: float) -> None:
    """Raise ValueError unless the fades are no longer than what is new, in seconds."""
    for name in ("fade_in", "fade_out"):
        number(name, getattr(request, name), f"0 to {new:g} s, what is new", 0, new + ROUNDED)


def _validate_controls(request: Request) -> None:
    """Raise ValueError for controls that are none, or that exclude each other."""
    for name in ("loop", "until_silence", "spread", "rank", "match_level"):
        flag(name, getattr(request, name))
    integer("retry_silent", request.retry_silent, 0, MOST_RETRIES)
    bars = (request.prompt_bars, request.bars, request.beats_per_bar, request.offset)
    if request.bpm is None and bars != (None, None, Request.beats_per_bar, Request.offset):
        raise ValueError("bars: need the track's tempo; give bpm, or seconds in place of bars")
    if request.loop:
        for name in ("fade_in", "fade_out", "until_silence", "region"):
            if getattr(request, name):
                raise ValueError(f"loop: a loop has no end that {name} could change: leave one of them out")
    if request.until_silence and request.region:
        raise ValueError("until_silence: a region has its length; leave it out")
    if request.spread and (request.takes < 2 or not request.temperature):
        raise ValueError("spread: is over the temperatures of several takes; give takes, and a temperature above 0")
    if request.region is not None:
        _validate_region(request)


def _validate_region(request: Request) -> None:
    """Raise ValueError for a region that is none."""
    assert request.region is not None
    begin, stop = request.region
    number("region", begin, f"a begin of more than 0 s, {LONGEST:g} at most", SHORTEST_PROMPT, LONGEST)
    number("region", stop, f"an end after its begin, {begin:g} s", math.nextafter(begin, math.inf), LONGEST)
    if request.input is None or request.join != "splice" or request.side != "end":
        raise ValueError(f"region: got join {request.join} and side {request.side}, expected a track, splice and end")


def _in_bars(request: Request) -> Request:
    """With bpm: the bars that are used, and the duration that they have. Raises ValueError."""
    assert request.duration is not None
    if (time := request.time) is not None:
        time.validate()
    if request.region is not None:
        begin, stop = request.region
        return replace(request, duration=min(request.prompt_seconds, begin) + stop - begin)
    if time is None:
        return request
    if request.input is None:  # without a track there is no prompt
        bars = request.bars or max(1, int(request.duration / time.bar + 1e-9))
        return replace(request, bars=bars, prompt_bars=None, duration=bars * time.bar)
    time = time.resolved(request.prompt_seconds, request.duration)
    time.validate()
    assert time.bars is not None
    assert time.prompt_bars is not None
    return replace(  # prompt_bars stays None where a track may have fewer
        request,
        bars=time.bars,
        prompt_seconds=time.prompt_bars * time.bar,
        duration=time.bars * time.bar,
    )
