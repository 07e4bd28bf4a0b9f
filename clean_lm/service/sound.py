"""A job's sound while it is generated, and takes in the formats that are asked for."""

import math
import os
import struct
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import soundfile as sf
from anyio import CapacityLimiter, to_thread

from clean_lm import audio_files
from clean_lm.audio import AudioError
from clean_lm.audio_codec import Codec
from clean_lm.generation import Generation
from clean_lm.joining import written_as
from clean_lm.service.jobs import Job, Service
from clean_lm.service.problems import Problem
from clean_lm.service.store import FINAL

PIECE = 25  # frames that are decoded at a time: half a second
PAUSE = 0.1  # seconds between two looks for new frames
MOST_LISTENERS = 8
MEDIA = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "mp3": "audio/mpeg"}
STREAMED = ("wav", "ogg")
LONGEST_WAIT = 300.0  # seconds that a slow listener keeps a model after its job

listening: set[object] = set()


class Pending:
    """Bytes of an Ogg file that libsndfile has written and nobody has read yet. It asks for tell and seek, and only
    ever appends."""

    def __init__(self) -> None:
        self.bytes, self.at = bytearray(), 0

    def write(self, data: bytes) -> int:
        self.bytes += data
        self.at += len(data)
        return len(data)

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        return b""

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        found, self.bytes = bytes(self.bytes), bytearray()
        return found


def wav_header(rate: int, channels: int, samples: int) -> bytes:
    """The 44 bytes before 16-bit PCM (RIFF, "Multimedia Programming Interface and Data Specifications 1.0")."""
    data = min(samples * channels * 2, 0xFFFFFFFF - 36)
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", data + 36, b"WAVE", b"fmt ", 16, 1, channels, rate,
                       rate * channels * 2, channels * 2, 16)  # fmt: skip
    return head + struct.pack("<4sI", b"data", data)


class Encoder:
    """int16 [samples, channels], piece after piece, as the bytes of one file."""

    def __init__(self, kind: str, rate: int, channels: int, samples: int):
        self.kind, self.header, self.pending = kind, wav_header(rate, channels, samples), Pending()
        self.ogg: sf.SoundFile | None = None
        if kind == "ogg":
            self.ogg = sf.SoundFile(self.pending, "w", rate, channels, "VORBIS", format="OGG")  # pyright: ignore[reportArgumentType]

    def write(self, pcm: np.ndarray) -> bytes:
        if self.ogg is None:
            found, self.header = self.header + pcm.astype("<i2").tobytes(), b""
            return found
        for at in range(0, len(pcm), audio_files.CHUNK):
            self.ogg.write(pcm[at : at + audio_files.CHUNK])
        return self.pending.take()

    def close(self) -> bytes:
        if self.ogg is None:
            return self.header
        self.ogg.close()
        return self.pending.take()


async def live(service: Service, job: Job, take: int, kind: str, from_seam: bool) -> AsyncIterator[bytes]:
    """The bytes of a file of one take, at the model's rate, while its job runs; ends early where the job does.

    A listener decodes for itself, in a thread of its own, so that a job without listeners pays nothing.
    """
    if len(listening) >= MOST_LISTENERS:
        raise Problem(429, f"{MOST_LISTENERS} listeners already; take the result when it is done", {"Retry-After": "5"})
    listening.add(own := object())
    limiter, listener = CapacityLimiter(1), None
    try:
        while job.generation is None or job.codec is None:
            if job.record.state in FINAL or service.stopping:
                return
            await anyio.sleep(PAUSE)
        listener = Listener(service, job, job.generation, job.codec, take, kind, from_seam)
        pieces, piece = listener.pieces(), b""
        while piece is not None:
            if piece:
                yield piece
            piece = await to_thread.run_sync(next, pieces, None, abandon_on_cancel=True, limiter=limiter)
    finally:
        listening.discard(own)
        if listener is not None:
            listener.closed = True


class Listener:
    """Decodes one take of a generation that goes on."""

    def __init__(
        self, service: Service, job: Job, generation: Generation, codec: Codec, take: int, kind: str, from_seam: bool
    ):
        self.service, self.job, self.generation, self.codec, self.row = service, job, generation, codec, take - 1
        self.skip = generation.known * codec.hop if from_seam else 0  # samples that are not given
        samples = generation.all.shape[2] * codec.hop - self.skip
        self.encoder = Encoder(kind, codec.sample_rate, codec.channels, samples)
        self.closed = False

    def pieces(self) -> Iterator[bytes]:
        """The file's bytes as they come."""
        seen = 0
        for audio in self.codec.decode_stream(self._codes(), PIECE):
            if self.closed:
                return
            begin = min(max(0, self.skip - seen), audio.shape[2])
            seen += audio.shape[2]
            yield self.encoder.write(as_pcm(audio[0, :, begin:]))
        yield self.encoder.close()

    def _codes(self) -> Iterator[np.ndarray]:
        """The take's frames, int64 [1, K, any], as they are there."""
        seen, ends = 0, math.inf
        while not self.closed and time.monotonic() < ends:
            last = self.job.record.state in FINAL or self.service.stopping
            codes = self.generation.codes()[self.row : self.row + 1, :, seen:]
            seen += codes.shape[2]
            for at in range(0, codes.shape[2], PIECE):
                yield codes[:, :, at : at + PIECE]
                if last:
                    ends = min(ends, time.monotonic() + LONGEST_WAIT)
            if last:
                return
            time.sleep(PAUSE)


def as_pcm(take: np.ndarray) -> np.ndarray:
    """float32 [channels, samples] -> int16 [samples, channels]."""
    return audio_files.pcm(np.clip(take.T, -1, 1), "PCM_16")


def encoded(take: Path, number: int, kind: str, options: Mapping[str, Any], begin: float) -> Path:
    """A take from a second on in another format, with the level and the sample format that the command line gives it.

    Raises AudioError, without the folder's name, for a format that cannot hold it.
    """
    folder, part = take.parent, "-seam" if begin else ""
    target = folder / f"result-{number}{part}.{kind}"
    if not target.exists():
        strategy, subtype = written_as(options["join"], folder / "input", target)
        try:
            wav, rate = audio_files.read(take)
            wav = wav[:, round(begin * rate) :]
            audio_files.write(target, wav, rate, strategy=options.get("strategy") or strategy, subtype=subtype)
        except AudioError as error:
            raise AudioError(str(error).replace(f"{folder}{os.sep}", "")) from None
    return target
