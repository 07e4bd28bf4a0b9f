"""What a request brings: options and audio files, from a form or from JSON, within bounds."""

import base64
import binascii
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from clean_lm.options import shown
from clean_lm.request_options import AUDIO, read_options
from clean_lm.service.options import MOST_FILES, PLACE
from clean_lm.service.problems import Problem
from clean_lm.service.store import UPLOAD

SLOWEST = 60.0  # seconds between two pieces of a body
MOST_FIELDS = 64
FIELD_BYTES = 2**17  # of one field of a form; texts have 10,000 characters at most
COPY = 2**20
LONGEST_TAIL = 4096  # bytes at the end of a form among which its closing boundary is


@dataclass(frozen=True)
class Upload:
    """A job as it is asked for."""

    model: str | None
    variant: str | None
    options: dict[str, Any]
    files: dict[str, Path]  # in a temporary folder, by their names in a job's folder


@contextmanager
def scratch(data: Path) -> Iterator[Path]:
    """A folder for files that are not accepted yet, on the disk of the jobs. Raises OSError."""
    with tempfile.TemporaryDirectory(dir=data, prefix=UPLOAD) as folder:
        yield Path(folder)


async def body(request: Request, most: int) -> bytes:
    """The whole body. Raises Problem for one that is too large, or too slow."""
    pieces = bytearray()
    async for piece in bounded(request, most):
        pieces += piece
    return bytes(pieces)


async def bounded(request: Request, most: int):
    """The body's pieces. Raises Problem."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        raise Problem(400, f"Content-Length: got {shown(length)}, expected a whole number")
    too_large = Problem(413, f"the body has more than {most} bytes, which is this service's limit: send a shorter part")
    if int(length) > most:
        raise too_large
    seen, stream = 0, request.stream()
    while True:
        try:
            with anyio.fail_after(SLOWEST):
                piece = await anext(stream, None)
        except TimeoutError:
            raise Problem(408, f"the body stopped for {SLOWEST:g} s before its end") from None
        except ClientDisconnect:
            raise Problem(400, "the connection ended before the body did") from None
        if piece is None:
            return
        seen += len(piece)
        if seen > most:
            raise too_large
        yield piece


def json_object(text: bytes) -> dict[str, Any]:
    """Raises Problem for what is no JSON object."""
    try:
        found = json.loads(text or b"{}", object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not readable JSON: {error}") from None
    if not isinstance(found, dict):
        raise Problem(400, f"the body is {shown(found)}, expected a JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a name that comes twice: a reader would not know which value counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)}: given twice")
    return found


async def read_job(request: Request, folder: Path, most: int) -> Upload:
    """A job from a form or JSON; its files go to `folder`. Raises Problem, and ValueError that names an option."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, folder, most)
    if kind != "application/json":
        found = shown(kind) if kind else "none"
        raise Problem(415, f"Content-Type: got {found}, expected multipart/form-data or application/json")
    text = await body(request, most)
    return await to_thread.run_sync(from_json, text, folder)


def from_json(text: bytes, folder: Path) -> Upload:
    """A job from JSON with audio in base64; its files go to `folder`. Raises Problem and ValueError."""
    given = json_object(text)
    files = {}
    sounds = {"input": given.pop("input", None), "style": given.pop("style", None)}
    melodies = given.pop("melody", None) or []
    melodies = melodies if isinstance(melodies, list) else [melodies]
    sounds |= {f"melody-{number}": sound for number, sound in enumerate(melodies)}
    require_few(len(melodies))
    for name, sound in sounds.items():
        if sound is not None:
            files[name] = folder / name
            files[name].write_bytes(from_base64(name, sound))
    return upload(given, files, form=False)


def from_base64(name: str, value: Any) -> bytes:
    """Audio from a text, which may begin with `data:...,`. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: got {shown(value)}, expected audio in base64")
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name}: not readable as base64") from None


async def _from_form(request: Request, folder: Path, most: int) -> Upload:
    """A job from a form. The body is counted while it is parsed, and its files are written to `folder` in pieces."""
    pieces, tail = bounded(request, most), b""

    async def receive() -> dict[str, Any]:
        nonlocal tail
        piece = await anext(pieces, None)
        tail = (tail + (piece or b""))[-LONGEST_TAIL:]
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    counted = Request(request.scope, receive)  # pyright: ignore[reportArgumentType]
    given, files, melodies = {}, {}, 0
    try:
        async with counted.form(max_files=MOST_FILES + 2, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    if name in given:
                        raise ValueError(f"{shown(name)}: given twice")
                    given[name] = value
                elif value.size or value.filename:
                    key = f"melody-{melodies}" if name == "melody" else name
                    melodies += name == "melody"
                    require_few(melodies)
                    if key in files or (key not in ("input", "style") and name != "melody"):
                        raise ValueError(f"{shown(name)}: a file where none is expected, or twice; files are "
                                         "input, melody and style")  # fmt: skip
                    files[key] = folder / key
                    await to_thread.run_sync(_save, value, files[key])
        if closing_boundary(request) not in tail:  # the parser takes what it has for the whole
            raise Problem(400, "the form ends before its closing boundary: send the whole body")
    except (MultiPartException, HTTPException) as error:  # the latter is what Starlette makes of the former
        found = error.message if isinstance(error, MultiPartException) else error.detail
        raise Problem(400, f"the form is not readable: {found}") from None
    for name in ("input", "style", "melody"):
        if name in given and given.pop(name):
            raise ValueError(f"{name}: got a text, expected a file")
    return upload(given, files, form=True)


def closing_boundary(request: Request) -> bytes:
    """What ends a form (RFC 2046, 5.1.1)."""
    _, parameters = parse_options_header(request.headers["content-type"])
    return b"--%b--" % parameters.get(b"boundary", b"")


def _save(value: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        while piece := value.file.read(COPY):
            file.write(piece)


def require_few(melodies: int) -> None:
    if melodies > MOST_FILES:
        raise ValueError(f"melody: got {melodies} files or more, expected {MOST_FILES} at most")


def upload(given: dict[str, Any], files: dict[str, Path], form: bool) -> Upload:
    """Options, and which model. Raises ValueError."""
    place = {name: given.pop(name, None) or None for name in PLACE}
    for name, value in place.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name}: got {shown(value)}, expected a text")
    return Upload(place["model"], place["variant"], read_options(given, form, [*PLACE, *AUDIO]), files)
