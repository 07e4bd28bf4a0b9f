"""Decoding codes piece by piece, in numpy: as they arrive, and in the memory of one piece however long the whole is.

    frames   . . . . . . . . . . . . . . . . . . . . . .
    piece 1  [ size    | right ]
    piece 2  [ left    | size    | right ]                  only `size` is kept of what was decoded
    piece 3              [ left    | size    | right ]

right: the decoder's convolutions look ahead less than 4 frames (3.75 for ratios 8, 5, 4, 4), so 4 are exact.
left: its LSTM begins anew with every piece, and how long it remembers depends on its weights. Too few frames are heard
as a step between pieces; all frames before are exact.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np


def decode_chunks(
    decode: Callable[[np.ndarray], np.ndarray],
    codes: np.ndarray | Iterable[np.ndarray],
    size: int,
    left: int,
    right: int,
) -> Iterator[np.ndarray]:
    """Decode `size` frames at a time, each piece with `left` frames before it and `right` after it as context.

    decode: codes int64 [B, K, T] -> audio [B, channels, T x hop].
    codes: all frames [B, K, T], or frames as they come, any number at a time: audio is given as soon as its right
    context is there, and what is left when they end.
    Yields audio [B, channels, size x hop], the last one shorter. Raises ValueError.
    """
    if size < 1 or left < 0 or right < 0:
        raise ValueError(f"got size {size}, left {left}, right {right}; expected size 1 or more, the others 0 or more")
    return _pieces(decode, [codes] if isinstance(codes, np.ndarray) else codes, size, left, right)


def _pieces(
    decode: Callable[[np.ndarray], np.ndarray], parts: Iterable[np.ndarray], size: int, left: int, right: int
) -> Iterator[np.ndarray]:
    held, start = None, 0  # frames still needed, and how many of them were decoded already
    for part in parts:
        held = part if held is None else np.concatenate([held, part], axis=2)
        while held.shape[2] >= start + size + right:
            yield _piece(decode, held[:, :, : start + size + right], start, size)
            held, start = _forget(held, start + size, left)
    while held is not None and held.shape[2] > start:
        yield _piece(decode, held[:, :, : start + size + right], start, size)
        held, start = _forget(held, min(start + size, held.shape[2]), left)


def _piece(decode: Callable[[np.ndarray], np.ndarray], codes: np.ndarray, start: int, size: int) -> np.ndarray:
    """The audio of `size` frames from `start` on."""
    audio = decode(codes)
    hop = audio.shape[2] // codes.shape[2]
    return audio[:, :, start * hop : (start + size) * hop]


def _forget(held: np.ndarray, decoded: int, left: int) -> tuple[np.ndarray, int]:
    """Keep `left` of the frames that were decoded."""
    keep = min(left, decoded)
    return held[:, :, decoded - keep :], keep
