"""Audio files: a part of one read as float32, and float32 written so that the file appears whole or not at all."""

import math
import os
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import soundfile as sf

from clean_lm import atomic
from clean_lm.audio import ONE, AudioError, check
from clean_lm.loudness import normalize

CHUNK = 65536  # frames read or written at once; libsndfile's Vorbis encoder overflows its stack on long arrays
KNOWN_LENGTH = 2**40  # libsndfile says 2^63 - 1 frames if a header does not tell

# extension: libsndfile's format, its subtype, and settings of the encoder
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    ".wav": ("WAV", "PCM_16", {}),
    ".flac": ("FLAC", "PCM_16", {}),
    ".ogg": ("OGG", "VORBIS", {}),
    ".mp3": ("MP3", "MPEG_LAYER_III", {"bitrate_mode": "CONSTANT", "compression_level": 0.0}),  # 320 kbit/s
}


def read(
    path: Path | str, start: float = 0.0, seconds: float | None = None, from_end: bool = False
) -> tuple[np.ndarray, int]:
    """A part of an audio file -> (float32 [channels, samples], sample rate). Any format that libsndfile reads.

    The part begins `start` seconds into the file and lasts `seconds` (None: all the rest), or what there is of it.
    from_end: it ends `start` seconds before the file does. Only that part is read, except of MP3 and Ogg, which are
    decoded from the beginning: their lengths are estimates, and Ogg seeks wrongly near the end. Raises AudioError.
    """
    path = Path(path)
    if not 0 <= start < math.inf or (seconds is not None and not 0 < seconds < math.inf):
        raise AudioError(f"{path}: start {start}, seconds {seconds}: expected 0 or more, and more than 0")
    if not path.is_file():
        raise AudioError(f"{path}: {'not a file' if path.exists() else 'not found'}; give the path of an audio file")
    try:
        with path.open("rb") as file, open_sound(file) as audio:
            rate, found = audio.samplerate, audio.frames
            skip, wanted = round(start * rate), None if seconds is None else max(1, round(seconds * rate))
            if audio.format in ("MP3", "OGG") or found > KNOWN_LENGTH:
                wav, found = decode(audio, skip, wanted, from_end)
            else:
                begin, end = part(found, skip, wanted, from_end)
                audio.seek(begin)
                wav = audio.read(end - begin, dtype="float32", always_2d=True)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror or error}; check the path and its rights") from None
    except (sf.LibsndfileError, TypeError) as error:  # TypeError: .raw, which has no header
        found = error.error_string if isinstance(error, sf.LibsndfileError) else str(error)
        raise AudioError(f"{path}: not readable as audio ({found}); convert it to WAV, or copy it again") from None
    if found and not len(wav):
        raise AudioError(f"{path}: {found / rate:.3f} s long, nothing is left after {start} s; give a smaller start")
    return check(np.ascontiguousarray(wav.T), str(path), ONE), rate


def part(frames: int, skip: int, wanted: int | None, from_end: bool) -> tuple[int, int]:
    """Where in `frames` the part begins and ends."""
    if from_end:
        end = max(0, frames - skip)
        return 0 if wanted is None else max(0, end - wanted), end
    return min(skip, frames), frames if wanted is None else min(skip + wanted, frames)


def decode(audio: sf.SoundFile, skip: int, wanted: int | None, from_end: bool) -> tuple[np.ndarray, int]:
    """Decode from the beginning -> (the part, float32 [samples, channels]; frames decoded). Holds little more."""
    blocks: list[np.ndarray] = [np.zeros((0, audio.channels), np.float32)]
    dropped = seen = 0
    while from_end or wanted is None or seen < skip + wanted:
        block = np.asarray(audio.read(CHUNK, dtype="float32", always_2d=True), np.float32)
        if not len(block):
            break
        blocks.append(block)
        seen += len(block)
        begin, _ = part(seen, skip, wanted, from_end)
        while len(blocks) > 1 and dropped + len(blocks[0]) <= begin:
            dropped += len(blocks.pop(0))
    begin, end = part(seen, skip, wanted, from_end)
    return np.concatenate(blocks)[begin - dropped : end - dropped], seen


def open_sound(file: BinaryIO) -> sf.SoundFile:
    """libsndfile on an open file; an MP3 that does not tell its length is opened as one without end."""
    audio = sf.SoundFile(file)
    if audio.format == "MP3" and not tells_length(file):
        audio.close()
        return sf.SoundFile(cast(BinaryIO, Endless(file)))
    file.seek(0)
    return sf.SoundFile(file)


def tells_length(file: BinaryIO) -> bool:
    """Whether an MP3 begins with the Xing or Info frame that counts its frames."""
    file.seek(0)
    head = file.read(10)
    size = int("".join(f"{byte:07b}" for byte in head[6:]), 2) + 10 if head[:3] == b"ID3" else 0
    file.seek(size)
    head = file.read(4096)
    at = max(head.find(b"Xing"), head.find(b"Info"))
    return at >= 0 and bool(head[at + 7 : at + 8] and head[at + 7] & 1)  # flag 1: the count is there


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


def write(
    path: Path | str,
    wav: np.ndarray,
    sample_rate: int,
    strategy: str | None = None,
    headroom_db: float | None = None,
    compressor: bool = False,
    subtype: str | None = None,
) -> int:
    """Write float [channels, samples] as .wav, .flac (16 bit), .ogg or .mp3; returns how many samples were clipped.

    strategy, headroom_db, compressor: see `normalize`; None leaves the level as it is and clips at 1.
    subtype: libsndfile's name for another sample format of .wav and .flac, PCM_24 or FLOAT (never clipped).
    What `read` gave of a 16 or 24 bit file is written back bit for bit. The file appears whole or not at all.
    Raises AudioError where the format cannot hold the audio, OSError where the folder or the disk does not take it.
    """
    path = Path(path)
    require_format(path)
    wav, clipped = normalize(check(wav, str(path), ONE), sample_rate, strategy, headroom_db, compressor)
    subtype = subtype or FORMATS[path.suffix.lower()][1]
    if subtype not in ("FLOAT", "DOUBLE"):
        clipped += int(np.count_nonzero(np.abs(wav) > 1))
        wav = np.clip(wav, -1, 1)
    encoded = encode(path, wav, sample_rate, subtype)
    with atomic.file(path) as file:
        file.write(encoded)
    return clipped


def encode(path: Path, wav: np.ndarray, sample_rate: int, subtype: str) -> memoryview:
    """The content of an audio file, in memory: libsndfile does not say when a disk is full. Raises AudioError."""
    file_format, _, options = FORMATS[path.suffix.lower()]
    memory = BytesIO()
    try:
        with sf.SoundFile(memory, "w", sample_rate, len(wav), subtype, format=file_format, **options) as file:
            for at in range(0, wav.shape[1], CHUNK):
                file.write(pcm(wav[:, at : at + CHUNK].T, subtype))
    except (sf.LibsndfileError, ValueError) as error:
        found = error.error_string if isinstance(error, sf.LibsndfileError) else str(error)
        audio = f"{len(wav)} channels at {sample_rate} Hz as {subtype}"
        raise AudioError(f"{path}: cannot hold {audio} ({found}); write .wav, or convert it first") from None
    return memory.getbuffer()


def require_format(path: Path) -> None:
    """Raise AudioError if no format that is written has this extension."""
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"{path}: the extension is {path.suffix!r}, expected one of {', '.join(FORMATS)}")


def require_writable(path: Path, rate: int, channels: int) -> None:
    """Raise AudioError if audio of this rate and channels could not be written to `path` in the end."""
    require_format(path)
    if not path.parent.is_dir():
        raise AudioError(f"{path.parent}: no such folder; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise AudioError(f"{path}: {'a folder' if path.is_dir() else 'its folder takes no files'}; choose another name")
    file_format, subtype, _ = FORMATS[path.suffix.lower()]
    try:
        sf.SoundFile(BytesIO(), "w", rate, channels, subtype, format=file_format).close()
    except sf.LibsndfileError as error:
        found = f"{channels} channels at {rate} Hz"
        raise AudioError(f"{path}: cannot hold {found} ({error.error_string}); write .wav") from None


def lossless_subtype(source: Path, output: Path) -> str | None:
    """The sample format of `output` that holds the source file's samples as they are; None: its usual one."""
    found = sf.info(source).subtype
    if output.suffix.lower() == ".wav" and found in ("PCM_32", "FLOAT", "DOUBLE"):
        return "FLOAT"
    deep = output.suffix.lower() in (".wav", ".flac") and found in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
    return "PCM_24" if deep else None


def pcm(wav: np.ndarray, subtype: str) -> np.ndarray:
    """Samples as the integers that `read` divided by 2^15 or 2^23, so that they come back bit for bit."""
    if subtype == "PCM_16":
        return np.clip(np.rint(wav * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)
    if subtype == "PCM_24":  # libsndfile takes the upper 24 of 32 bits
        return np.clip(np.rint(wav * 2.0**23), -(2**23), 2**23 - 1).astype(np.int32) << 8
    return wav
