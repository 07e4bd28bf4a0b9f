"""Decoding codes piece by piece, in numpy: as they arrive, and in the memory of one piece however long the whole is.

compression_stream takes the next frames and what the call before left, and gives audio up to the last frame it was
fed. The end of it, `lookahead` frames, is as if the sound stopped there:

    call 1  [ size    | lookahead ]
    call 2            [ size      | lookahead ]           heard is what stands before `lookahead`,
    call 3                        [ rest       ]          and at the end all of the last call
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from clean_lm.manifest import Graph


class Stream:
    """compression_stream, and what each call leaves for the next."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.past: dict[str, np.ndarray] = {}

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """codes int64 [B, K, T], T > 0 -> audio [B, channels, n x hop]: the frames not final before, and these."""
        past = self.past or self.start(len(codes))
        outputs = ["audio", *(name.replace("past", "present") for name in past)]
        audio, *present = map(np.asarray, self.graph.session.run(outputs, {"codes": codes, **past}))
        self.past = dict(zip(past, present, strict=True))
        return audio

    def start(self, batch: int) -> dict[str, np.ndarray]:
        """What there is before the first frame: no frames, and zeros."""
        names = [name for name in self.graph.inputs if name.startswith("past.")]
        sizes = {size: 0 for name in names for size in self.graph.inputs[name]["shape"] if isinstance(size, str)}
        return {name: self.graph.zeros(name, sizes | {"batch": batch}) for name in names}


def decode_chunks(
    stream: Callable[[np.ndarray], np.ndarray], parts: Iterable[np.ndarray], size: int, lookahead: int, hop: int
) -> Iterator[np.ndarray]:
    """Decode frames as they come, any number at a time.

    stream: as Stream's call. parts: codes int64 [B, K, any].
    Yields audio [B, channels, size x hop] as soon as it is final, the last one shorter. Raises ValueError.
    """
    if size < 1:
        raise ValueError(f"size: got {size} frames, expected 1 or more")
    return _pieces(stream, parts, size, lookahead, hop)


def _pieces(
    stream: Callable[[np.ndarray], np.ndarray], parts: Iterable[np.ndarray], size: int, lookahead: int, hop: int
) -> Iterator[np.ndarray]:
    held, audio, needed = None, None, size + lookahead  # needed: frames for the next `size` to be final
    for part in parts:
        held = part if held is None else np.concatenate([held, part], axis=2)
        while held.shape[2] >= needed:
            audio = stream(held[:, :, :needed])
            yield audio[:, :, : size * hop]
            audio, held, needed = audio[:, :, size * hop :], held[:, :, needed:], size
    if held is not None and held.shape[2]:
        audio = stream(held)
    if audio is not None:
        yield from (audio[:, :, start : start + size * hop] for start in range(0, audio.shape[2], size * hop))
