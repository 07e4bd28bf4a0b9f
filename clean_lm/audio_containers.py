"""What audio files say about their own length, and how compressed ones are decoded without losing samples."""

import os
from dataclasses import dataclass
from typing import BinaryIO, cast

import soundfile as sf

SLACK = 256  # bytes that may be missing: some writers count their header as audio
STREAMED = 0x7FFF0000  # sizes from here on are what writers to a pipe put in, who cannot know
KNOWN_LENGTH = 2**40  # libsndfile says 2^63 - 1 frames if a header does not tell
TAIL = 2**18  # bytes that surely hold a page of Ogg
SEEKABLE = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # samples of a fixed size: any part can be read by itself


class Sequential(sf.SoundFile):
    """A file that is decoded from its start, in blocks, as one uninterrupted read gives it.

    python-soundfile seeks after every read of what can seek, and a decoder of MP3 that seeks begins anew, without the
    bits that the frames before have left for it: a burst of noise at the start of every block.
    """

    def seekable(self) -> bool:
        return False


class Uncounted(Sequential):
    """The same of a file whose `frames` mean nothing."""


@dataclass(frozen=True)
class Count:
    """What an MP3's Xing or Info frame says: frames, and bytes from `start` on (0: not counted)."""

    start: int
    frames: int
    bytes: int


@dataclass(frozen=True)
class Cut:
    """A truncated file: what share of its audio is there, None where its header does not tell."""

    share: float | None


def open_sound(file: BinaryIO) -> sf.SoundFile:
    """libsndfile on an open file; an MP3 that does not tell its length is opened as one without end."""
    file.seek(0)
    with sf.SoundFile(file) as found:
        kind, exact = found.format, found.subtype.startswith(SEEKABLE) and found.frames <= KNOWN_LENGTH
    if kind == "MP3":
        counted = mp3_count(file)
        file.seek(0)
        return Sequential(file) if counted else Uncounted(cast(BinaryIO, Endless(file)))
    file.seek(0)
    return sf.SoundFile(file) if exact else Sequential(file)


def mp3_count(file: BinaryIO) -> Count | None:
    """An MP3's length as it counts it; None if it does not.

    [ID3 tag][frame: ... "Xing" or "Info", flags, frames, bytes ...][frame][frame] ...
    """
    file.seek(0)
    head = file.read(10)
    start = int("".join(f"{byte:07b}" for byte in head[6:]), 2) + 10 if head[:3] == b"ID3" else 0
    file.seek(start)
    head = file.read(4096)
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or len(head) < at + 16 or not head[at + 7] & 1:  # flag 1: frames are counted, 2: bytes too
        return None
    return Count(start, word(head[at + 8 :]), word(head[at + 12 :]) if head[at + 7] & 2 else 0)


def truncated(file: BinaryIO) -> Cut | None:
    """Whether the file ends before its header, or its last page, says; None if not, or if it does not tell."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(16)
    if magic[:4] == b"OggS":
        return Cut(None) if ogg_page_missing(file, size) else None
    declared, available = data_chunk(file, magic, size) or (0, 0)
    if declared - available > SLACK:
        return Cut(available / declared)
    return None


def data_chunk(file: BinaryIO, magic: bytes, size: int) -> tuple[int, int] | None:
    """Bytes of audio that a WAV, RF64, W64, AIFF or AU declares and those there are; None where it does not tell."""
    if magic[:4] == b".snd":
        start, declared = word(magic[4:]), word(magic[8:])
        return None if declared >= STREAMED else (declared, size - start)
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM") and magic[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
        return chunk_of(file, size, "little" if magic[:4] in (b"RIFF", b"RF64") else "big")
    if magic[:4] == b"riff":
        return w64_data(file, size)
    if magic[:3] == b"ID3" or magic[:1] == b"\xff":
        return mp3_bytes(file, size)
    return None


def chunk_of(file: BinaryIO, size: int, order: str) -> tuple[int, int] | None:
    """The chunk of a RIFF or AIFF that holds the samples: declared bytes, and those there are.

    RIFF size WAVE | fmt_ size ... | (ds64 size riff-size data-size ...) | data size ...
    """
    at, long = 12, 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(24)
        declared = word(head[4:], order)
        if head[:4] == b"ds64":
            long = int.from_bytes(head[16:24], "little")
        if head[:4] in (b"data", b"SSND"):
            declared = long if declared == 2**32 - 1 and long else declared
            return None if declared >= STREAMED and not long else (declared, size - at - 8)
        at += 8 + declared + declared % 2
    return None


def w64_data(file: BinaryIO, size: int) -> tuple[int, int] | None:
    """The same of Sony's W64: names of 16 bytes, sizes of 8 that count the 24 bytes before the content."""
    at = 40
    while at + 24 <= size:
        file.seek(at)
        head = file.read(24)
        declared = int.from_bytes(head[16:24], "little")
        if head[:4] == b"data":
            return declared - 24, size - at - 24
        if declared < 24:
            return None
        at += declared + -declared % 8
    return None


def mp3_bytes(file: BinaryIO, size: int) -> tuple[int, int] | None:
    """The bytes that an MP3 declares and those there are. Some count a frame or two too many: 1 % may be missing."""
    count = mp3_count(file)
    if count is None or not count.bytes:
        return None
    missing = count.bytes - (size - count.start)
    return None if missing <= count.bytes // 100 else (count.bytes, size - count.start)


def ogg_page_missing(file: BinaryIO, size: int) -> bool:
    """Whether the last page of an Ogg file is not all there: OggS ... count, sizes of its segments, segments."""
    start = max(0, size - TAIL)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return False
    header = tail[at : at + 27]
    if len(header) < 27:
        return True
    sizes = tail[at + 27 : at + 27 + header[26]]
    return at + 27 + header[26] + sum(sizes) > len(tail)


def word(data: bytes, order: str = "big") -> int:
    """The first 4 bytes as a number."""
    return int.from_bytes(data[:4], "little" if order == "little" else "big")


class Endless:
    """A file that seems 64 times as long. libsndfile guesses the length of an MP3 without a count from its size and its
    first frame's bit rate, and stops there: a variable rate then lost 62 % of a file. Reading still ends at the end.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.at, self.size = file, 0, file.seek(0, os.SEEK_END)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size * 64)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        """The file's bytes, nothing after its end, and zeros where the decoder looks for a tag: the last 128."""
        self.file.seek(self.at)
        data = self.file.read(size) if self.at < self.size * 64 - 128 else bytes(size)
        self.at += len(data)
        return data
