"""The rows of a job, read from JSON lines, CSV, Parquet or a folder of audio, here or at an address."""

import codecs
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from clean_lm import audio_files
from clean_lm.audio import AudioError
from clean_lm.batch.addresses import joined, opened, said
from clean_lm.options import shown
from clean_lm.request_options import OPTIONS, read_options

FILES = ("input", "melody", "style")  # paths or addresses; melody: several are stems
PLACE = ("id", *FILES, "bundle", "variant")
JOB = "job.json"  # in the folder of a job's output
KINDS = (".jsonl", ".ndjson", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row as it was read: plain values, which travel to other machines."""

    id: str
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bundle: str | None = None
    variant: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # those of request_options, in their types
    error: str | None = None  # why it cannot be used; it is then a result without audio


def read_rows(source: str) -> list[Row]:
    """All rows of a list, or of a folder of audio. Raises AudioError for what is neither, ValueError for columns that
    nothing is known of, OSError."""
    kind = PurePosixPath(source.split("?")[0]).suffix.lower()
    if kind not in KINDS:
        return folder_rows(source)
    base = source.rpartition("/")[0]
    fs, path = opened(source)
    with said(source), fs.open(path, "rb") as file:
        rows = [row_of(found, number, base, kind == ".csv") for number, found in enumerate(read_list(file, kind), 1)]
    if not rows:
        raise AudioError(f"{source}: holds no rows")
    return rows


def read_list(file: Any, kind: str) -> Iterator[Mapping[str, Any] | str]:
    """The rows of a list as they stand in it; a text where one cannot be read: why."""
    if kind == ".parquet":
        table = pq.ParquetFile(file)
        require_columns(table.schema_arrow.names)
        for part in table.iter_batches():
            yield from part.to_pylist()
        return
    if kind == ".csv":
        table = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), restkey="", restval=None)
        require_columns(table.fieldnames or ())
        for found in table:
            yield "more cells than the first line has" if found.pop("", None) else found
        return
    for number, line in enumerate(file):
        if line.strip():
            yield json_row(line.removeprefix(codecs.BOM_UTF8) if number == 0 else line)


def json_row(line: bytes) -> Mapping[str, Any] | str:
    """One line of JSON lines, or why it cannot be read."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return found if isinstance(found, dict) else f"got {shown(found)}, expected a JSON object"


def require_columns(names: Iterable[str]) -> None:
    """Raise ValueError for a table with a column that nothing is known of: every row would have its error."""
    known = (*PLACE, *OPTIONS)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{shown(unknown[0])}: unknown column, expected some of {', '.join(known)}")


def row_of(found: Mapping[str, Any] | str, number: int, base: str, text: bool) -> Row:
    """A row of a list. number: its line, which is its id where it has none. base: the list's folder, in which its paths
    begin. text: all values are texts."""
    if isinstance(found, str):
        return Row(str(number), error=found)
    given = {name: plain(name, value) for name, value in found.items() if value is not None}
    given = {name: value for name, value in given.items() if value is not None and not (text and value == "")}
    identity = given.pop("id", number)
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        return Row(str(number), error=f"id: got {shown(identity)}, expected a text or a whole number")
    try:
        str(identity).encode()
    except UnicodeEncodeError:
        return Row(str(number), error=f"id: got {shown(identity)}, expected Unicode text")
    try:
        files = {name: paths_of(name, given.pop(name), base) for name in FILES if name in given}
        place = {name: text_of(name, given.pop(name)) for name in ("bundle", "variant") if name in given}
        if "bundle" in place:
            place["bundle"] = joined(base, place["bundle"])
        return Row(str(identity), files, options=read_options(given, text, PLACE), **place)
    except ValueError as error:
        return Row(str(identity), error=str(error))


def plain(name: str, value: Any) -> Any:
    """A cell as JSON would have it: tables have 2.0 where a column lacks some whole numbers, NaN where one is lacking,
    and decimals."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and value.is_integer() and (name == "id" or kind_of(name) == "integer"):
        return int(value)
    return None if (isinstance(value, float) and math.isnan(value)) or value == [] else value


def kind_of(name: str) -> str | None:
    """The type of an option."""
    return OPTIONS[name].kind if name in OPTIONS else None


def paths_of(name: str, value: Any, base: str) -> tuple[str, ...]:
    """The files of a cell: one, or several for a melody's stems. Raises ValueError."""
    paths = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not paths or (len(paths) > 1 and name != "melody"):
        raise ValueError(f"{name}: got {shown(value)}, expected a path or an address")
    return tuple(joined(base, text_of(name, path)) for path in paths)


def text_of(name: str, value: Any) -> str:
    """Raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}: got {shown(value)}, expected a text")
    return value


def folder_rows(source: str) -> list[Row]:
    """A row for each audio file in a folder and the folders in it, but for those of a job's output; its id is its path
    in it, without the suffix.

    Raises AudioError if there are none, or if two have one name.
    """
    fs, root = opened(source)
    with said(source):
        there = fs.isdir(root)
        if not there and not fs.exists(root):
            raise FileNotFoundError
    if not there:
        raise AudioError(f"{source}: expected a folder of audio, or a list of the kind {', '.join(KINDS)}")
    root = root.rstrip("/")
    found: dict[str, str] = {}
    inners = [PurePosixPath(path[len(root) + 1 :]) for path in sorted(fs.find(root))]
    jobs = {inner.parent for inner in inners if inner.name == JOB}
    for inner in inners:
        if inner.suffix.lower() not in audio_files.FORMATS or any(part.startswith(".") for part in inner.parts):
            continue
        if jobs & {inner.parent, *inner.parents}:
            continue
        name = str(inner.with_suffix(""))
        if name in found:
            raise AudioError(f"{source}: {found[name]} and {inner} have one name; rename one, or give a list of rows")
        found[name] = str(inner)
    if not found:
        raise AudioError(f"{source}: holds no audio ({', '.join(audio_files.FORMATS)})")
    return [Row(name, {"input": (f"{source.rstrip('/')}/{inner}",)}) for name, inner in found.items()]
