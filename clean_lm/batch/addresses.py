"""Files here and elsewhere: paths of this machine, and addresses with a :// that fsspec opens."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from clean_lm.console import message


def is_address(path: str) -> bool:
    return "://" in path


def whole(path: str) -> str:
    """A path in full, as workers may be in other folders; an address as it is."""
    return path if is_address(path) else str(Path(path).absolute())


def joined(base: str, path: str) -> str:
    """A path or an address that is relative to a folder unless it is whole."""
    return path if is_address(path) or Path(path).is_absolute() or not base else f"{base}/{path}"


def opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Raises ValueError where none is known or installed."""
    with said(address):
        return fsspec.url_to_fs(address)


@contextlib.contextmanager
def said(address: str) -> Iterator[None]:
    """Errors of file systems, of which each has its own, as OSError, or ValueError, with the address in them."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise ValueError(_words(address, error)) from None
    except Exception as error:
        raise OSError(_words(address, error)) from None


def _words(address: str, error: Exception) -> str:
    text = message(error) if not isinstance(error, FileNotFoundError) else "not found"
    return text if text.startswith(address) else f"{address}: {text}"
