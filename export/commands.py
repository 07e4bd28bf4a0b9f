"""What the commands in export/ share: errors, and what they print."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path


class ExportError(RuntimeError):
    """Why an export was not made, and what to do."""


@contextlib.contextmanager
def errors_as_one_line(*errors: type[Exception], interrupted: str = "nothing was written") -> Iterator[None]:
    """End the process with one line in place of a traceback where these errors or Ctrl-C end the block."""
    try:
        yield
    except errors as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {interrupted}")


def progress(step: str) -> None:
    """Tell on stderr what takes time now."""
    print(step, file=sys.stderr, flush=True)


def tell(notes: Iterable[str]) -> None:
    """What was done to read a checkpoint, on stderr."""
    for note in notes:
        progress(f"note: {note}")


def print_files(out: Path, parameters: int, seconds: float) -> None:
    """Print what an export wrote, and how long it took."""
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path}")
    print(f"{parameters / 1e6:10.2f} M parameters")
    print(f"{seconds:10.1f} s")
