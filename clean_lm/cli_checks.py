"""What the command line refuses, in one line and before anything is loaded."""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from clean_lm import audio_files
from clean_lm.audio import AudioError
from clean_lm.cli_output import written
from clean_lm.options import threads
from clean_lm.request import Request


def validate_outputs(args: argparse.Namespace) -> None:
    """Raise AudioError if the output has no format, or if a file would be replaced: an input, or unasked an output."""
    audio_files.require_format(args.output)
    inputs = [getattr(args, name, None) for name in ("input", "codes", "style")] + list(
        getattr(args, "melody", None) or ()
    )
    for file in written(args):
        require_free(file, [path for path in inputs if path], args.overwrite)


def require_free(output: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Raise AudioError if `output` is one of the inputs, by whatever name, or is there already and may not be replaced.

    Links are followed, and where the file system takes Track.wav for track.wav, so does this.
    """
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise AudioError(f"{output}: is the input {path} itself, which is never replaced; choose another name")
    if not overwrite and not output.is_dir() and (output.exists() or output.is_symlink()):
        raise AudioError(f"{output}: exists already; choose another name, or give --overwrite")
    if overwrite and output.exists() and not output.is_dir():
        audio_files.require_replaceable(output)


def validate_threads(args: argparse.Namespace) -> None:
    """Raise ValueError for a number of threads that is none."""
    threads("--threads", args.threads)


@contextmanager
def in_flags() -> Iterator[None]:
    """Errors of a request under the names that the command line has for its fields: top_k is --top-k."""
    names = {field.name for field in fields(Request)} - {"region"}  # which has four flags

    def flag(match: re.Match[str]) -> str:
        return f"--{match[1].replace('_', '-')}:" if match[1] in names else match[0]

    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub(r"^(\w+):", flag, str(error))) from None
