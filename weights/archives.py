"""Archives in a checkpoint's place: refused, with the names of what is in them."""

import tarfile
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from weights.containers import CheckpointError

TAR = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}  # how a compressed one begins, beside a bare tar
OTHERS = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR", b"\x28\xb5\x2f\xfd": "Zstandard"}
LISTED = 4  # names in the message
READ = 2**28  # bytes of a compressed archive that are unpacked, at most, to find its names


def refuse_archive(path: Path) -> None:
    """Raise CheckpointError where a file is an archive. A zip of torch.save is none."""
    if path.is_dir():
        return
    with path.open("rb") as file:
        head = file.read(512)
    other = next((name for magic, name in OTHERS.items() if head.startswith(magic)), None)
    if other:
        raise CheckpointError(f"{path}: a {other} archive; unpack it, and give what was in it")
    names = _zip_members(path) if head.startswith(b"PK\x03\x04") else _tar_members(path, head)
    if names:
        more = ", ..." if len(names) > LISTED else ""
        listed = ", ".join(names[:LISTED])
        raise CheckpointError(f"{path}: an archive that holds {listed}{more}: unpack it, and give what was in it")


def _zip_members(path: Path) -> list[str]:
    """The files of a zip; none for torch.save's, whose pickle is `NAME/data.pkl`, and for a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return []
    return [] if any(name.split("/")[-1] == "data.pkl" for name in names) else names


def _tar_members(path: Path, head: bytes) -> list[str]:
    compressed = any(head.startswith(magic) for magic in TAR)
    if not compressed and head[257:262] != b"ustar":
        return []
    try:
        with tarfile.open(path) as archive:
            return list(islice(_files(archive, compressed), LISTED + 1))
    except (tarfile.TarError, EOFError, OSError, ValueError):
        return []


def _files(archive: tarfile.TarFile, compressed: bool) -> Iterator[str]:
    """The files' names, as far as they are found without unpacking much: compressed data is read to reach the next."""
    for member in archive:
        if member.isfile():
            yield member.name
        if compressed and member.offset_data + member.size > READ:
            return
