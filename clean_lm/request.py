"""One request for music, from files to takes: what the command line and the service do with their options.

validate -> read_source -> begin -> (columns are drawn) -> finish
"""

import math
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clean_lm import audio, audio_files, memory
from clean_lm.audio import AudioError
from clean_lm.generation import Generation, Sampling
from clean_lm.manifest import BundleError, Manifest
from clean_lm.manifest_fields import CodecInfo
from clean_lm.musicgen import MusicGen
from clean_lm.options import LONGEST, MOST_TAKES, integer, number, one_of, seconds, text
from clean_lm.windows import Windows, plan

SHORTEST_PROMPT = 1e-6  # seconds: a sample of the highest rate
CROSSFADE = 0.02  # seconds: short enough not to smear a beat, long enough not to click
QUIET_MIX_DB = 6.0  # a mono mix quieter than its channels by more is warned of; two unlike channels lose 3
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
    fade_out: float = 0.0  # seconds
    prompt_seconds: float = 6.0
    side: str = "end"  # of the track, which the prompt is taken from
    # rendered: the prompt as the codec renders it, then what is new. splice: the track untouched to the seam, then what
    # is new. append: the track without the prompt, then what rendered gives.
    join: str = "rendered"
    match_level: bool = True  # with splice
    channel: str = "mix"  # what a mono model is given of a track with several channels
    rate: str = "source"  # sample rate and channels of the result: the track's, or the codec's

    @property
    def sampling(self) -> Sampling:
        return Sampling(True, self.temperature, self.top_k, self.top_p, self.cfg_coef, self.cfg_coef_beta)


@dataclass(frozen=True)
class Source:
    """The audio of a request, read: float32 [channels, samples] each."""

    track: np.ndarray | None  # with splice and append all of it up to the seam, else the prompt
    prompt: np.ndarray | None  # at the track's rate
    rate: int  # the track's, 0 without one
    reference: np.ndarray | None  # melody or style, at the model's rate and with its channels
    mix_loss_db: float = 0.0  # how much quieter than its channels the mono mix is that the model is given

    @property
    def channels(self) -> int:
        """The track's, 0 without one."""
        return 0 if self.track is None else len(self.track)


@dataclass(frozen=True)
class Outcome:
    """Takes [channels, samples] at `rate`, and facts about them for a summary."""

    takes: list[np.ndarray]
    rate: int
    facts: dict[str, Any]


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
    _validate_conditions(request, manifest)
    _validate_style(request)
    defaults = {name: getattr(manifest.defaults, name) for name in ("duration", "extend_stride")}
    request = replace(request, **{n: value for n, value in defaults.items() if getattr(request, n) is None})
    frame = 1 / manifest.codec.frame_rate
    duration = seconds("duration", request.duration, frame, f"{frame:g} s (a frame) or more")
    number("extend_stride", request.extend_stride, f"seconds, {LONGEST:g} at most", 0, LONGEST)
    _require_memory(request, manifest)
    _validate_fade_out(request, duration)
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
    need = memory.of_generation(manifest, request.takes, _plan(request, manifest, 0), guidance)
    name = "takes" if request.takes > 1 else "duration"
    memory.require(name, need, f"{request.takes} takes of {request.duration:g} s")


def _plan(request: Request, manifest: Manifest, known: int) -> Windows:
    """The windows after `known` frames of a prompt. Raises ValueError."""
    model = manifest.language_model
    assert request.duration is not None
    assert request.extend_stride is not None
    return plan(request.duration, model.max_duration, request.extend_stride, manifest.codec.frame_rate, known)


def _validate_fade_out(request: Request, new: float) -> None:
    """Raise ValueError unless the fade is no longer than what is new, in seconds."""
    number("fade_out", request.fade_out, f"0 to {new:g} s, what is new", 0, new)


def read_source(request: Request, manifest: Manifest) -> Source:
    """Read a validated request's audio. Raises AudioError for files that cannot be read, and ValueError for a prompt
    that leaves nothing to generate."""
    codec = manifest.codec
    track = prompt = None
    rate, loss = 0, 0.0
    if request.input is not None:
        track, prompt, rate = _read_track(request, codec)
        chosen = audio.pick_channel(prompt, request.channel)
        _validate_prompt(request, manifest, prompt, rate)
        loss = audio.mix_loss(chosen) if codec.channels == 1 else 0.0
    return Source(track, prompt, rate, _reference(request, codec), loss)


def _read_track(request: Request, codec: CodecInfo) -> tuple[np.ndarray, np.ndarray, int]:
    """The track, the prompt in it, both [channels, samples], and their rate."""
    assert request.input is not None
    at_end = request.side == "end"
    whole = request.join != "rendered" and at_end
    track, rate = audio_files.read(
        request.input, **({} if whole else {"seconds": request.prompt_seconds, "from_end": at_end})
    )
    prompt = audio_files.excerpt(track, rate, request.prompt_seconds, at_end)
    if request.join == "splice":
        prompt = audio.whole_frames(prompt, rate, codec.sample_rate, codec.hop, at_end)
    return track if at_end else prompt, prompt, rate


def _validate_prompt(request: Request, manifest: Manifest, prompt: np.ndarray, rate: int) -> None:
    """Raise ValueError if a prompt [channels, samples] leaves nothing to generate."""
    window = manifest.language_model.max_duration
    length = prompt.shape[1] / rate
    assert request.duration is not None
    if request.duration > window and length >= window:
        raise ValueError(
            f"prompt_seconds: got {request.prompt_seconds:g}, expected less than {window:g} s, the model's window, for "
            f"a duration of {request.duration:g} s"
        )
    _plan(request, manifest, math.ceil(length * manifest.codec.frame_rate))
    _validate_fade_out(request, request.duration - length)


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


def begin(model: MusicGen, request: Request, source: Source) -> Generation:
    """Encode the prompt and the texts of a validated request; iterate over what is returned to draw its columns.

    Sets the model's parameters: give requests that run at the same time a `MusicGen.view` each.
    """
    assert request.duration is not None
    assert request.extend_stride is not None
    model.sampling, model.duration, model.extend_stride = request.sampling, request.duration, request.extend_stride
    if request.style:
        model.set_style_conditioner_params(request.style_levels, request.style_length, request.style_start)
    prompt = None
    if source.prompt is not None:
        codec = model.codec
        chosen = audio.pick_channel(source.prompt, request.channel)
        prompt = audio.convert_audio(chosen, source.rate, codec.sample_rate, codec.channels)
    return model.begin(
        [request.text],
        prompt,
        model.sample_rate,
        melody_wavs=None if source.reference is None else [source.reference],
        melody_sample_rate=model.sample_rate,
        seed=request.seed,
        takes=request.takes,
        negative_descriptions=[request.negative_text],
    )


def finish(model: MusicGen, request: Request, source: Source, generation: Generation) -> Outcome:
    """The takes of a generation that is done, joined to the track as the request says."""
    decoded, rate = list(model.codec.decode(generation.codes())), model.sample_rate
    if source.track is None or source.prompt is None:
        return Outcome(_faded(request, decoded, rate, 0), rate, {})
    facts: dict[str, Any] = {"seam": generation.known / model.frame_rate}
    if request.rate == "codec":
        return Outcome(_faded(request, decoded, rate, facts["seam"]), rate, facts)
    takes = [audio.to_source(take, rate, source.rate, source.channels) for take in decoded]
    lead = source.prompt.shape[1]
    if request.join == "splice":
        takes, facts = _spliced(request, takes, source.track, lead, source.rate)
    elif request.join == "append" and request.side == "end":
        before = source.track[:, : source.track.shape[1] - lead]
        takes = [np.concatenate([before, take], axis=1) for take in takes]
        facts["seam"] += before.shape[1] / source.rate
    return Outcome(_faded(request, takes, source.rate, facts["seam"]), source.rate, facts)


def written_as(join: str, track: Path | None, output: Path) -> tuple[str | None, str | None]:
    """The level's strategy and the sample format of a result if nothing else is asked: what is joined to a track keeps
    the track's."""
    if join == "rendered" or track is None:
        return "clip", None
    return None, audio_files.lossless_subtype(track, output)


def _spliced(
    request: Request, takes: list[np.ndarray], track: np.ndarray, lead: int, rate: int
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The takes, whose first `lead` samples are the prompt, each joined to the end of the track at its level."""
    seam = track.shape[1]
    facts: dict[str, Any] = {"seam": seam / rate}
    if request.match_level:
        gain = audio.match_level(track, takes[0], seam, lead, rate)
        takes = [audio.amplify(take, gain) for take in takes]
        facts["level_db"] = round(gain, 2)
    return [audio.splice(track, take, seam, round(CROSSFADE * rate), lead_samples=lead) for take in takes], facts


def _faded(request: Request, takes: list[np.ndarray], rate: int, seam: float) -> list[np.ndarray]:
    """The takes with fade_out, no longer than what is new in them."""
    new = takes[0].shape[1] - round(seam * rate)
    fade = min(round(request.fade_out * rate), new)
    return [audio.fade_out(take, fade) for take in takes] if fade else takes
