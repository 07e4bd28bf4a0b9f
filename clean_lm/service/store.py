"""Jobs on a disk: one SQLite file, and a folder for each job's audio. What is committed survives a killed process."""

import json
import logging
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

log = logging.getLogger("clean_lm")

WAITING = ("queued", "loading", "running")
FINAL = ("done", "failed", "cancelled")
UPLOAD = "upload-"  # how folders begin whose files are not accepted yet
MOST_ATTEMPTS = 2  # of a job during which the service ended


@dataclass
class Record:
    """A job as it is kept."""

    id: str
    kind: str  # which of the two protocols made it: "v1" or "plugin"
    model: str
    variant: str | None
    options: dict[str, Any]  # of the request, without its files
    state: str = "queued"
    created: float = field(default_factory=time.time)  # seconds since 1970
    started: float | None = None
    finished: float | None = None
    attempts: int = 0
    error: str | None = None
    result: dict[str, Any] | None = None
    retry_of: str | None = None


NAMES = [one.name for one in fields(Record)]
JSON = ("options", "result")
SCHEMA = f"CREATE TABLE IF NOT EXISTS jobs ({', '.join(NAMES)}, PRIMARY KEY (id))"


class Store:
    """Raises sqlite3.Error and OSError where the disk does not take or give what is asked."""

    def __init__(self, folder: Path):
        """Raises OSError. A file of jobs that is damaged is kept in another folder, and a new one begun."""
        self.folder = folder
        self.jobs = folder / "jobs"
        self._lock = threading.Lock()
        self._file = folder / "jobs.sqlite"
        try:
            self._database = self._open()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise OSError(f"--data: {self._file} cannot be opened ({error}): free its disk, close what uses it, or "
                              "give another folder") from None  # fmt: skip
            aside = folder / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}"
            log.error("%s: damaged (%s); kept with its jobs in %s, a new one begun", self._file, error, aside)
            aside.mkdir()
            for path in (self.jobs, *folder.glob("jobs.sqlite*")):
                if path.exists():
                    path.rename(aside / path.name)
            self._database = self._open()
        self.jobs.mkdir(exist_ok=True)

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._file, timeout=10, check_same_thread=False, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(SCHEMA)
            if (found := database.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
            database.execute(f"SELECT {', '.join(NAMES)} FROM jobs LIMIT 1")
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def new_folder(self) -> tuple[str, Path]:
        """An id that nobody can guess, and a folder for its files."""
        identity = secrets.token_urlsafe(16)
        (folder := self.jobs / identity).mkdir()
        return identity, folder

    def insert(self, record: Record) -> None:
        marks = ", ".join("?" * len(NAMES))
        self._run(f"INSERT INTO jobs ({', '.join(NAMES)}) VALUES ({marks})", _row(record, NAMES))

    def update(self, record: Record, *names: str) -> None:
        """Write these fields of a record."""
        sets = ", ".join(f"{name} = ?" for name in names)
        self._run(f"UPDATE jobs SET {sets} WHERE id = ?", [*_row(record, names), record.id])

    def get(self, identity: str) -> Record | None:
        rows = self._run(f"SELECT {', '.join(NAMES)} FROM jobs WHERE id = ?", [identity])
        return _record(rows[0]) if rows else None

    def unfinished(self) -> Iterator[Record]:
        """The jobs that an earlier service left waiting or running, the oldest first."""
        marks = ", ".join("?" * len(WAITING))
        query = f"SELECT {', '.join(NAMES)} FROM jobs WHERE state IN ({marks}) ORDER BY created"
        yield from map(_record, self._run(query, list(WAITING)))

    def remove(self, identity: str) -> None:
        """A job with its files."""
        self._run("DELETE FROM jobs WHERE id = ?", [identity])
        shutil.rmtree(self.jobs / identity, ignore_errors=True)

    def expire(self, keep_seconds: float, keep_bytes: int) -> list[str]:
        """Remove finished jobs that are too old, then the oldest until all have at most `keep_bytes`; their ids."""
        marks = ", ".join("?" * len(FINAL))
        query = f"SELECT id, finished FROM jobs WHERE state IN ({marks}) ORDER BY finished"
        rows = self._run(query, list(FINAL))
        sizes = {identity: folder_bytes(self.jobs / identity) for identity, _ in rows}
        total, now, removed = sum(sizes.values()), time.time(), []
        for identity, finished in rows:
            if now - (finished or 0) > keep_seconds or total > keep_bytes:
                self.remove(identity)
                total -= sizes[identity]
                removed.append(identity)
        return removed

    def remove_orphans(self) -> None:
        """Folders without a job, and half uploads, which a killed process leaves. Before anything is accepted."""
        known = {row[0] for row in self._run("SELECT id FROM jobs", [])}
        orphans = [folder for folder in self.jobs.iterdir() if folder.name not in known]
        for folder in [*orphans, *self.folder.glob(f"{UPLOAD}*")]:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, query: str, values: list[Any]) -> list[Any]:
        with self._lock:
            return self._database.execute(query, values).fetchall()


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether it is the file that is wrong: its content or its tables, not a full disk or another process's lock."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # what quick_check finds has none
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder."""
    total = 0
    with suppress(OSError):
        total = sum(path.stat().st_size for path in folder.iterdir())
    return total


def _row(record: Record, names: Any) -> list[Any]:
    values = {name: getattr(record, name) for name in names}
    return [json.dumps(value) if name in JSON and value is not None else value for name, value in values.items()]


def _record(row: Any) -> Record:
    values: dict[str, Any] = dict(zip(NAMES, row, strict=True))
    for name in JSON:
        values[name] = None if values[name] is None else json.loads(values[name])
    return Record(**values)
