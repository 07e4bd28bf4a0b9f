"""What one worker does: groups of tasks in, their audio into the job's folder, a result for each task out."""

import logging
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from clean_lm import audio
from clean_lm.batch.addresses import is_address, opened, said
from clean_lm.batch.plan import Task
from clean_lm.batch.store import Folder, Result
from clean_lm.batch.together import Together
from clean_lm.console import message, plain
from clean_lm.joining import QUIETEST_DB, Outcome, finish, written_as
from clean_lm.manifest import LoadOptions
from clean_lm.musicgen import MusicGen
from clean_lm.request import Request, validate
from clean_lm.source import QUIET_MIX_DB, Source, quiet_mix, read_source, result_format
from clean_lm.takes import Drawn, Song, prompt_codes

log = logging.getLogger("clean_lm")

SOUND = ("text", "negative_text", "seed", "temperature", "top_k", "top_p", "cfg_coef", "cfg_coef_beta", "takes", "rank")


@dataclass(frozen=True)
class Ready:
    """A task whose audio is read."""

    task: Task
    request: Request
    song: Song


class Worker:
    """Draws tasks; keeps the model of the last ones. One thread at a time."""

    def __init__(self, output: str, threads: int | None):
        self.folder, self.threads = Folder(output), threads
        self.key: tuple[str, str | None, str] | None = None
        self.together: Together | None = None

    def run(self, tasks: Sequence[Task]) -> list[Result]:
        """The result of each task, in any order; whatever is wrong with a task is its result."""
        results = [failed(task, task.error) for task in tasks if task.error is not None]
        tasks = [task for task in tasks if task.error is None]
        if not tasks:
            return results
        try:
            together = self._load(tasks[0])
        except Exception as error:
            return results + [failed(task, reason(error)) for task in tasks]
        with Audio() as files:
            ready = []
            for task in tasks:
                try:
                    ready.append(files.ready(together.model, task))
                except Exception as error:
                    results.append(failed(task, reason(error)))
            return results + self._draw(together, ready)

    def _load(self, task: Task) -> Together:
        """The model of a task. Raises BundleError, OSError, ValueError."""
        key = (task.bundle, task.variant, task.model)
        if self.together is None or self.key != key:
            self.together = None  # its memory is needed now
            how: LoadOptions = {"variant": task.variant, "threads": self.threads, "device": task.device}
            self.together = Together(MusicGen.load(task.bundle, **how))
            self.key = key
        return self.together

    def _draw(self, together: Together, ready: Sequence[Ready]) -> list[Result]:
        results = []
        begun, start = time.time(), time.perf_counter()
        try:
            for places, drawn in together.draw([one.song for one in ready]):
                share = (time.perf_counter() - start) / len(places)
                for place, each in zip(places, drawn, strict=True):
                    result = self._written(together.model, ready[place], each, len(places), share)
                    results.append({**result, "begun": begun, "ended": time.time()})
                begun, start = time.time(), time.perf_counter()
        except Exception as error:
            if len(ready) == 1:
                return [failed(ready[0].task, reason(error))]
            done = {result["id"] for result in results}
            rest = [one for one in ready if one.task.id not in done]
            return results + [result for one in rest for result in self._draw(together, [one])]
        return results

    def _written(self, model: MusicGen, ready: Ready, drawn: Drawn, rows: int, seconds: float) -> Result:
        """Write the takes of a task; its result."""
        task, start = ready.task, time.perf_counter()
        try:
            outcome = finish(model, ready.request, ready.song.source, drawn)
            takes, clipped = self._write(task, ready.request, outcome)
        except Exception as error:
            return failed(task, reason(error))
        seconds += time.perf_counter() - start
        facts = {name: outcome.facts.get(name) for name in ("seam", "level_db", "bars", "bpm")}
        loss = ready.song.source.mix_loss_db
        return {
            **common(task),
            **facts,
            "state": "done",
            "seed": ready.request.seed,
            "sample_rate": outcome.rate,
            "channels": len(outcome.takes[0].wav),
            "clipped": clipped,
            "seconds": round(seconds, 4),
            "real_time_factor": round(drawn.frames / model.frame_rate / seconds, 3),
            "together": rows,
            "variant": model.lm.manifest.variant,
            "warnings": [plain(quiet_mix(task.files["input"][0], loss))] if loss > QUIET_MIX_DB else [],
            "takes": takes,
        }

    def _write(self, task: Task, request: Request, outcome: Outcome) -> tuple[list[dict[str, Any]], int]:
        takes, clipped = [], 0
        strategy, subtype = written_as(request.join, request.input, Path(task.outputs[0]))
        for name, take in zip(task.outputs, outcome.takes, strict=True):
            level = task.strategy or strategy
            more, wav = self.folder.write_audio(name, take.wav, outcome.rate, level, subtype)
            clipped += more
            levels = {"peak_db": decibels(np.abs(wav).max(initial=0)), "rms_db": decibels(audio.rms(wav))}
            takes.append({"file": name, "duration": round(wav.shape[1] / outcome.rate, 3), **levels, **take.facts})
        return takes, clipped


class Audio:
    """The audio of a group's tasks: what several of them have in common is fetched, read and encoded once."""

    def __enter__(self) -> "Audio":
        self.scratch: Path | None = None
        self.fetched: dict[str, Path] = {}
        self.read: dict[Request, tuple[Source, np.ndarray | None]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def ready(self, model: MusicGen, task: Task) -> Ready:
        """Raises ValueError, OSError for options or audio that cannot be used."""
        request = validate(self.request(task), model.lm.manifest)
        seed = request.seed
        assert seed is not None
        source, prompt = self._source(model, request)
        result_format(request, model.lm.manifest, source)
        return Ready(task, request, Song(request, source, prompt, [seed + n for n in range(request.takes)]))

    def request(self, task: Task) -> Request:
        """What a task asks for, its files on this machine. Raises OSError."""
        files = {name: [self._fetch(address) for address in addresses] for name, addresses in task.files.items()}
        known = {field.name for field in fields(Request)}
        return Request(
            input=next(iter(files.get("input", ())), None),
            melody=tuple(files.get("melody", ())),
            style=next(iter(files.get("style", ())), None),
            **{name: value for name, value in task.options.items() if name in known},
        )

    def _source(self, model: MusicGen, request: Request) -> tuple[Source, np.ndarray | None]:
        """A request's audio, and its prompt's codes."""
        defaults = {field.name: field.default for field in fields(Request) if field.name in SOUND}
        key = replace(request, **defaults)
        if key not in self.read:
            source = read_source(request, model.lm.manifest)
            self.read[key] = source, prompt_codes(model, request, source)
        return self.read[key]

    def _fetch(self, address: str) -> Path:
        """A file as one of this machine. Raises OSError."""
        if not is_address(address):
            return Path(address)
        if self.scratch is None:
            self.scratch = Path(tempfile.mkdtemp(prefix="clean_lm-"))
        if address not in self.fetched:
            name = PurePosixPath(address.split("?")[0]).name
            target = self.scratch / f"{len(self.fetched)}-{name[-100:]}"
            fs, path = opened(address)
            with said(address):
                fs.get_file(path, str(target))
            self.fetched[address] = target
        return self.fetched[address]


def common(task: Task) -> Result:
    """What every result says."""
    names = ("id", "place", "model", "variant", "parameters")
    return {**{name: getattr(task, name) for name in names}, "host": socket.gethostname()}


def failed(task: Task, error: str) -> Result:
    """The result of a task without audio. A seed is one only if it is a number, which may be what is wrong."""
    seed = task.options.get("seed")
    known = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**64
    return {**common(task), "state": "failed", "error": error, "seed": seed if known else None}


def reason(error: Exception) -> str:
    """An error in one line."""
    if not isinstance(error, (ValueError, OSError)):
        log.error("%s", error, exc_info=error)
        return f"{type(error).__name__}: {message(error)}"
    return message(error)


def decibels(level: float) -> float:
    """Of full scale."""
    return round(max(QUIETEST_DB, 20 * float(np.log10(max(level, 1e-9)))), 2)
