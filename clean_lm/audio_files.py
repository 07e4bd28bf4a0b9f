"""Audio files: a part of one read as float32, and float32 written so that the file appears whole or not at all."""

import os
import stat
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from clean_lm import atomic
from clean_lm.audio import ONE, AudioError, check, check_samples, require_memory, require_rates
from clean_lm.audio_containers import Cut, Sequential, Uncounted, open_sound, truncated
from clean_lm.loudness import normalize
from clean_lm.options import HIGHEST_RATE, LEAST_RATE

CHUNK = 65536  # frames read or written at once; libsndfile's Vorbis encoder overflows its stack on long arrays
BLOCK = 64 * CHUNK  # frames that are read at once of what can seek
MOST_SECONDS = 1e9  # of a file: 30 years, for which every rate gives a number of samples that is exact
HELD_BYTES = 8  # of a sample that is read: the blocks, and all of them
SHORTER = "give a shorter part, or cut the file"
MP3_SLACK = 2 * 1152 + 529  # samples that the last frames may lack: the encoder's delay and padding

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
    from_end: it ends `start` seconds before the file does. Only that part is read, except of MP3, Ogg and other
    compressed formats, which are decoded from the beginning, without a seek: sample for sample what one uninterrupted
    decode gives. A file that ends before its header says is refused. Raises AudioError.
    """
    path = require_file(path)
    if not 0 <= start < MOST_SECONDS or (seconds is not None and not 0 < seconds < MOST_SECONDS):
        raise AudioError(
            f"{path}: start {start}, seconds {seconds}: expected 0 or more, and more than 0, less than {MOST_SECONDS:g}"
        )
    try:
        with path.open("rb") as file:
            cut = truncated(file)
            with open_sound(file) as sound:
                require_sound(path, sound)
                if cut:
                    raise too_short(path, sound, cut)
                wav, found = read_part(path, sound, start, seconds, from_end)
                rate = sound.samplerate
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror or error}; check the path and its rights") from None
    except (sf.LibsndfileError, TypeError) as error:  # TypeError: .raw, which has no header
        found = error.error_string if isinstance(error, sf.LibsndfileError) else str(error)
        raise AudioError(f"{path}: not readable as audio ({found}); convert it to WAV, or copy it again") from None
    if found and not len(wav):
        raise AudioError(f"{path}: {found / rate:.3f} s long, nothing is left after {start} s; give a smaller start")
    return check_samples(np.ascontiguousarray(wav.T), str(path)), rate


def read_part(
    path: Path, sound: sf.SoundFile, start: float, seconds: float | None, from_end: bool
) -> tuple[np.ndarray, int]:
    """`read`'s part [samples, channels], and how many frames the file has or were decoded. Raises AudioError."""
    rate, frames = sound.samplerate, sound.frames
    skip, wanted = round(start * rate), None if seconds is None else max(1, round(seconds * rate))
    if isinstance(sound, Sequential):
        wav, decoded = decode(path, sound, skip, wanted, from_end)
        ended = from_end or wanted is None or decoded < skip + wanted
        counted = sound.format == "MP3" and not isinstance(sound, Uncounted)
        if ended and counted and frames - decoded > MP3_SLACK:
            raise too_short(path, sound, Cut(decoded / frames))
        return wav, decoded
    if sound.format == "FLAC" and frames:
        require_last_sample(path, sound)
    begin, end = part(frames, skip, wanted, from_end)
    require_memory(str(path), (end - begin) * sound.channels, HELD_BYTES, SHORTER)
    sound.seek(begin)
    wav = blocks(sound, end - begin)
    if len(wav) < end - begin:
        raise too_short(path, sound, Cut((begin + len(wav)) / frames))
    return wav, frames


def blocks(sound: sf.SoundFile, frames: int) -> np.ndarray:
    """The next frames, float32 [samples, channels], or those there are: memory does not follow what a header says."""
    found: list[np.ndarray] = [np.zeros((0, sound.channels), np.float32)]
    while frames > 0 and len(block := np.asarray(sound.read(min(frames, BLOCK), dtype="float32", always_2d=True))):
        found.append(block)
        frames -= len(block)
    return found[-1] if len(found) == 2 else np.concatenate(found)


def require_file(path: Path | str) -> Path:
    """Raise AudioError unless it is a regular file: a pipe or a device may never end."""
    if not isinstance(path, (str, os.PathLike)):
        raise AudioError(f"got {type(path).__name__}, expected the path of an audio file")
    path = Path(path)
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        found = "not found" if isinstance(error, FileNotFoundError) else f"cannot be read: {reason(error)}"
        raise AudioError(f"{path}: {found}; give the path of an audio file") from None
    if not stat.S_ISREG(kind):
        raise AudioError(f"{path}: not a file; give the path of an audio file")
    return path


def require_sound(path: Path, sound: sf.SoundFile) -> None:
    """Raise AudioError for a sample rate that no sound has: everything is resampled from it or to it."""
    if not LEAST_RATE <= sound.samplerate <= HIGHEST_RATE:
        raise AudioError(
            f"{path}: {sound.samplerate} Hz, expected {LEAST_RATE} to {HIGHEST_RATE} Hz; its header is damaged, or it "
            "holds no sound: convert it to WAV"
        )


def reason(error: Exception) -> str:
    """What the operating system says, without the path that it repeats."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def require_last_sample(path: Path, sound: sf.SoundFile) -> None:
    """Raise AudioError if a FLAC file ends before its last sample."""
    try:
        sound.seek(sound.frames - 1)
        whole = len(sound.read(1)) == 1
    except sf.LibsndfileError:
        whole = False
    if not whole:
        raise AudioError(
            f"{path}: truncated or damaged, not readable as audio to its end: its header says "
            f"{sound.frames / sound.samplerate:.1f} s; copy it again"
        )


def too_short(path: Path, sound: sf.SoundFile, cut: Cut) -> AudioError:
    """The error for a truncated file; of what is there, libsndfile counts the frames."""
    there, rate = sound.frames, sound.samplerate
    if cut.share is None:
        return AudioError(f"{path}: truncated: it ends in the middle of a page, {there / rate:.1f} s; copy it again")
    if sound.format == "MP3":
        whole, there = there, there * cut.share
    else:
        whole = there / max(cut.share, 1e-9)
    return AudioError(
        f"{path}: truncated: its header says {whole / rate:.1f} s, {there / rate:.1f} s are there; copy it again"
    )


def part(frames: int, skip: int, wanted: int | None, from_end: bool) -> tuple[int, int]:
    """Where in `frames` the part begins and ends."""
    if from_end:
        end = max(0, frames - skip)
        return 0 if wanted is None else max(0, end - wanted), end
    return min(skip, frames), frames if wanted is None else min(skip + wanted, frames)


def excerpt(wav: np.ndarray, rate: int, seconds: float, from_end: bool) -> np.ndarray:
    """What `read` gives of a file's first or last `seconds`, of the whole file [channels, samples]."""
    begin, end = part(wav.shape[1], 0, max(1, round(seconds * rate)), from_end)
    return wav[:, begin:end]


def decode(path: Path, sound: sf.SoundFile, skip: int, wanted: int | None, from_end: bool) -> tuple[np.ndarray, int]:
    """Decode from the beginning -> (the part, float32 [samples, channels]; frames decoded). Holds little more."""
    held: list[np.ndarray] = [np.zeros((0, sound.channels), np.float32)]
    dropped = seen = 0
    while from_end or wanted is None or seen < skip + wanted:
        block = np.asarray(sound.read(CHUNK, dtype="float32", always_2d=True), np.float32)
        if not len(block):
            break
        held.append(block)
        seen += len(block)
        begin, _ = part(seen, skip, wanted, from_end)
        while len(held) > 1 and dropped + len(held[0]) <= begin:
            dropped += len(held.pop(0))
        if not seen % (256 * CHUNK):  # a small file may hold days of silence
            require_memory(str(path), (seen - dropped) * sound.channels, HELD_BYTES // 2, SHORTER)
    begin, end = part(seen, skip, wanted, from_end)
    return np.concatenate(held)[begin - dropped : end - dropped], seen


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
    require_rates(sample_rate, sample_rate)
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
    require_replaceable(path)
    file_format, subtype, _ = FORMATS[path.suffix.lower()]
    try:
        sf.SoundFile(BytesIO(), "w", rate, channels, subtype, format=file_format).close()
    except sf.LibsndfileError as error:
        found = f"{channels} channels at {rate} Hz"
        raise AudioError(f"{path}: cannot hold {found} ({error.error_string}); write .wav") from None


def require_replaceable(path: Path) -> None:
    """Raise AudioError where no file can be written to `path`: what is there is none, or its folder takes none."""
    target = Path(os.path.realpath(path))  # a link stays one, and what it names is replaced
    if target.is_dir():
        raise AudioError(f"{path}: a folder; choose another name")
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise AudioError(f"{path}: a loop of links, a pipe or a device, not a file; choose another name")
    if not os.access(target.parent, os.W_OK):
        raise AudioError(f"{path}: its folder takes no files; choose another name")


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
