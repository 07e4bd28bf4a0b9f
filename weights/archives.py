"""Archives in a checkpoint's place: refused, with the names of what is in them."""

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from weights.errors import CheckpointError, show_name
from weights.torch_files import ZIP
from weights.zip_records import BadZip, record_names

# How a compressed tar begins, and what opens it.
TAR: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
OTHERS = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR", b"\x28\xb5\x2f\xfd": "Zstandard"}
LISTED = 4  # names in the message
READ = 2**28  # bytes of a compressed archive that are unpacked, at most, to find its names
MEMBERS = 1000  # folders and the like that are passed, at most
HEADER = 2**20  # bytes of a tar that are read at once, at most: a header can ask for any number


def refuse_archive(path: Path) -> None:
    """Raise CheckpointError where a file is an archive. A zip of torch.save is none."""
    if path.is_dir():
        return
    with path.open("rb") as file:
        head = file.read(512)
    other = next((name for magic, name in OTHERS.items() if head.startswith(magic)), None)
    if other:
        raise CheckpointError(f"{path}: a {other} archive; unpack it, and give what was in it")
    names = _zip_members(path) if head.startswith(ZIP) else _tar_members(path, head)
    if names:
        more = ", ..." if len(names) > LISTED else ""
        listed = ", ".join(map(show_name, names[:LISTED]))
        raise CheckpointError(f"{path}: an archive that holds {listed}{more}: unpack it, and give what was in it")


def _zip_members(path: Path) -> list[str]:
    """The files of a zip; none for torch.save's, whose pickle is `NAME/data.pkl`, and for a damaged one."""
    try:
        names = [name for name in record_names(path) if not name.endswith("/")]
    except BadZip:
        return []
    return [] if any(name.split("/")[-1] == "data.pkl" for name in names) else names


def _tar_members(path: Path, head: bytes) -> list[str]:
    unpack = next((opener for magic, opener in TAR.items() if head.startswith(magic)), None)
    if unpack is None and head[257:262] != b"ustar":
        return []
    opener: Callable[[Path], IO[bytes]] = unpack or (lambda path: path.open("rb"))
    try:
        with opener(path) as file, tarfile.open(fileobj=cast(Any, _Bounded(file)), mode="r:") as archive:
            return list(islice(_files(archive, unpack is not None), LISTED + 1))
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, lzma.LZMAError):
        return []


def _files(archive: tarfile.TarFile, compressed: bool) -> Iterator[str]:
    """The files' names, as far as they are found without unpacking much: compressed data is read to reach the next."""
    for member in islice(archive, MEMBERS):
        if member.isfile():
            yield member.name
        if compressed and member.offset_data + member.size > READ:
            return


class _Bounded:
    """A file of which little is read at once, and which is not followed far."""

    def __init__(self, file: IO[bytes]):
        self.file, self.tell = file, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)

    def seek(self, position: int) -> int:
        return self.file.seek(position)
