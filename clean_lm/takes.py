"""The takes of a request, or of several: drawn together where they can be, again where one begins with silence, and cut
where they end with it.

A take is judged while it is drawn, by the sound of its last frames; codes are what is kept.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from clean_lm import audio
from clean_lm.generation import Generation
from clean_lm.musicgen import MusicGen
from clean_lm.request import SPREAD, Request, duration_of
from clean_lm.source import Source

BEAT, BAR = 0.5, 2.0  # seconds, where the tempo is not known: at 120 beats a minute
CONTEXT = 25  # frames before a part that are decoded with it: what the codec's convolutions see of them
QUIET = 10 ** (-40 / 20)  # of the loudest before it: what is quieter is near-silent
LEAST_PROMPT = 10 ** (-60 / 20)  # a prompt that is quieter may well go on with silence

# Called after each column with its generation, how many columns are drawn of all takes, and of how many; may raise
Watch = Callable[[Generation, int, int], None]


@dataclass(frozen=True)
class Take:
    """One take as it was drawn."""

    codes: np.ndarray  # int64 [K, frames], the prompt's first
    seed: int
    temperature: float
    silent: bool = False  # its first beat is near-silent although the prompt is not
    end: float | None = None  # seconds of the new part after which it is quiet; None: it is not
    log_probability: float | None = None  # mean of a code's, in nats, under the model with guidance and temperature 1


@dataclass
class Drawn:
    """All takes of a request, and what drawing them took."""

    known: int = 0  # frames of the prompt
    frames: int = 0  # new ones of all takes, those among them that were drawn in vain
    columns: int = 0
    takes: list[Take] = field(default_factory=list)


def draw_takes(
    model: MusicGen, request: Request, source: Source, watch: Watch, prompt: np.ndarray | None = None
) -> Drawn:
    """Draw the takes of a validated request. Sets the model's parameters: give requests that run at the same time a
    `MusicGen.view` each. prompt: its codes, where `prompt_codes` has given them already."""
    if prompt is None:
        prompt = prompt_codes(model, request, source)
    drawn = Drawn(0 if prompt is None else prompt.shape[2])
    assert request.seed is not None
    seeds = [request.seed + number for number in range(request.takes)]
    following = itertools.count(request.seed + request.takes)  # the next seeds that no take has
    groups = [[number] for number in range(request.takes)] if request.spread else [list(range(request.takes))]
    for place, group in enumerate(groups):
        temperature = temperature_of(request, group[0])
        found: dict[int, Take] = {}
        for again in range(request.retry_silent, -1, -1):
            waiting = [number for number in group if number not in found or found[number].silent]
            if not waiting:
                break
            if found:
                for number in waiting:
                    seeds[number] = next(following) % 2**64
            song = Song(request, source, prompt, [seeds[number] for number in waiting])
            batch = Batch(model, [song], temperature)
            before, left = drawn.columns, len(groups) - place
            for done in batch.draw(stop_silent=again > 0):
                drawn.columns = before + done
                watch(batch.generation, drawn.columns, before + batch.generation.total * left)
            (takes,) = batch.takes()
            drawn.frames += batch.frames
            found |= dict(zip(waiting, takes, strict=True))
        drawn.takes += [found[number] for number in group]
    return drawn


def draw_together(model: MusicGen, songs: Sequence["Song"], watch: Watch) -> list[Drawn]:
    """Draw the takes of several requests in one batch, of which each reads the weights once: those of each.

    The requests are alike, see `is_plain`: in all but their audio, their texts, and their seeds, of which each has as
    many; their prompts have as many frames, and their texts as many tokens (nothing masks what a shorter one lacks).
    """
    batch = Batch(model, songs, songs[0].request.temperature)
    for done in batch.draw(stop_silent=False):
        watch(batch.generation, done, batch.generation.total)
    known, share = batch.generation.known, batch.frames // len(songs)
    return [Drawn(known, share, batch.generation.total, takes) for takes in batch.takes()]


def is_plain(request: Request) -> bool:
    """Whether a request's takes are drawn once, to their end and by one temperature, without a melody or style."""
    again = request.retry_silent or request.until_silence or request.spread
    return not (again or request.melody or request.style)


def prompt_codes(model: MusicGen, request: Request, source: Source) -> np.ndarray | None:
    """int64 [1, K, frames], None without a prompt."""
    if source.codes is not None:
        return source.codes[None]
    if source.prompt is None:
        return None
    codec = model.codec
    chosen = audio.pick_channel(source.prompt, request.channel)
    return codec.encode(audio.convert_audio(chosen, source.rate, codec.sample_rate, codec.channels)[None])


def temperature_of(request: Request, take: int) -> float:
    """That of a take, the first at 0. With spread they grow by one factor from take to take."""
    if not request.spread:
        return request.temperature
    low, high = SPREAD
    return request.temperature * low * (high / low) ** (take / (request.takes - 1))


@dataclass(frozen=True)
class Song:
    """What takes that are drawn together continue."""

    request: Request
    source: Source
    prompt: np.ndarray | None  # int64 [1, K, frames]
    seeds: Sequence[int]  # of the takes


class Batch:
    """Takes that are drawn together: the rows are the first song's takes, the second one's, ..."""

    def __init__(self, model: MusicGen, songs: Sequence[Song], temperature: float):
        self.model, self.songs, self.temperature = model, songs, temperature
        self.request = songs[0].request
        self.generation = self._begin()
        self.seeds = [seed for song in songs for seed in song.seeds]
        self.rows = len(self.seeds)
        self.silent = np.zeros(self.rows, bool)
        self.ends: list[float | None] = [None] * self.rows
        prompts = [song.source.prompt for song in songs for _ in song.seeds]
        self.loudest = np.array([0.0 if prompt is None else audio.rms(prompt) for prompt in prompts])
        self.likelihood = Likelihood(self.rows) if self.request.rank else None
        if self.likelihood is not None:
            self.generation.observe = self.likelihood.add

    @property
    def frames(self) -> int:
        """New ones of all rows."""
        return (self.generation.frames - self.generation.known) * self.rows

    def _begin(self) -> Generation:
        model, request, source = self.model, self.request, self.songs[0].source
        assert request.extend_stride is not None
        model.sampling = replace(request.sampling, temperature=self.temperature)
        model.duration, model.extend_stride = (
            duration_of(request, model.frame_rate, source.more),
            request.extend_stride,
        )
        if request.style:
            model.set_style_conditioner_params(request.style_levels, request.style_length, request.style_start)
        prompts = [song.prompt for song in self.songs if song.prompt is not None]
        return model.begin(
            [song.request.text for song in self.songs],
            prompt_codes=np.concatenate(prompts) if prompts else None,
            melody_wavs=None if source.reference is None else [source.reference],
            melody_sample_rate=model.sample_rate,
            seed=[seed for song in self.songs for seed in song.seeds],
            takes=len(self.songs[0].seeds),
            negative_descriptions=[song.request.negative_text for song in self.songs],
        )

    def draw(self, stop_silent: bool) -> Iterator[int]:
        """Gives how many columns are drawn, after each. Ends early where all takes are quiet, or begin with silence and
        `stop_silent` says that they are drawn again."""
        checks = self._checks()
        check = next(checks, None)
        for done in self.generation:
            yield done
            while check is not None and self.generation.frames >= check.stop:
                self._judge(check)
                if (stop_silent and self.silent.all()) or self._all_quiet():
                    return
                check = next(checks, None)

    def takes(self) -> list[list[Take]]:
        """What is drawn, of each song."""
        codes, scores = self.generation.codes(), self.likelihood
        takes = [
            Take(
                codes[row],
                self.seeds[row],
                self.temperature,
                bool(self.silent[row]),
                self.ends[row],
                None if scores is None else scores.mean(row),
            )
            for row in range(self.rows)
        ]
        each = len(self.songs[0].seeds)
        return [takes[first : first + each] for first in range(0, self.rows, each)]

    def _checks(self) -> Iterator["Part"]:
        """The parts that are listened to, in the order of their ends: the first beat, and bar after bar."""
        time, rate, known = self.request.time, self.model.frame_rate, self.generation.known
        if known:
            yield Part(known, known + max(1, round((BEAT if time is None else time.beat) * rate)), None)
        bar = BAR if time is None else time.bar
        number = 0
        while self.request.until_silence:
            begin, stop = (known + round(n * bar * rate) for n in (number, number + 1))
            yield Part(begin, stop, max(1, number) * bar)  # one bar is kept
            number += 1

    def _judge(self, part: "Part") -> None:
        """Measure a part of all takes."""
        begin = max(0, part.begin - CONTEXT)
        wav = self.model.codec.decode(self.generation.codes()[:, :, begin : part.stop])
        hop = self.model.codec.hop
        levels = np.array([audio.rms(row[:, (part.begin - begin) * hop :]) for row in wav])
        quiet = levels < np.maximum(self.loudest * QUIET, audio.NEAR_SILENCE)
        if part.end is None:
            self.silent = quiet & (self.loudest >= LEAST_PROMPT)
            return
        self.loudest = np.maximum(self.loudest, levels)
        for row in range(self.rows):
            end = self.ends[row]
            self.ends[row] = (part.end if end is None else end) if quiet[row] else None

    def _all_quiet(self) -> bool:
        return self.request.until_silence and None not in self.ends


@dataclass(frozen=True)
class Part:
    """Frames of a generation that are listened to."""

    begin: int
    stop: int
    end: float | None  # seconds of the new part that are kept if this one is quiet; None: the first beat


class Likelihood:
    """How probable the codes of each row are, under the model that draws them."""

    def __init__(self, rows: int):
        self.sums, self.counts = np.zeros(rows), np.zeros(rows)

    def add(self, logits: np.ndarray, codes: np.ndarray, drawn: np.ndarray) -> None:
        """One column: logits [B, K, card], codes int64 [B, K], and which of them were drawn, bool [B, K]."""
        logits = logits.astype(np.float64)
        top = logits.max(axis=2)
        total = top + np.log(np.exp(logits - top[:, :, None]).sum(axis=2))
        found = np.take_along_axis(logits, codes[:, :, None], axis=2)[:, :, 0] - total
        self.sums += np.where(drawn, found, 0).sum(axis=1)
        self.counts += drawn.sum(axis=1)

    def mean(self, row: int) -> float:
        """Nats for a code."""
        return float(self.sums[row] / max(1, self.counts[row]))
