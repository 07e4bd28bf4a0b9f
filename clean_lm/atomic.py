"""Files and folders that appear whole or not at all: written beside their place, synced, then renamed into it.

What a killed process leaves is removed by the next one that writes to the same place: its name is recognised, and a
lock says whether its owner lives. The operating system takes the lock back however a process ends.
"""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where nothing that is left is removed
    fcntl = None

NONE = -1  # no descriptor
LONGEST_NAME = 40  # characters of a name that are repeated, so that the whole fits in a file system's 255 bytes


@contextlib.contextmanager
def file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when the block ends and vanishes if it raises.

    A link stays one: the file that it names is replaced. The new file has the mode of the one that it replaces.
    """
    target = Path(os.path.realpath(path))
    mode = _mode(path)
    _remove_leftovers(target)
    partial, descriptor = _claim(target, _create_file)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            yield opened
            opened.flush()
            if mode is not None:
                partial.chmod(mode)
            os.fsync(descriptor)
            if os.name != "nt":  # while it is locked: between the two it would look abandoned
                partial.replace(target)
        if os.name == "nt":  # which renames no open files
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `path` when the block ends and vanishes if it raises."""
    with scratch(path) as partial:
        yield partial
        for written in [*partial.iterdir(), partial]:
            _sync(written)
        partial.rename(path)
        _sync(path.parent)


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A folder beside `path`, which never appears, to write in until the block ends."""
    _remove_leftovers(path)
    partial, descriptor = _claim(path, _create_folder)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if descriptor != NONE:
            os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """A context in which no other process has the lock of a folder; False where another one has it. Windows and file
    systems without locks give none: True."""
    if os.name == "nt":
        yield True
        return
    descriptor, ours = os.open(folder, os.O_RDONLY), True
    try:
        try:
            _lock(descriptor)
        except BlockingIOError:
            ours = False
        except OSError:  # a file system without locks
            pass
        yield ours
    finally:
        os.close(descriptor)


def _claim(path: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Something new beside `path`, and its descriptor, which holds the lock until it is closed."""
    while True:
        partial = _beside(path)
        descriptor = create(partial)
        if descriptor == NONE or _is_claimed(partial, descriptor):
            return partial, descriptor
        os.close(descriptor)  # another process took it for abandoned before it was locked


def _create_file(partial: Path) -> int:
    return os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def _create_folder(partial: Path) -> int:
    partial.mkdir()
    return NONE if os.name == "nt" else os.open(partial, os.O_RDONLY)  # Windows cannot open folders


def _is_claimed(partial: Path, descriptor: int) -> bool:
    """Lock what was created; whether it is there still."""
    try:
        _lock(descriptor)
        return os.path.samestat(os.fstat(descriptor), partial.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # a file system without locks, where nothing is taken for abandoned either
        return True


def _beside(path: Path) -> Path:
    """A new name in the same folder, hidden, so that the rename stays on one disk."""
    return path.with_name(f".{path.name[:LONGEST_NAME]}.{secrets.token_hex(4)}.partial")


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed have left beside `path`, under names that `_beside` gives."""
    if fcntl is None:
        return
    ours = re.compile(rf"\.{re.escape(path.name[:LONGEST_NAME])}\.[0-9a-f]{{8}}\.partial")
    with contextlib.suppress(OSError):  # a folder that cannot be read is said when it is written to
        for found in [entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name)]:
            _remove_abandoned(found)


def _remove_abandoned(found: Path) -> None:
    """Remove one of our files or folders unless a living process holds its lock."""
    kind = found.lstat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        return
    with contextlib.suppress(OSError):  # locked, gone, or another user's
        descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            _lock(descriptor)
            if stat.S_ISDIR(kind):
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Hold the lock of an open file or folder until it is closed. Raises OSError where another process holds it."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _mode(path: Path) -> int | None:
    """The permissions of the file that is replaced; None for a new one, whose are what the umask leaves."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
