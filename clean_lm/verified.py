"""SHA-256 of files, each read through once: what was found is remembered while the file stays as it was.

Remembered is that a file had the hash that its manifest says, with everything the file system says of its content:
device, inode, size, and the times of the last change of its content (mtime) and of the file at all (ctime). A program
can set mtime back (touch -d, cp -p), and no program sets ctime but the system itself. One JSON file in the user's cache
folder has them all. It is never needed: where it cannot be read or written, files are hashed.
"""

import contextlib
import hashlib
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from clean_lm import atomic

# Two changes within one tick of a file system's clock leave the same times: 2 s on FAT, some ms elsewhere. What was
# changed so recently may be changed again without a trace, and is not remembered (git calls this racy).
SETTLED = 2 * 10**9  # ns
MOST = 1000  # files that are remembered; beyond, those hashed longest ago are forgotten
LARGEST = 2**23  # bytes of a file of ours: MOST of the longest paths


def sha256(path: Path, expected: str, again: bool = False) -> str:
    """The SHA-256 of a file in hexadecimal: `expected` where the file had that once and has not changed since.

    again: read the file through even so. Raises OSError if it cannot be read.
    """
    name = os.path.realpath(path)
    with path.open("rb") as file:
        before = _state(file)
        if not again and _remembered().get(name) == [*before, expected]:
            return expected
        begun = time.time_ns()
        found = hashlib.file_digest(file, "sha256").hexdigest()
        settled = _state(file) == before and max(before[-2:]) < begun - SETTLED
    if found == expected and settled:
        _remember(name, [*before, found])
    return found


def _state(file: BinaryIO) -> list[int]:
    """What changes with an open file's content. The last two are times in ns; on Windows, ctime is its creation's."""
    status = os.fstat(file.fileno())
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _remembered() -> dict[str, Any]:
    """[device, inode, size, mtime, ctime, SHA-256] by path, the one found last at the end; {} if it is unreadable."""
    try:
        path = _file()
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:  # a pipe would wait for ever
            return {}
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder, or lists nested too deep
        return {}
    return entries if isinstance(entries, dict) else {}


def _remember(name: str, entry: list[int | str]) -> None:
    """Add one file. Of two processes that write at once, one is forgotten, and its file is hashed again."""
    others = {other: value for other, value in _remembered().items() if other != name}
    entries = dict([*others.items(), (name, entry)][-MOST:])
    with contextlib.suppress(OSError, RuntimeError):
        path = _file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic.file(path) as file:
            file.write(json.dumps(entries).encode("ascii"))


def _file() -> Path:
    """Where it is. Raises RuntimeError if there is no home folder."""
    return cache_folder() / "verified.json"


def cache_folder() -> Path:
    """CLEAN_LM_CACHE, or clean_lm in the user's cache folder. Raises RuntimeError if there is no home folder."""
    if chosen := os.environ.get("CLEAN_LM_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "clean_lm"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "clean_lm"
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "clean_lm"  # a relative one is to be ignored
