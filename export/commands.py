"""What the commands in export/ share: errors, and what they print."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from clean_lm import console
from clean_lm.console import plain
from clean_lm.memory import size


class ExportError(RuntimeError):
    """Why an export was not made, and what to do."""


@contextlib.contextmanager
def errors_as_one_line(*errors: type[Exception], interrupted: str = "nothing was written") -> Iterator[None]:
    """End the process with one line in place of a traceback where these errors, one of the system or a signal ends the
    block: status 1, or 128 + the signal's number."""
    with console.command((*errors, ExportError), interrupted):
        yield


def require_new(out: Path, bytes_required: int = 0) -> None:
    """Raise ExportError where no folder can be written to `out`: before a checkpoint is read, and as soon as its size
    is known."""
    if out.exists() or out.is_symlink():
        raise ExportError(f"{out} already exists; remove it or choose another --out")
    above = next(folder for folder in out.absolute().parents if folder.exists() or folder.is_symlink())
    if not above.is_dir():
        raise ExportError(f"{out}: {above} is not a folder; choose another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ExportError(f"{out}: nothing can be written to {above}; change its rights or choose another --out")
    require_free(above, bytes_required, "make room or choose another --out")


def require_free(folder: Path, bytes_required: int, remedy: str) -> None:
    """Raise ExportError where the disk of a folder has not so many bytes free."""
    if (free := shutil.disk_usage(folder).free) < bytes_required:
        raise ExportError(f"{folder}: {size(free)} free, {size(bytes_required)} needed; {remedy}")


def progress(step: str) -> None:
    """Tell on stderr what takes time now."""
    console.say(plain(step))


def tell(notes: Iterable[str]) -> None:
    """What was done to read a checkpoint, on stderr."""
    for note in notes:
        progress(f"note: {note}")


def print_files(out: Path, parameters: int, seconds: float) -> None:
    """Print what an export wrote, and how long it took."""
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {plain(path)}")
    print(f"{parameters / 1e6:10.2f} M parameters")
    print(f"{seconds:10.1f} s")
