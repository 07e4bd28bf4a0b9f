"""The folder of a job: its audio, and results.parquet, one line a row, which says of each row all or nothing.

A row's line is written when its audio is. While the job runs, lines lie in parts/; at its end they become one file.
"""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clean_lm import atomic, audio_files
from clean_lm.audio import AudioError
from clean_lm.batch.addresses import opened, said
from clean_lm.batch.rows import JOB
from clean_lm.console import message
from clean_lm.options import shown

RESULTS, PARTS, FORMAT = "results.parquet", "parts", "clean_lm batch 1"
FLUSH_SECONDS, FLUSH_ROWS = 5.0, 1000  # lines that a driver that is killed loses: their rows are drawn again
TAKE = pa.struct(
    [
        ("file", pa.string()),
        ("seed", pa.uint64()),
        ("duration", pa.float64()),
        ("temperature", pa.float64()),
        ("peak_db", pa.float64()),
        ("rms_db", pa.float64()),
        ("first_beat_db", pa.float64()),
        ("silent", pa.bool_()),
        ("log_probability", pa.float64()),
        ("onset_agreement", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("place", pa.int64()),
        ("state", pa.string()),  # done or failed
        ("error", pa.string()),
        ("seed", pa.uint64()),
        ("seam", pa.float64()),  # seconds
        ("level_db", pa.float64()),  # of the new part, to meet the track's
        ("bars", pa.int64()),
        ("bpm", pa.float64()),
        ("sample_rate", pa.int64()),
        ("channels", pa.int64()),
        ("clipped", pa.int64()),  # samples
        ("begun", pa.timestamp("ms", "UTC")),  # of its batch
        ("ended", pa.timestamp("ms", "UTC")),
        ("seconds", pa.float64()),  # of work, this row's share
        ("real_time_factor", pa.float64()),
        ("together", pa.int64()),  # rows that were drawn in its batch
        ("model", pa.string()),
        ("variant", pa.string()),
        ("parameters", pa.string()),
        ("host", pa.string()),
        ("warnings", pa.list_(pa.string())),
        ("takes", pa.list_(TAKE)),
    ]
)
Result = dict[str, Any]


class Folder:
    """A folder on a disk of this machine, or at an address."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self.fs, self.root = opened(address)
        self.root = self.root.rstrip("/")
        self.local = Path(self.root) if "file" in _protocols(self.fs) else None

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def make(self) -> None:
        """Raises OSError."""
        with said(self.address):
            self.fs.makedirs(self.root, exist_ok=True)

    def write(self, name: str, content: bytes | memoryview) -> None:
        """A file that appears whole or not at all, as it does at addresses of objects."""
        if self.local is not None:
            (self.local / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic.file(self.local / name) as file:
                file.write(content)
            return
        with said(f"{self.address}/{name}"):
            self.fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(self.path(name), bytes(content))

    def write_audio(
        self, name: str, wav: np.ndarray, rate: int, strategy: str | None, subtype: str | None
    ) -> tuple[int, np.ndarray]:
        """audio_files.write: how many samples were clipped, and what the file holds [channels, samples]."""
        if self.local is not None:
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            clipped = audio_files.write(path, wav, rate, strategy=strategy, subtype=subtype)
            return clipped, audio_files.read(path)[0]
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / Path(name).name
            clipped = audio_files.write(path, wav, rate, strategy=strategy, subtype=subtype)
            self.write(name, path.read_bytes())
            return clipped, audio_files.read(path)[0]

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Raises AudioError if it is no table of results."""
        try:
            with self.fs.open(self.path(name), "rb") as file:
                return pq.read_table(file, columns=list(columns) if columns else None)
        except (pa.ArrowInvalid, KeyError) as error:
            raise AudioError(
                f"{self.address}/{name}: not readable as results of a job: {message(error)}; move it away, "
                "and --resume draws its rows again"
            ) from None

    def parts(self) -> list[str]:
        """The names of the parts, the oldest first."""
        if not self.exists(PARTS):
            return []
        found = [path.rpartition("/")[2] for path in self.fs.ls(self.path(PARTS), detail=False)]
        return [f"{PARTS}/{name}" for name in sorted(found) if name.endswith(".parquet") and not name.startswith(".")]


class Results:
    """The lines of a job. One driver at a time writes them."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.waiting: list[Result] = []
        self.part, self.flushed = time.time_ns(), time.monotonic()

    def begin(self, resume: bool, outputs: Iterable[str]) -> set[str]:
        """Take the folder for files of these names; the names of all that it holds.

        Raises AudioError if it holds results that nobody asked to resume, or files of those names that no job wrote.
        """
        folder = self.folder
        folder.make()
        before = self._ours(resume)
        ours = before or set()
        found = {path[len(folder.root) + 1 :] for path in folder.fs.find(folder.root)}
        there = {name.casefold() for name in found}
        names = list(outputs)
        for name in [*names, *([RESULTS] if before is None else [])]:
            if name.casefold() in there and name not in ours:
                raise AudioError(f"{folder.address}/{name}: is there already, and not by a job; choose another folder")
        if before is None or not ours >= set(names):
            folder.write(JOB, json.dumps({"format": FORMAT, "outputs": sorted(ours | set(names))}).encode())
        return found

    def _ours(self, resume: bool) -> set[str] | None:
        """The names of the files that are the jobs' of this folder, None if there was no job. Raises AudioError if they
        are not to be touched."""
        folder = self.folder
        if not folder.exists(JOB):
            return None
        if not resume:
            raise AudioError(
                f"{folder.address}: holds the results of a job; --resume goes on with it, or choose another folder"
            )
        try:
            found = json.loads(folder.fs.cat_file(folder.path(JOB)))
            if found["format"] != FORMAT:
                raise ValueError(f"format {shown(found['format'])}, expected {FORMAT}")
            return {str(name) for name in found["outputs"]}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise AudioError(
                f"{folder.address}/{JOB}: not readable: {message(error)}; choose another output folder"
            ) from None

    def done(self) -> dict[str, str]:
        """The hash of the parameters of every row that is done, by its id. Raises AudioError."""
        lines = self._last(("id", "state", "parameters"))
        found = lines.filter(pc.field("state") == "done")
        return dict(zip(found["id"].to_pylist(), found["parameters"].to_pylist(), strict=True))

    def add(self, result: Result) -> None:
        """Keep a row's result, see SCHEMA."""
        times = {name: datetime.fromtimestamp(result[name], UTC) for name in ("begun", "ended") if name in result}
        self.waiting.append({**result, **times})
        self.flush_late()

    def flush_late(self) -> None:
        """Write what waits if it is much, or has waited for long. Raises OSError."""
        if len(self.waiting) >= FLUSH_ROWS or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OSError."""
        if self.waiting:
            self.part += 1
            self.folder.write(f"{PARTS}/{self.part}.parquet", parquet(pa.Table.from_pylist(self.waiting, SCHEMA)))
            self.waiting = []
        self.flushed = time.monotonic()

    def finish(self, places: Mapping[str, int]) -> None:
        """One file of all lines, in the order of the job's rows; of an id's lines the last one."""
        self.flush()
        parts = self.folder.parts()
        if not parts:
            return
        lines = self._last(SCHEMA.names)
        order = pa.table({"id": lines["id"], "old": lines["place"], "line": np.arange(len(lines))})
        now = pa.table({"id": pa.array(places, pa.string()), "place": pa.array(places.values(), pa.int64())})
        order = order.join(now, "id")
        order = order.sort_by([("place", "ascending"), ("old", "ascending"), ("line", "ascending")])  # other jobs' last
        place, old = order["place"].fill_null(-1).to_numpy(), order["old"].to_numpy()
        column = SCHEMA.get_field_index("place")
        lines = lines.take(order["line"]).set_column(column, SCHEMA.field(column), [np.where(place < 0, old, place)])
        self.folder.write(RESULTS, parquet(lines))
        for name in parts:
            self.folder.fs.rm_file(self.folder.path(name))
        if self.folder.local is not None:
            with contextlib.suppress(OSError):  # somebody put something into it
                (self.folder.local / PARTS).rmdir()

    def _last(self, columns: Sequence[str]) -> pa.Table:
        """The last line of each id. In Arrow alone: a job's lines as Python's objects take ten times the memory."""
        whole = [RESULTS] if self.folder.exists(RESULTS) else []
        tables = [self.folder.read_table(name, columns) for name in [*whole, *self.folder.parts()]]  # the oldest first
        if not tables:
            return SCHEMA.empty_table().select(columns)
        lines = pa.concat_tables(tables).combine_chunks()
        numbered = pa.table({"id": lines["id"], "line": np.arange(len(lines))})
        last = numbered.group_by("id", use_threads=False).aggregate([("line", "max")])["line_max"]
        return lines if len(last) == len(lines) else lines.take(last)


def parquet(table: pa.Table) -> memoryview:
    """The bytes of a file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getbuffer()


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
