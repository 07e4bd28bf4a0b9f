"""The codec: audio to codes and back, whole or piece by piece as codes arrive.

compression_stream takes the next frames and the state that the call before left, and gives audio up to the last frame
it was fed. The end of it, `lookahead` frames, is as if the audio stopped there:

    call 1  [ size    | lookahead ]
    call 2            [ size      | lookahead ]           final is what stands before `lookahead`,
    call 3                        [ rest       ]          and at the end all of the last call
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Unpack

import numpy as np

from clean_lm.audio import BATCH, AudioError, as_array, check, require_memory
from clean_lm.manifest import LoadOptions, Manifest
from clean_lm.placement import place
from clean_lm.session import Graph, open_graph

# Frames that a whole decode takes at once. At full size, 30 s take the same time from 150 to 1500 frames, 15 % more
# with 50; the memory for it is 0.2 GB with 150, 1.9 GB with 1500.
PIECE = 150
ENCODE_BYTES = 1024  # of a sample in the encoder's first layers: 64 channels of float32, up to four times


class Codec:
    """Audio to codes and back. A stereo model has a mono codec, its codebooks left and right in turn."""

    def __init__(self, manifest: Manifest, encode: Graph, stream: Graph):
        info = manifest.codec
        self.encoder, self.stream = encode, stream
        self.sample_rate, self.channels = info.sample_rate, info.channels
        self.hop, self.frame_rate, self.lookahead = info.hop, info.frame_rate, info.lookahead
        self.voices = info.channels // int(encode.inputs["audio"].shape[1])  # 2: left and right apart
        self.codebooks = self.voices * int(encode.outputs["codes"].shape[1])
        card = manifest.document["model"].get("card")  # which bundles of a codec alone have, too
        self.card = card if isinstance(card, int) else None

    @classmethod
    def load(cls, bundle: Path | str, **options: Unpack[LoadOptions]) -> "Codec":
        """Open a bundle's codec, see LoadOptions. Raises FileNotFoundError, BundleError, DeviceError."""
        return place(Manifest.read(bundle, **options), cls.open)

    @classmethod
    def open(cls, manifest: Manifest) -> "Codec":
        """The codec of a manifest that is already read."""
        names = ("compression_encode", "compression_stream")
        for name in names:  # a bundle without one is named before any file is read
            manifest.require_graph(name)
        return cls(manifest, *(open_graph(manifest, name).open() for name in names))

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """audio float [B, channels, samples] at the codec's rate -> codes int64 [B, K, ceil(samples / hop)].

        Raises AudioError for audio of other axes, without samples, not finite, or too long for this machine's memory.
        """
        audio, batch = check(audio, "audio", BATCH), len(audio)
        if audio.shape[1] != self.channels:
            raise AudioError(
                f"audio: got {audio.shape[1]} channels, expected {self.channels}: give it to convert_audio"
            )
        require_memory("audio", audio.size, ENCODE_BYTES, "encode it in parts")
        voices = audio.reshape(batch * self.voices, -1, audio.shape[2])
        codes = self.encoder.run({"audio": voices})["codes"]
        return codes.reshape(batch, self.voices, *codes.shape[1:]).swapaxes(1, 2).reshape(batch, -1, codes.shape[2])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """codes int64 [B, K, T], T > 0 -> audio float32 [B, channels, T x hop]. Raises ValueError."""
        if (codes := as_array(codes, "codes")).ndim != 3 or not codes.size:
            raise ValueError(f"codes: got shape {list(codes.shape)}, expected [B, {self.codebooks}, T], T > 0")
        return np.concatenate(list(self.decode_stream([codes], PIECE)), axis=2)

    def decode_stream(self, parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
        """codes int64 [B, K, any] as they come -> audio [B, channels, size x hop] as soon as it is final.

        Raises ValueError for codes of other axes or out of range, when they come.
        """
        audio = decode_chunks(Stream(self.stream), map(self._split, parts), size, self.lookahead, self.hop)
        return (piece.reshape(-1, self.channels, piece.shape[2]) for piece in audio)

    def _split(self, codes: np.ndarray) -> np.ndarray:
        """Voices in turn [B, K, T] -> rows of one voice each [B x voices, K / voices, T]. Raises ValueError."""
        codes = as_array(codes, "codes")
        if codes.dtype.kind not in "iu" or codes.ndim != 3 or codes.shape[1] != self.codebooks:
            found = f"{codes.dtype} {list(codes.shape)}"
            raise ValueError(f"codes: got {found}, expected int64 [B, {self.codebooks}, T]")
        if codes.size and (codes.min() < 0 or (self.card and codes.max() >= self.card)):
            raise ValueError(f"codes: got {codes.min()} .. {codes.max()}, expected 0 .. {(self.card or 0) - 1}")
        codes = codes.astype(np.int64, copy=False)
        batch, _, frames = codes.shape
        return codes.reshape(batch, -1, self.voices, frames).swapaxes(1, 2).reshape(batch * self.voices, -1, frames)


class Stream:
    """compression_stream, and the state that each call leaves for the next."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.past: dict[str, np.ndarray] = {}

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """codes int64 [B, K, T], T > 0 -> audio [B, channels, n x hop]: the frames not final before, and these."""
        past = self.past or self.start(len(codes))
        present = self.graph.run({"codes": codes, **past})
        self.past = {name: present[name.replace("past", "present")] for name in past}
        return present["audio"]

    def start(self, batch: int) -> dict[str, np.ndarray]:
        """The state before the first frame: no frames, and zeros."""
        names = [name for name in self.graph.inputs if name.startswith("past.")]
        sizes = {size: 0 for name in names for size in self.graph.inputs[name].shape if isinstance(size, str)}
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
