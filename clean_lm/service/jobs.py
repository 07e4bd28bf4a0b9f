"""The service's jobs: accepted, queued, run one after the other (or `parallel` at a time), kept, expired."""

import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clean_lm import audio_files
from clean_lm.audio_codec import Codec
from clean_lm.console import message
from clean_lm.generation import Generation
from clean_lm.joining import Outcome, finish
from clean_lm.manifest import Manifest
from clean_lm.musicgen import MusicGen
from clean_lm.request import validate
from clean_lm.request_options import AUDIO
from clean_lm.service import metrics
from clean_lm.service.models import Models
from clean_lm.service.options import request_of
from clean_lm.service.problems import Problem, problem_of
from clean_lm.service.settings import Settings
from clean_lm.service.store import FINAL, MOST_ATTEMPTS, Record, Store
from clean_lm.source import QUIET_MIX_DB, Source, quiet_mix, read_source, result_format
from clean_lm.takes import draw_takes

log = logging.getLogger("clean_lm")

GONE = "no such job; it may have expired"
HOUSEKEEPING = 60.0  # seconds between two looks for jobs that have expired
SMOOTHING = 0.3  # of the speed that is measured: how much the last job counts
SUBTYPE = "FLOAT"  # takes are kept as they are, and written in the format that is asked for


class Stopped(Exception):
    """A job is cancelled, or the service ends."""


@dataclass
class Job:
    """A job that is not finished, or was finished by this process."""

    record: Record
    cancelled: bool = False  # stops before its next step, for good
    done: int = 0  # columns
    total: int = 0
    began: float = 0.0  # monotonic seconds at which the first column was begun
    generation: Generation | None = None
    codec: Codec | None = None

    @property
    def progress(self) -> float:
        return 1.0 if self.record.state == "done" else self.done / self.total if self.total else 0.0


class Service:
    """What both protocols call. Its methods may be called from any thread."""

    def __init__(self, settings: Settings):
        """Raises OSError."""
        self.settings = settings
        self.models = Models(
            settings.models, settings.variant, settings.threads, settings.resident_bytes, settings.device
        )
        self.store = Store(settings.data)
        self.stopping = False
        self._changed = threading.Condition()
        self._queue: list[Job] = []
        self._live: dict[str, Job] = {}  # queued or running
        self._speed: dict[tuple[str, str | None, int], float] = {}  # seconds for a second of music
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Take up what an earlier service left, and begin to work."""
        for record in list(self.store.unfinished()):
            if record.attempts >= MOST_ATTEMPTS:
                self._fail(Job(record), f"the service ended {record.attempts} times while this job ran; retry it")
                continue
            record.state = "queued"
            self.store.update(record, "state")
            self._enter(Job(record))
            log.info("job=%s taken up again attempts=%d", record.id, record.attempts)
        self.store.remove_orphans()
        works = [self._work] * self.settings.parallel + [self._keep_house]
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Interrupt what runs, which the next start takes up again."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)
        self.store.close()

    def load_ahead(self, names: list[str]) -> None:
        """Load models, in a thread, before they are asked for."""

        def load() -> None:
            for name in names:
                try:
                    _, manifest = self.models.manifest(name, None)
                    with self.models.lease(name, manifest.variant):
                        log.info("model=%s loaded", name)
                except (Problem, ValueError, OSError) as error:
                    log.error("model=%s cannot be loaded: %s", name, message(error))

        threading.Thread(target=load, daemon=True).start()

    def submit(
        self,
        kind: str,
        model: str | None,
        variant: str | None,
        options: Mapping[str, Any],
        files: Mapping[str, Path],
        retry_of: str | None = None,
    ) -> Job:
        """Accept a job, its files (input, melody-0, ..., style) moved into its folder, or if it is a retry, linked.

        Raises Problem and ValueError before anything is kept.
        """
        self._require_place()
        name, manifest = self.models.manifest(model, variant)
        identity, folder = self.store.new_folder()
        try:
            for file, path in files.items():
                _link(path, folder / file)
            checked = self._check(options, folder, manifest)
            record = Record(identity, kind, name, manifest.variant, checked, retry_of=retry_of)
            job = Job(record)
            with self._changed:
                self._require_place()
                self.store.insert(record)
                self._enter(job)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        metrics.ACCEPTED.inc()
        log.info("job=%s accepted kind=%s model=%s variant=%s", identity, kind, name, manifest.variant)
        return job

    def _require_place(self) -> None:
        with self._changed:
            if (waiting := len(self._queue)) < self.settings.waiting:
                return
            seconds = self._queue_seconds(waiting)
        words = f"the queue is full: {waiting} jobs wait; try again later"
        raise Problem(429, words, {"Retry-After": str(max(1, round(seconds or 10)))})

    def _check(self, options: Mapping[str, Any], folder: Path, manifest: Manifest) -> dict[str, Any]:
        """The options with their defaults. Raises ValueError for options and audio that cannot be used."""
        settings = self.settings
        found = request_of(options, folder)
        try:
            for path in (found.input, found.style, *found.melody):
                if path is not None:
                    require_length(path, settings.audio_seconds)
            found = validate(found, manifest)
            for name in ("takes", "duration"):
                if getattr(found, name) > (most := getattr(settings, name)):
                    raise ValueError(f"{name}: got {getattr(found, name):g}, this service allows {most:g}")
            result_format(found, manifest, read_source(found, manifest))
        except ValueError as error:
            text = message(error).replace(f"{folder}{os.sep}", "").replace(f"{manifest.folder}", manifest.folder.name)
            raise ValueError(text) from None
        plain = {name: getattr(found, name) for name in found.__dataclass_fields__ if name not in AUDIO}
        return plain | {name: value for name, value in options.items() if name == "strategy"}

    def find(self, identity: str) -> Job:
        """Raises Problem for an id that is unknown or has expired."""
        with self._changed:
            if identity in self._live:
                return self._live[identity]
        record = self.store.get(identity)
        if record is None:
            raise Problem(404, GONE)
        return Job(record)

    def position(self, job: Job) -> int | None:
        """How many jobs are before one that waits."""
        with self._changed:
            return self._queue.index(job) if job in self._queue else None

    def counts(self) -> tuple[int, int]:
        """How many jobs wait, and how many run."""
        with self._changed:
            return len(self._queue), len(self._live) - len(self._queue)

    def seconds_left(self, job: Job) -> float | None:
        """An estimate from measured speed; None while nothing was measured."""
        if job.record.state in FINAL:
            return None
        with self._changed:
            if job in self._queue:
                before = self._queue_seconds(self._queue.index(job))
                own = self._job_seconds(job.record)
                return None if before is None or own is None else round(before + own, 1)
        return self._running_seconds(job)

    def _running_seconds(self, job: Job) -> float | None:
        if job.done >= 10 and job.total:
            return round((time.monotonic() - job.began) / job.done * (job.total - job.done), 1)
        return self._job_seconds(job.record)

    def _job_seconds(self, record: Record) -> float | None:
        speed = self._speed.get((record.model, record.variant, record.options["takes"]))
        return None if speed is None else round(speed * record.options["duration"], 1)

    def _queue_seconds(self, count: int) -> float | None:
        """Until the first `count` jobs of the queue and those that run are done."""
        running = [self._running_seconds(job) for job in self._live.values() if job not in self._queue]
        parts = running + [self._job_seconds(job.record) for job in self._queue[:count]]
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else sum(known) / self.settings.parallel

    def cancel(self, identity: str) -> Job:
        """Stop a job before its next step; one that is finished stays as it is. Raises Problem."""
        with self._changed:
            job = self.find(identity)
            job.cancelled = True
            if job in self._queue:
                self._queue.remove(job)
                self._finish(job, "cancelled")
        return job

    def retry(self, identity: str, kind: str, changes: Mapping[str, Any], **place: str | None) -> Job:
        """The job once more on the same audio, some options changed, None to their defaults; without a seed among them
        with a new one.

        Raises Problem and ValueError.
        """
        record = self.find(identity).record
        folder = self.store.jobs / identity
        if not folder.is_dir():
            raise Problem(404, GONE)
        files = {path.name: path for path in folder.iterdir() if is_input(path.name)}
        options = {**record.options, "seed": None, **changes}
        for length, bars in (("duration", "bars"), ("prompt_seconds", "prompt_bars")):
            if length in changes and bars not in changes:  # else the bars that it came to would go before it
                options[bars] = None
        options = {name: value for name, value in options.items() if value is not None}
        model, variant = place.get("model") or record.model, place.get("variant")
        if variant is None and model == record.model:
            variant = record.variant
        return self.submit(kind, model, variant, options, files, retry_of=identity)

    def take(self, job: Job, number: int) -> Path:
        """The file of a take, float samples. Raises Problem."""
        if job.record.state != "done":
            yet = "" if job.record.state in FINAL else " yet"
            raise Problem(409, f"the job is {job.record.state}: it has no takes{yet}")
        takes = len((job.record.result or {})["takes"])
        path = self.store.jobs / job.record.id / f"take-{number}.wav"
        if not 1 <= number <= takes or not path.is_file():
            raise Problem(404, f"take: got {number}, this job has {takes}")
        return path

    def _enter(self, job: Job) -> None:
        with self._changed:
            self._live[job.record.id] = job
            self._queue.append(job)
            self._changed.notify_all()  # the thread that keeps house waits here too

    def _work(self) -> None:
        """One of the threads that run jobs."""
        while (job := self._next()) is not None:
            try:
                self._run(job)
            except Stopped:
                self._finish(job, "cancelled") if job.cancelled else self._put_back(job)
            except Exception as error:
                self._fail(job, self._reason(job, error))

    def _next(self) -> Job | None:
        with self._changed:
            while not self._queue and not self.stopping:
                self._changed.wait()
            if self.stopping:
                return None
            job = self._queue.pop(0)
            loaded = self.models.is_loaded(job.record.model, job.record.variant)
            job.record.state = "running" if loaded else "loading"
            return job

    def _run(self, job: Job) -> None:
        record = job.record
        record.started, record.attempts = time.time(), record.attempts + 1
        self.store.update(record, "state", "started", "attempts")
        folder = self.store.jobs / record.id
        asked = request_of(record.options, folder)
        with self.models.lease(record.model, record.variant, lambda: self._require_running(job)) as model:
            record.state = "running"
            start = time.perf_counter()
            manifest = model.lm.manifest
            source = read_source(asked, manifest)
            self._require_running(job)
            job.began = time.monotonic()
            drawn = draw_takes(model, asked, source, lambda *drawn: self._drawn(job, model, *drawn))
            self._learn(job)
            outcome = finish(model, asked, source, drawn)
            seconds = time.perf_counter() - start
            self._keep(job, source, outcome, seconds, drawn.frames / model.frame_rate)
        self._finish(job, "done")

    def _drawn(self, job: Job, model: MusicGen, generation: Generation, done: int, total: int) -> None:
        """A column of a job is drawn. Raises Stopped."""
        job.done, job.total = done, total
        if is_live(job.record.options):
            job.codec, job.generation = model.codec, generation
        self._require_running(job)

    def _require_running(self, job: Job) -> None:
        if job.cancelled or self.stopping:
            raise Stopped

    def _learn(self, job: Job) -> None:
        """Remember how fast a model is."""
        record = job.record
        key = (record.model, record.variant, record.options["takes"])
        found = (time.monotonic() - job.began) / record.options["duration"]
        before = self._speed.get(key, found)
        self._speed[key] = before + SMOOTHING * (found - before)

    def _keep(self, job: Job, source: Source, outcome: Outcome, seconds: float, new: float) -> None:
        """Write the takes as they are, and say in the record what they are. new: seconds that were generated."""
        folder, takes = self.store.jobs / job.record.id, []
        for number, take in enumerate(outcome.takes, 1):
            audio_files.write(folder / f"take-{number}.wav", take.wav, outcome.rate, subtype=SUBTYPE)
            url = f"/v1/jobs/{job.record.id}/takes/{number}.wav"
            takes.append(
                {"take": number, "url": url, "duration": round(take.wav.shape[1] / outcome.rate, 3), **take.facts}
            )
        factor = new / seconds
        warnings = []
        if source.mix_loss_db > QUIET_MIX_DB:
            warnings.append(quiet_mix("input", source.mix_loss_db) + "; try channel left")
        silent = [str(take["take"]) for take in takes if take.get("silent")]
        if silent:
            warnings.append(f"the first beat of take {', '.join(silent)} is near-silent although the prompt is not; "
                            "retry_silent draws again")  # fmt: skip
        job.record.result = {
            "takes": takes,
            "sample_rate": outcome.rate,
            "channels": len(outcome.takes[0].wav),
            "duration": max(take["duration"] for take in takes),
            **outcome.facts,
            "seconds": round(seconds, 3),
            "real_time_factor": round(factor, 3),
            "warnings": warnings,
        }
        metrics.FACTOR.observe(factor)

    def _finish(self, job: Job, state: str) -> None:
        """The end of a job: what is said of it later is on the disk before anybody hears of it."""
        record = job.record
        record.finished = time.time()
        final = replace(record, state=state)
        try:
            self.store.update(final, "state", "finished", "error", "result")
        except sqlite3.Error as error:
            if state == "done":
                raise
            log.error("job=%s %s, which cannot be written: %s", record.id, state, error)
        with self._changed:
            record.state = state
            self._live.pop(record.id, None)
            self._changed.notify_all()
        job.generation = job.codec = None  # its caches, and the model
        metrics.FINISHED.labels(state).inc()
        log.info("job=%s %s%s", record.id, state, f" error={record.error!r}" if record.error else "")

    def _put_back(self, job: Job) -> None:
        """The service ends in good order: the job is the next one's, and this was no attempt."""
        job.record.state, job.record.attempts = "queued", job.record.attempts - 1
        with suppress(sqlite3.Error):
            self.store.update(job.record, "state", "attempts")
        log.info("job=%s put back", job.record.id)

    def _fail(self, job: Job, reason: str) -> None:
        job.record.error, job.record.result = reason, None
        for path in (self.store.jobs / job.record.id).glob("take-*"):
            path.unlink(missing_ok=True)
        self._finish(job, "failed")

    def _reason(self, job: Job, error: Exception) -> str:
        if (known := problem_of(error)) is not None:
            return known.detail
        if not isinstance(error, (ValueError, OSError)):
            log.exception("job=%s", job.record.id)
        return message(error).replace(f"{self.store.jobs / job.record.id}{os.sep}", "")

    def _keep_house(self) -> None:
        """The thread that removes what has expired."""
        while not self.stopping:
            try:
                for identity in self.store.expire(self.settings.keep_seconds, self.settings.keep_bytes):
                    log.info("job=%s expired", identity)
            except (sqlite3.Error, OSError) as error:
                log.error("expired jobs are not removed: %s", error)
            with self._changed:
                if not self.stopping:
                    self._changed.wait_for(lambda: self.stopping, HOUSEKEEPING)


def is_live(options: Mapping[str, Any]) -> bool:
    """Whether a job's sound can be heard while it is made: its takes are drawn at once, and neither again nor cut."""
    return not any(options.get(name) for name in ("spread", "rank", "retry_silent", "until_silence"))


def is_input(name: str) -> bool:
    """Whether a file in a job's folder was sent with it."""
    return name in ("input", "style") or name.startswith("melody-")


def require_length(path: Path, most: float) -> None:
    """Raise ValueError for audio longer than `most` seconds by its own header."""
    import soundfile as sf

    try:
        found = sf.info(str(path)).duration
    except sf.LibsndfileError:
        return  # read_source says what it is
    if found > most:
        raise ValueError(f"{path.name}: has {found:.0f} s, this service takes {most:.0f} s: send a shorter part")


def _link(source: Path, target: Path) -> None:
    """The same content under another name."""
    try:
        os.link(source, target)
    except FileNotFoundError:  # deleted just now
        raise Problem(404, GONE) from None
    except OSError:
        shutil.copyfile(source, target)
