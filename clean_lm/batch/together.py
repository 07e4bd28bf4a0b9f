"""Rows that are drawn in one batch, so that the weights are read once for all of them, where each comes out bit for bit
as it would alone.

That is so where ONNX Runtime's kernels compute a row alike whatever is beside it. Those of int8 and float32 weights do,
those of 4 bits do not: a matrix times one row goes another way than times several. So it is not assumed but tried, on
the machine that draws and with the first rows of each kind.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from clean_lm.generation import Generation
from clean_lm.musicgen import MusicGen
from clean_lm.request import Request, duration_of
from clean_lm.takes import Batch, Drawn, Song, draw_takes, draw_together, is_plain

TRIED = 4  # columns after the prompt
OWN = ("input", "text", "negative_text", "seed", "codes")  # what alike requests may have of their own
Kind = tuple[Any, ...]


class Together:
    """How the rows of one model are drawn."""

    def __init__(self, model: MusicGen):
        self.model = model
        self.tried: dict[Kind, bool] = {}  # by the kind and how many songs of how many takes: whether each is as alone

    def draw(self, songs: Sequence[Song]) -> Iterator[tuple[list[int], list[Drawn]]]:
        """Draw all songs: which of them, and what was drawn of each; those of one batch at a time."""
        for batch in self._batches(songs):
            yield batch, self._draw([songs[place] for place in batch])

    def _batches(self, songs: Sequence[Song]) -> Iterator[list[int]]:
        """Places of songs that can be drawn in one batch."""
        kinds: dict[Kind, list[int]] = {}
        for place, song in enumerate(songs):
            kinds.setdefault(self.kind(song) if is_plain(song.request) else (place,), []).append(place)
        for places in kinds.values():
            if len(places) > 1 and not self._as_alone([songs[place] for place in places]):
                yield from ([place] for place in places)
            else:
                yield places

    def kind(self, song: Song) -> Kind:
        """Equal for songs whose rows one batch can have."""
        request, prompt = song.request, song.prompt
        shared = tuple(getattr(request, field.name) for field in fields(Request) if field.name not in OWN)
        length = duration_of(request, self.model.frame_rate, song.source.more)
        texts = tuple(self._tokens(text) for text in (request.text, request.negative_text))
        return (*shared, length, texts, len(song.seeds), 0 if prompt is None else prompt.shape[2])

    def _tokens(self, text: str | None) -> int:
        if not text or self.model.text is None:
            return 0
        return len(self.model.text.tokens(text))

    def _draw(self, songs: Sequence[Song]) -> list[Drawn]:
        if len(songs) == 1:
            return [draw_takes(self.model, songs[0].request, songs[0].source, _ignore, songs[0].prompt)]
        return draw_together(self.model, songs, _ignore)

    def _as_alone(self, songs: Sequence[Song]) -> bool:
        """Whether the first song's first columns are in this batch what they are alone."""
        key = (*self.kind(songs[0]), len(songs))
        if key not in self.tried:
            self.tried[key] = same(self._first(songs), self._first(songs[:1]))
        return self.tried[key]

    def _first(self, songs: Sequence[Song]) -> list[np.ndarray]:
        """The logits of the first columns, of the first song's takes."""
        batch, found = Batch(self.model, songs, songs[0].request.temperature), []
        batch.generation.observe = lambda logits, codes, drawn: found.append(logits[: len(songs[0].seeds)].copy())
        for _ in itertools.islice(batch.generation, TRIED):
            pass
        return found


def same(these: Iterable[np.ndarray], those: Iterable[np.ndarray]) -> bool:
    """Whether arrays are equal bit for bit."""
    return all(this.tobytes() == that.tobytes() for this, that in zip(these, those, strict=True))


def _ignore(generation: Generation, done: int, total: int) -> None:
    pass
