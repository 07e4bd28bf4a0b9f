"""The audio of a request: which part of a track is the prompt."""

import math
from dataclasses import dataclass, replace

import numpy as np

from clean_lm import audio, audio_files, take_codes
from clean_lm.audio import AudioError
from clean_lm.manifest import Manifest
from clean_lm.manifest_fields import CodecInfo
from clean_lm.musical_time import MusicalTime
from clean_lm.request import Request, plan_of, validate_fades

QUIET_MIX_DB = 6.0  # a mono mix quieter than its channels by more is warned of; two unlike channels lose 3


@dataclass(frozen=True)
class Source:
    """The audio of a request, read: float32 [channels, samples] each.

    track    |----------------------------------|-----------|     with join "rendered", or side "start",
    prompt            |-lead-|------------------|                 the prompt is all of the track that is kept
                             first bar line   seam
    """

    track: np.ndarray | None
    prompt: np.ndarray | None  # at the track's rate; ends at the seam
    rate: int  # the track's, 0 without one
    reference: np.ndarray | None  # melody or style, at the model's rate and with its channels
    seam: int = 0  # samples of the track before what is new
    lead: int = 0  # samples of the prompt before its first bar line, which make its frames whole
    bar: int = 0  # which bar of the track is the first new one
    prompt_bars: int = 0  # with bpm: how many bars the prompt counts as
    more: float = 0.0  # seconds that are new beyond the request's: from the seam of known codes to that bar
    codes: np.ndarray | None = None  # the prompt's, int64 [K, frames], where they are known; else it is encoded
    mix_loss_db: float = 0.0  # how much quieter than its channels the mono mix is that the model is given

    @property
    def channels(self) -> int:
        """The track's, 0 without one."""
        return 0 if self.track is None else len(self.track)


def read_source(request: Request, manifest: Manifest) -> Source:
    """Read a validated request's audio. Raises AudioError for files that cannot be read, and ValueError for a prompt
    that leaves nothing to generate."""
    codec, reference = manifest.codec, _reference(request, manifest.codec)
    if request.input is None:
        return Source(None, None, 0, reference)
    source = _read_track(request, manifest)
    assert source.prompt is not None
    chosen = audio.pick_channel(source.prompt, request.channel)
    _validate_prompt(request, manifest, source)
    loss = audio.mix_loss(chosen) if codec.channels == 1 else 0.0
    return replace(source, reference=reference, mix_loss_db=loss)


def _read_track(request: Request, manifest: Manifest) -> Source:
    """The track, and the prompt in it."""
    assert request.input is not None
    codec, at_end = manifest.codec, request.side == "end"
    whole = request.bpm is not None or (request.join != "rendered" and at_end)
    track, rate = audio_files.read(
        request.input, **({} if whole else {"seconds": request.prompt_seconds, "from_end": at_end})
    )
    if request.codes is not None:
        return _with_codes(request, manifest, track, rate)
    if request.region is not None:
        seam = _region(request, track, rate)
        before = audio_files.excerpt(track[:, :seam], rate, request.prompt_seconds, from_end=True)
        return Source(track, audio.whole_frames(before, rate, codec.sample_rate, codec.hop, True), rate, None, seam)
    if request.bpm is not None:
        return _in_bars(request, codec, track, rate)
    prompt = audio_files.excerpt(track, rate, request.prompt_seconds, at_end)
    if request.join == "splice":
        prompt = audio.whole_frames(prompt, rate, codec.sample_rate, codec.hop, at_end)
    track = track if at_end else prompt
    return Source(track, prompt, rate, None, track.shape[1])


def _in_bars(request: Request, codec: CodecInfo, track: np.ndarray, rate: int) -> Source:
    """The prompt ends on a bar line. It begins on one, or up to a frame before, so that its frames are whole: what the
    codec fills up with silence would be heard at the seam."""
    time = request.time
    assert time is not None
    at_end = request.side == "end"
    if time.prompt_bars is None:
        time = replace(time, prompt_bars=max(1, min(_wanted_bars(request), time.whole_bars(track.shape[1], rate))))
    assert time.prompt_bars is not None
    begin, seam = time.prompt(track.shape[1], rate, at_end)
    frames = math.ceil((seam - begin) * codec.sample_rate / (rate * codec.hop) - 1e-9)
    prompt = ending(track, seam, frames * codec.hop * rate // codec.sample_rate)
    lead = prompt.shape[1] - (seam - begin)
    bar = round((seam / rate - time.offset) / time.bar)
    if request.join != "rendered" and at_end:
        return Source(track, prompt, rate, None, seam, lead, bar, time.prompt_bars)
    return Source(prompt, prompt, rate, None, prompt.shape[1], lead, bar, time.prompt_bars)


def _wanted_bars(request: Request) -> int:
    """How many bars the seconds of a validated request's prompt are."""
    return 0 if request.time is None else round(request.prompt_seconds / request.time.bar)


def ending(track: np.ndarray, end: int, samples: int) -> np.ndarray:
    """So many samples of a track before `end`; silence where it has not begun yet."""
    begin = end - samples
    return np.pad(track[:, max(0, begin) : end], ((0, 0), (max(0, -begin), 0)))


def _region(request: Request, track: np.ndarray, rate: int) -> int:
    """The first sample of the region. Raises AudioError if it is not in the track."""
    assert request.region is not None
    begin, stop = (round(second * rate) for second in request.region)
    if stop > track.shape[1] or begin == stop:
        found = f"{begin / rate:g} s to {stop / rate:g} s"
        raise AudioError(f"region: got {found}, expected a part of the track, which has {track.shape[1] / rate:g} s")
    return begin


def _with_codes(request: Request, manifest: Manifest, track: np.ndarray, rate: int) -> Source:
    """A take whose codes are known, up to the last frame that is heard whole."""
    assert request.input is not None
    assert request.codes is not None
    found = take_codes.read(request.codes, request.input, track.shape[1], rate, manifest)
    end, frame_rate = found.frames, found.frame_rate
    count = max(1, min(end, round(request.prompt_seconds * frame_rate)))
    seam = min(track.shape[1], round((found.begin + end / frame_rate) * rate))
    prompt = ending(track, seam, round(count / frame_rate * rate))
    time = request.time
    bar, more = 0, 0.0
    if time is not None:
        bar = _next_bar(time, track.shape[1], seam - round(rate / frame_rate), rate)
        more = (time.line(bar, rate) - seam) / rate + count / frame_rate - request.prompt_seconds
    known = found.array()[:, end - count : end]
    return Source(track, prompt, rate, None, seam, 0, bar, _wanted_bars(request), more, known)


def _next_bar(time: MusicalTime, samples: int, least: int, rate: int) -> int:
    """The bar of a track that is the first new one: that on its last bar line, or, where this lies before `least`, the
    one after it. The bar in whose middle the codes end is completed first."""
    bar = time.whole_bars(samples, rate)
    return bar if time.line(bar, rate) >= least else bar + 1


def _validate_prompt(request: Request, manifest: Manifest, source: Source) -> None:
    """Raise ValueError if the prompt leaves nothing to generate."""
    window = manifest.language_model.max_duration
    assert source.prompt is not None
    assert request.duration is not None
    length = source.prompt.shape[1] / source.rate
    if request.duration > window and length >= window:
        raise ValueError(
            f"prompt_seconds: got {request.prompt_seconds:g}, expected less than {window:g} s, the model's window, for "
            f"a duration of {request.duration:g} s"
        )
    plan_of(request, manifest, math.ceil(length * manifest.codec.frame_rate))
    validate_fades(request, request.duration - length + source.lead / source.rate + source.more)


def result_format(request: Request, manifest: Manifest, source: Source) -> tuple[int, int]:
    """Sample rate and channels of the takes. Raises AudioError if the model's cannot be brought to the track's."""
    model = manifest.language_model
    if not source.channels or request.rate == "codec":
        return model.sample_rate, model.channels
    if 1 < model.channels < source.channels:
        found = f"{request.input} has {source.channels} channels, the model {model.channels}"
        raise AudioError(f"rate: {found}: expected codec")
    return source.rate, source.channels


def quiet_mix(name: str, loss_db: float) -> str:
    """The warning for a prompt whose mono mix is quieter than its channels by more than QUIET_MIX_DB."""
    mix = "the mono mix that the model is given"
    return f"{name}: {mix} is {loss_db:.1f} dB quieter than its channels, which cancel each other"


def _reference(request: Request, codec: CodecInfo) -> np.ndarray | None:
    """The melody or style [channels, samples] at the model's rate, stems added up; None if none is given."""
    files = request.melody or ((request.style,) if request.style else ())
    stems = [audio.convert_audio(*audio_files.read(file), codec.sample_rate, codec.channels) for file in files]
    if not stems:
        return None
    mix = np.zeros((codec.channels, max(stem.shape[1] for stem in stems)), np.float32)
    for stem in stems:
        mix[:, : stem.shape[1]] += stem
    return mix
