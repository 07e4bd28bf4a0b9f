"""The options of a job beside those of its request, its defaults, and the request that it makes."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from clean_lm.request import Request
from clean_lm.request_options import Option

MOST_FILES = 8
PLACE = {
    "model": Option("string", "a name that /v1/models lists; may be left out if there is one model"),
    "variant": Option("string", "one of the model's; default: the bundle's"),
}
DEFAULTS = {"join": "splice"}  # of the service, where they are not the command line's


def default(name: str) -> Any:
    """An option's default; None where there is none."""
    if name in DEFAULTS:
        return DEFAULTS[name]
    return next((field.default for field in fields(Request) if field.name == name), None)


def request_of(options: Mapping[str, Any], folder: Path) -> Request:
    """The request that options and the files in a job's folder make."""
    known = {field.name for field in fields(Request)}
    request = Request(**{**DEFAULTS, **{name: value for name, value in options.items() if name in known}})
    track, style = folder / "input", folder / "style"
    return replace(
        request,
        input=track if track.exists() else None,
        style=style if style.exists() else None,
        melody=tuple(path for n in range(MOST_FILES) if (path := folder / f"melody-{n}").exists()),
        **({} if track.exists() else {"join": "rendered"}),
    )
