"""The records of a zip, as its directory lists them, before anything of them is read.

torch.save writes a zip whose records are stored without compression, each once and none within another: a file that
says otherwise is refused. torch.load does not look: it takes what the headers say.
"""

import mmap
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

from weights.errors import show

END, END64, LOCATOR64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
ENTRY, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
MOST = 100_000  # records
CHUNK = 2**20  # bytes read at a time to check a record
STORED, ENCRYPTED = 0, 1
ZIP64, FULL = 1, 0xFFFFFFFF  # the extra field that holds sizes of 64 bits, where the entry's own have this value


class BadZip(ValueError):
    """Why a zip is refused."""


@dataclass(frozen=True)
class Record:
    name: str
    start: int  # of its header in the file
    offset: int  # of its bytes in the file
    size: int
    crc: int  # CRC-32 of its bytes; 0 where the writer did not compute it


def record_names(path: Path) -> list[str]:
    """The names in any zip. Raises BadZip."""
    with _mapped(path) as file:
        return [entry.name for entry in _entries(file)]


def torch_records(path: Path) -> dict[str, Record]:
    """The records of a file of torch.save, by their names without the folder they are all in. Raises BadZip."""
    with _mapped(path) as file:
        records = [_record(file, entry) for entry in _entries(file)]
    _check_places(records)
    roots = {record.name.partition("/")[0] for record in records}
    if len(roots) != 1:
        raise BadZip(f"its records are in {len(roots)} folders, expected 1")
    return {record.name.partition("/")[2]: record for record in records}


def damaged_records(path: Path, records: Mapping[str, Record]) -> Iterator[str]:
    """The names of records whose bytes do not have their CRC-32. Reads the whole file, once.

    torch.save leaves 0 where `torch.serialization.set_crc32_options(False)` is set: those cannot be checked.
    """
    with path.open("rb") as file:
        for name, record in records.items():
            if record.crc and _crc(file, record) != record.crc:
                yield name


def _crc(file: IO[bytes], record: Record) -> int:
    file.seek(record.offset)
    crc, left = 0, record.size
    while left and (data := file.read(min(left, CHUNK))):
        crc, left = zlib.crc32(data, crc), left - len(data)
    return crc


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@dataclass(frozen=True)
class _Entry:
    """What the directory says of a record."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    start: int
    limit: int  # where the directory begins: records end before it


def _directory(file: mmap.mmap) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many entries it has."""
    at = file.rfind(b"PK\5\6", max(0, len(file) - END.size - 0xFFFF))
    if at < 0 or at + END.size > len(file):
        raise BadZip("it has no directory at its end")
    *_, count, size, start, comment = END.unpack_from(file, at)
    if at + END.size + comment != len(file):
        raise BadZip("its directory is not at its end")
    end, locator = at, at - LOCATOR64.size
    if locator >= 0 and file[locator : locator + 4] == b"PK\6\7":
        end = LOCATOR64.unpack_from(file, locator)[2]
        if end + END64.size != locator:
            raise BadZip("its directory is not at its end")
        magic, *_, count, size, start = END64.unpack_from(file, end)
        if magic != b"PK\6\6":
            raise BadZip("its directory is not at its end")
    if start + size != end:
        raise BadZip(f"its directory of {size} bytes at {start} does not end at {end}")
    if count > MOST:
        raise BadZip(f"{count} records, expected at most {MOST}")
    return start, end, count


def _entries(file: mmap.mmap) -> list[_Entry]:
    start, end, count = _directory(file)
    entries, at = [], start
    for _ in range(count):
        if at + ENTRY.size > end or file[at : at + 4] != b"PK\1\2":
            raise BadZip(f"its directory has fewer than {count} entries")
        fields = ENTRY.unpack_from(file, at)
        flags, method, crc, (packed, size, named, extra, comment), first = (
            fields[3], fields[4], fields[7], fields[8:13], fields[16]
        )  # fmt: skip
        at += ENTRY.size
        name = file[at : at + named].decode("utf-8", "backslashreplace")
        sizes = _wide(file[at + named : at + named + extra], [size, packed, first])
        entries.append(_Entry(name, flags, method, crc, sizes[1], sizes[0], sizes[2], start))
        at += named + extra + comment
    if at != end:
        raise BadZip(f"its directory has more than {count} entries")
    return entries


def _wide(extra: bytes, sizes: list[int]) -> list[int]:
    """Sizes with those of 64 bits, which an extra field has in this order, for each that is full."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + 4 + length > len(extra):
            break
        if kind == ZIP64:
            values = [value for (value,) in struct.iter_unpack("<Q", extra[at + 4 :][: length // 8 * 8])]
            return [values.pop(0) if size == FULL and values else size for size in sizes]
        at += 4 + length
    return sizes


def _record(file: mmap.mmap, entry: _Entry) -> Record:
    """An entry with its place in the file: the directory and the record's own header must agree."""
    if entry.method != STORED or entry.packed != entry.size or entry.flags & ENCRYPTED:
        raise BadZip(f"record {show(entry.name)} is compressed or encrypted: torch.save stores records as they are")
    if entry.start + LOCAL.size > entry.limit or file[entry.start : entry.start + 4] != b"PK\3\4":
        raise BadZip(f"record {show(entry.name)} is not where the directory says")
    *_, named, extra = LOCAL.unpack_from(file, entry.start)
    at = entry.start + LOCAL.size
    if file[at : at + named].decode("utf-8", "backslashreplace") != entry.name:
        raise BadZip(f"record {show(entry.name)} has another name in its own header")
    offset = at + named + extra
    if offset + entry.size > entry.limit:
        raise BadZip(f"record {show(entry.name)} of {entry.size} bytes goes beyond the file's data")
    return Record(entry.name, entry.start, offset, entry.size, entry.crc)


def _check_places(records: list[Record]) -> None:
    if len({record.name.lower() for record in records}) != len(records):
        raise BadZip("a record is in it twice")
    for one, other in pairwise(sorted(records, key=lambda record: record.start)):
        if one.offset + one.size > other.start:
            raise BadZip(f"records {show(one.name)} and {show(other.name)} overlap")
