"""From the codes of takes to audio: joined to the track, ended on a bar or where they are quiet, looped, faded, ranked.

The numbers of samples are those of the result's rate. `lead` samples lie before its first bar line, and are cut off.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clean_lm import audio, audio_files
from clean_lm.musicgen import MusicGen
from clean_lm.onsets import agreement, onset_curve
from clean_lm.request import LOOP_CROSSFADE, Request
from clean_lm.source import Source
from clean_lm.take_codes import FORMAT, TakeCodes
from clean_lm.takes import BEAT, Drawn, Take

CROSSFADE = 0.02  # seconds: short enough not to smear a beat, long enough not to click
QUIETEST_DB = -120.0


@dataclass(frozen=True)
class Joined:
    """One take of the result."""

    wav: np.ndarray  # float32 [channels, samples]
    facts: dict[str, Any]  # its seed, what was measured
    codes: TakeCodes


@dataclass(frozen=True)
class Outcome:
    """Takes in the order in which they are given, their rate, and facts about all of them for a summary."""

    takes: list[Joined]
    rate: int
    facts: dict[str, Any]


def finish(model: MusicGen, request: Request, source: Source, drawn: Drawn) -> Outcome:
    """The takes as audio, joined to the track as the request says."""
    same = request.rate == "codec" or source.track is None
    rate = model.sample_rate if same else source.rate
    join = Join(model, request, source, drawn, rate)
    decoded = _decode(model, drawn.takes)
    takes = [join.take(take, wav) for take, wav in zip(drawn.takes, decoded, strict=True)]
    if request.rank:
        takes = ranked(takes)
    facts: dict[str, Any] = {} if source.track is None else {"seam": join.seam / rate}
    if request.bpm is not None and request.bars is not None:
        facts |= {"bpm": round(request.bpm, 3), "bars": request.bars}
    if join.gain is not None:
        facts["level_db"] = round(join.gain, 2)
    return Outcome(takes, rate, facts)


def _decode(model: MusicGen, takes: list[Take]) -> list[np.ndarray]:
    """float32 [channels, samples] for each, those of one length together."""
    if len({take.codes.shape[1] for take in takes}) == 1:
        return list(model.codec.decode(np.stack([take.codes for take in takes])))
    return [model.codec.decode(take.codes[None])[0] for take in takes]


class Join:
    """How every take of a request is joined to its track."""

    def __init__(self, model: MusicGen, request: Request, source: Source, drawn: Drawn, rate: int):
        self.model, self.request, self.source, self.rate = model, request, source, rate
        self.prompt = round(drawn.known / model.frame_rate * rate)  # samples of a take before what is new
        self.lead = round(source.lead * rate / source.rate) if source.rate else 0
        self.before = 0  # samples of the track before the take; less than 0: the take begins before the track
        if source.track is not None and source.prompt is not None:
            if request.join == "splice":
                self.prompt = source.prompt.shape[1]
            if request.join != "rendered":
                self.before = source.seam - source.prompt.shape[1]
        # whether the result begins on a bar line, not where the track does
        self.from_line = request.join == "rendered" or request.side == "start"
        self.seam = self.before + self.prompt - (self.lead if self.from_line else 0)
        self.gain: float | None = None  # dB, of the first take and then of all

    def take(self, take: Take, decoded: np.ndarray) -> Joined:
        """One take: decoded audio [channels, samples] at the model's rate, its prompt included."""
        request, source = self.request, self.source
        wav = decoded
        if source.channels and request.rate != "codec":
            wav = audio.to_source(decoded, self.model.sample_rate, source.rate, source.channels)
        facts = {"seed": take.seed, "temperature": round(take.temperature, 4)} | self._measured(take, wav)
        if self.gain is None and request.join == "splice" and request.match_level and source.track is not None:
            self.gain = audio.match_level(source.track, wav, source.seam, self.prompt, self.rate)
        wav = wav if self.gain is None else audio.amplify(wav, self.gain)
        if source.track is not None and request.join == "splice":
            wav = audio.splice(source.track, wav, source.seam, round(CROSSFADE * self.rate), lead_samples=self.prompt)
        elif source.track is not None and self.before:
            wav = np.concatenate([source.track[:, : max(0, self.before)], wav[:, max(0, -self.before) :]], axis=1)
        begin = self.before  # sample of the result at which the take's codes begin
        if self.from_line:
            wav, begin = wav[:, self.lead :], begin - self.lead
        facts |= self._bars(take)
        wav = self._ended(take, wav)
        fade = min(round(request.fade_out * self.rate), wav.shape[1] - self.seam)
        wav = self._faded(wav, fade)
        return Joined(wav, facts, self._codes(take, wav, begin, fade))

    def _ended(self, take: Take, wav: np.ndarray) -> np.ndarray:
        """The audio up to where it ends: on a bar line, after the duration, where the take is quiet, where the track
        goes on."""
        request, source, rate = self.request, self.source, self.rate
        if request.region is not None:
            assert source.track is not None
            stop = round(request.region[1] * rate)
            return crossfaded(wav, source.track, stop, min(round(CROSSFADE * rate), stop - source.seam))
        length = self._length(take)
        if length is None:
            return wav
        if request.loop:
            return audio.close_loop(wav, length, min(round(LOOP_CROSSFADE * rate), length // 2))
        return wav[:, :length]

    def _length(self, take: Take) -> int | None:
        """Samples of the result; None: all that there are."""
        request, source, rate = self.request, self.source, self.rate
        if (time := request.time) is not None:
            bars = self._bars(take)["bars"]
            if self.from_line:
                return time.length(bars, rate)
            return time.line(source.bar + bars - source.prompt_bars, rate)
        if take.end is not None:
            return self.seam + round(take.end * rate)
        if not request.loop:
            return None
        assert request.duration is not None
        prompt = 0 if source.prompt is None else source.prompt.shape[1] / source.rate
        return self.seam + round((request.duration - prompt) * rate)

    def _bars(self, take: Take) -> dict[str, int]:
        """How many bars a take has, from the prompt's first on; nothing where the length is in seconds,
        or the track's."""
        time = self.request.time
        if time is None or self.request.bars is None:
            return {}
        new = None if take.end is None else round(take.end / time.bar)
        return {"bars": self.request.bars if new is None else min(self.request.bars, self.source.prompt_bars + new)}

    def _faded(self, wav: np.ndarray, fade: int) -> np.ndarray:
        rise = min(round(self.request.fade_in * self.rate), wav.shape[1])
        wav = audio.fade_in(wav, rise) if rise else wav
        return audio.fade_out(wav, fade) if fade > 0 else wav

    def _measured(self, take: Take, wav: np.ndarray) -> dict[str, Any]:
        """What is said of a take: how loud its first beat is beside the prompt's last ones, how well it goes on."""
        request, facts = self.request, {}
        beat = round((BEAT if request.time is None else request.time.beat) * self.rate)
        if self.prompt and wav.shape[1] >= self.prompt + beat:
            before = audio.rms(wav[:, max(0, self.prompt - 4 * beat) : self.prompt])
            first = audio.rms(wav[:, self.prompt : self.prompt + beat])
            if before > audio.NEAR_SILENCE:
                facts["first_beat_db"] = round(max(QUIETEST_DB, 20 * float(np.log10(max(first, 1e-9) / before))), 1)
        if take.silent:
            facts["silent"] = True
        if take.log_probability is not None:
            facts["log_probability"] = round(take.log_probability, 4)
            if self.prompt:
                bar = None if request.time is None else request.time.bar
                before, after = (onset_curve(part, self.rate) for part in np.split(wav, [self.prompt], axis=1))
                facts["onset_agreement"] = round(agreement(before, after, bar), 4)
        return facts

    def _codes(self, take: Take, wav: np.ndarray, begin: int, fade: int) -> TakeCodes:
        """The take's codes, and where in the result they are heard."""
        stop = wav.shape[1] - max(0, fade)
        if self.request.region is not None:
            stop = round(self.request.region[1] * self.rate)
        codes = tuple(tuple(map(int, row)) for row in take.codes)
        info, model = self.model.codec, self.model.lm.info
        first, last = begin / self.rate, stop / self.rate
        return TakeCodes(FORMAT, info.frame_rate, model.card, first, last, take.seed, codes)


def crossfaded(wav: np.ndarray, track: np.ndarray, stop: int, samples: int) -> np.ndarray:
    """The audio up to `stop`, then the track, both [channels, n]; its beginning is as it was: the crossfade of equal
    power lies before it."""
    fading = slice(stop - samples, stop)
    middle = audio.equal_power(wav[:, fading], track[:, fading])
    return np.concatenate([wav[:, : stop - samples], middle, track[:, stop:]], axis=1)


def ranked(takes: list[Joined]) -> list[Joined]:
    """The takes in the order of the sum of two ranks: how probable the model finds them, and how well their onsets
    agree with the prompt's. Equal sums keep the order of their probabilities."""
    names = ("log_probability", "onset_agreement")
    places = {id(take): 0 for take in takes}
    for name in names:
        if all(name in take.facts for take in takes):
            for place, take in enumerate(sorted(takes, key=lambda take: -take.facts[name])):
                places[id(take)] += place
    return sorted(takes, key=lambda take: (places[id(take)], -take.facts["log_probability"]))


def written_as(join: str, track: Path | None, output: Path) -> tuple[str | None, str | None]:
    """The level's strategy and the sample format of a result if nothing else is asked: what is joined to a track keeps
    the track's."""
    if join == "rendered" or track is None:
        return "clip", None
    return None, audio_files.lossless_subtype(track, output)
