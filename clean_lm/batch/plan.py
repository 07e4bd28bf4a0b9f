"""What a job is before it runs: each row with its seed, its files and the hash of all that its audio depends on."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from clean_lm.audio import AudioError
from clean_lm.batch.rows import Row
from clean_lm.manifest import Manifest
from clean_lm.options import MOST_TAKES

KEPT = " !#$'()+,-.;=@[]_{}~"  # in names of files, beside letters and digits
RESERVED = ("parts", "results.parquet", "job.json")
LONGEST_NAME = 200  # bytes of a name, so that .partial and the suffix fit


@dataclass(frozen=True)
class Task:
    """One row, ready to be drawn on any machine: plain values only."""

    id: str
    place: int  # in the job
    bundle: str
    variant: str | None
    device: str | None
    files: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Any]  # with the job's, and a seed
    outputs: tuple[str, ...]  # names of the takes in the job's folder
    strategy: str | None
    model: str = ""  # the hash of the bundle's files that it uses
    parameters: str = ""  # the hash of all that its audio depends on, but for the content of its audio files
    error: str | None = None

    def packed(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def unpacked(cls, text: str) -> "Task":
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Settings:
    """What the command line says for all rows."""

    bundle: str | None = None
    variant: str | None = None
    device: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0  # of rows that have none: each gets one from this and its id
    suffix: str = ".wav"


def plan(rows: Sequence[Row], settings: Settings) -> list[Task]:
    """The tasks of a job in the order of its rows. Raises AudioError for rows that have one id or would write one file,
    and BundleError if no row's bundle can be read."""
    require_different([row.id for row in rows], "id")
    bundles = Bundles()
    tasks = [task_of(row, place, settings, bundles) for place, row in enumerate(rows)]
    require_different([name.casefold() for task in tasks for name in task.outputs], "output")
    if tasks and bundles.error is not None and not bundles.read:
        raise bundles.error
    return tasks


def task_of(row: Row, place: int, settings: Settings, bundles: "Bundles") -> Task:
    """A row with the job's options."""
    options = {**settings.options, **row.options}
    options.setdefault("seed", seed_of(settings.seed, row.id))
    strategy = options.pop("strategy", None)
    bundle, error, model, names = row.bundle or settings.bundle or "", row.error, "", ()
    variant = row.variant if row.variant or row.bundle else settings.variant
    try:
        names = output_names(row.id, options.get("takes", 1), settings.suffix)
        if error is None:
            model = bundles.hash(bundle, variant)
    except (ValueError, OSError) as problem:
        error = str(problem)
    task = Task(
        row.id, place, bundle, variant, settings.device, row.files, options, names, strategy, model, error=error
    )
    return replace(task, parameters=hashed({**vars(task), "place": None, "error": None, "bundle": None}))


def seed_of(seed: int, identity: str) -> int:
    """The seed of a row that has none: 32 bits that depend on the job's and on its id, and on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{identity}".encode()).digest()[:4], "big")


def hashed(value: Any) -> str:
    """SHA-256 of a value's JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Bundles:
    """The manifests of a job's bundles, each read once."""

    def __init__(self) -> None:
        self.read: dict[tuple[str, str | None], str] = {}
        self.error: Exception | None = None
        self._failed: dict[tuple[str, str | None], Exception] = {}

    def hash(self, bundle: str, variant: str | None) -> str:
        """Of the files that the variant uses, by their names and SHA-256. Raises BundleError, ValueError."""
        key = (bundle, variant)
        if key in self._failed:
            raise self._failed[key]
        if key not in self.read:
            try:
                self.read[key] = self._hash(bundle, variant)
            except (ValueError, OSError) as error:
                self.error = self._failed[key] = error
                raise
        return self.read[key]

    def _hash(self, bundle: str, variant: str | None) -> str:
        if not bundle:
            raise ValueError("bundle: not given, expected --bundle, or a column of this name")
        manifest = Manifest.read(bundle, variant=variant)
        return hashed({file: manifest.files[file].sha256 for file in manifest.used_files()})


def output_names(identity: str, takes: Any, suffix: str) -> tuple[str, ...]:
    """The files of a row, as relative paths: its id, whose characters that not every file system has are written %2F.

    Raises ValueError for ids that make no name.
    """
    parts = [quote(part, safe=KEPT) for part in identity.split("/")]
    parts = [part.replace(".", "%2E", 1) if part.startswith(".") else part for part in parts]
    if parts[0].casefold() in RESERVED:
        raise ValueError(f"id: got {identity!r}, expected another name than the job's own {', '.join(RESERVED)}")
    if not all(parts) or any(len(part) > LONGEST_NAME for part in parts):
        raise ValueError(f"id: got {identity[:80]!r}, expected a name of 1 to {LONGEST_NAME} bytes, or some between /")
    count = takes if isinstance(takes, int) and 1 <= takes <= MOST_TAKES else 1  # the worker says what it is
    stems = [parts[-1]] if count == 1 else [f"{parts[-1]}-{number}" for number in range(1, count + 1)]
    return tuple(str(PurePosixPath(*parts[:-1], stem + suffix)) for stem in stems)


def require_different(names: Iterable[str], what: str) -> None:
    """Raise AudioError if one is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise AudioError(f"{what}: {name!r} comes twice; each row needs an {what} of its own")
        seen.add(name)


def groups(tasks: Sequence[Task], rows: int) -> Iterator[list[Task]]:
    """Splits the tasks into groups of at most `rows` takes, each group of one model. Similar tasks are neighbours, so
    that a worker draws most of a group in one batch and reads each track once.

    How tasks are grouped does not change their audio.
    """
    ordered = sorted(tasks, key=likeness)
    group: list[Task] = []
    for task in ordered:
        if group and (size(group) + size([task]) > rows or model_of(task) != model_of(group[0])):
            yield group
            group = []
        group.append(task)
    if group:
        yield group


def size(group: Sequence[Task]) -> int:
    """How many takes it has."""
    return sum(max(1, len(task.outputs)) for task in group)


def model_of(task: Task) -> tuple[str, str]:
    """What a worker loads for it."""
    return task.model, f"{task.bundle}\n{task.variant}"


def likeness(task: Task) -> tuple[str, str, str, str, str, int]:
    """Sorts alike tasks together: their model, how they are drawn, their track, their text."""
    drawn = {name: value for name, value in task.options.items() if name not in ("seed", "text", "negative_text")}
    text = json.dumps([task.options.get("text"), task.options.get("negative_text")])
    return (
        *model_of(task),
        json.dumps(drawn, sort_keys=True),
        json.dumps(task.files, sort_keys=True),
        text,
        task.place,
    )
