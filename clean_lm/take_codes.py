"""The codes of a take in a file beside its audio, from which it is continued without being encoded: out.codes.json."""

import json
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from clean_lm import atomic
from clean_lm.audio import AudioError
from clean_lm.manifest import Manifest, sha256
from clean_lm.typed_json import Count, FieldError, Pattern, Range, read_as

FORMAT = "clean_lm codes 1"
MOST_BYTES = 2**27  # of a file: a day of music has a tenth of it in numbers


@dataclass(frozen=True)
class TakeCodes:
    """What the file holds."""

    format: Literal["clean_lm codes 1"]
    frame_rate: Annotated[float, Range(1, 10_000)]  # frames a second
    card: Annotated[int, Range(1, 2**16)]  # how many codes a codebook has
    begin: Annotated[float, Range(-1e6, 1e6)]  # seconds into the audio file at which the first frame begins
    end: Annotated[float, Range(0, 1e6)]  # seconds up to which the audio is that of the codes, and not faded
    seed: Annotated[int, Range(0, 2**64)]
    codes: Annotated[tuple[tuple[int, ...], ...], Count(1, 64)]  # a list for each codebook
    audio_sha256: Annotated[str, Pattern("[0-9a-f]{64}", "a SHA-256")] = ""  # of the audio file, once it is written

    def array(self) -> np.ndarray:
        """int64 [K, frames]."""
        return np.array(self.codes, np.int64)

    @property
    def frames(self) -> int:
        """How many frames of them, from the first, are heard whole in the file."""
        return min(len(self.codes[0]), int((self.end - self.begin) * self.frame_rate + 1e-6))


def beside(audio: Path) -> Path:
    """The file of codes that belongs to an audio file."""
    return audio.with_name(f"{audio.stem}.codes.json")


def write(audio: Path, found: TakeCodes) -> None:
    """Write the codes beside their audio file, which is there already. Raises OSError."""
    found = replace(found, audio_sha256=sha256(audio))
    with atomic.file(beside(audio)) as file:
        file.write(json.dumps(asdict(found), separators=(",", ":")).encode())


def read(path: Path, audio: Path, samples: int, rate: int, manifest: Manifest) -> TakeCodes:
    """The codes of an audio file that has so many samples. Raises AudioError for those of another file or codec, or
    that lie elsewhere than in it."""
    codec, model = manifest.codec, manifest.language_model
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FieldError("a folder, a pipe or a device")
        if status.st_size > MOST_BYTES:
            raise FieldError(f"more than {MOST_BYTES} bytes")
        found = read_as(TakeCodes, json.loads(path.read_bytes()), "")
        if len({len(row) for row in found.codes}) > 1 or not found.codes[0]:
            raise FieldError("codes: expected lists of one length, with a code or more")
        if not all(0 <= code < found.card for row in found.codes for code in row):
            raise FieldError(f"codes: expected 0 .. {found.card - 1}")
    except FileNotFoundError:
        raise AudioError(
            f"{path}: no such file; extend needs the codes that --save-codes writes beside a take. Without them: "
            f"clean-lm continue {audio} --splice"
        ) from None
    except (ValueError, RecursionError) as error:
        raise AudioError(f"{path}: not readable as the codes of a take: {error}") from None
    if found.audio_sha256 != sha256(audio):
        raise AudioError(
            f"{audio}: was changed since {path} was written; continue it without codes: clean-lm continue {audio} "
            "--splice"
        )
    theirs = (len(found.codes), found.card, found.frame_rate)
    if theirs != (model.codebooks, model.card, codec.frame_rate):
        raise AudioError(
            f"{path}: has {theirs[0]} codebooks of {theirs[1]} codes, {theirs[2]:g} frames a second, this model "
            f"{model.codebooks} of {model.card}, {codec.frame_rate:g}: give the bundle that made the take"
        )
    if found.frames < 1:
        raise AudioError(f"{path}: no frame of its codes is heard in {audio}, which is faded or cut too far")
    last, length = found.begin + found.frames / found.frame_rate, samples / rate
    if not 0 < last <= length + 1 / rate:
        raise AudioError(f"{path}: its codes end at {last:g} s, expected up to {length:g} s, the end of {audio}")
    return found
