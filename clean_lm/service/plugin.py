"""The protocol of the gary4juce plugin, on the paths and in the words that it knows: it needs no change to find us.

It polls about once a second, wants a Content-Length on every answer, and takes 16-bit WAV in base64.
"""

import base64
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clean_lm import audio_files
from clean_lm.manifest import Manifest
from clean_lm.options import MOST_CHARACTERS, shown
from clean_lm.service.api import service_of
from clean_lm.service.jobs import Job, Service
from clean_lm.service.problems import Problem
from clean_lm.service.store import FINAL
from clean_lm.service.uploads import body, from_base64, json_object, scratch

DURATION = 30.0  # seconds in all; the plugin does not ask for another
# The plugin's names: ours, the type, what null and absence mean
NUMBERS = {
    "prompt_duration": ("prompt_seconds", int, 6),
    "top_k": ("top_k", int, 250),
    "temperature": ("temperature", float, 1.0),
    "cfg_coef": ("cfg_coef", float, 3.0),
}
SIZES = (("small", 1024), ("medium", 1536), ("large", None))  # by the width of MusicGen's transformer
CHECKPOINT = re.compile(r"(.+)-(\d+)")
SUCCESS = "success"


async def health(request: Request) -> Response:
    waiting, running = service_of(request).counts()
    return JSONResponse({"status": "live", "service": "clean_lm", "waiting": waiting, "running": running})


async def models(request: Request) -> Response:
    service = service_of(request)
    found = await to_thread.run_sync(by_size, service)
    return JSONResponse({SUCCESS: True, "models": found, "updated_at": datetime.now(UTC).isoformat()})


def by_size(service: Service) -> dict[str, list[dict[str, Any]]]:
    """The bundles that can be used; those whose names end in -NUMBER are checkpoints of one model."""
    found: dict[str, list[dict[str, Any]]] = {size: [] for size, _ in SIZES}
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, path in service.models.bundles().items():
        manifest = service.models.read(path)
        if not isinstance(manifest, Manifest):
            continue
        size = next(size for size, width in SIZES if width is None or manifest.language_model.dim <= width)
        if (match := CHECKPOINT.fullmatch(name)) is None:
            found[size].append({"name": name, "path": name, "type": "single"})
            continue
        key = (size, match[1])
        if key not in groups:
            groups[key] = {"name": match[1], "type": "group", "checkpoints": []}
            found[size].append(groups[key])
        groups[key]["checkpoints"].append({"name": name, "path": name, "epoch": int(match[2])})
    for group in groups.values():
        group["checkpoints"].sort(key=lambda checkpoint: checkpoint["epoch"])
    return found


async def process_audio(request: Request) -> Response:
    return await begin(request, "start")


async def continue_music(request: Request) -> Response:
    return await begin(request, "end")


async def begin(request: Request, side: str) -> Response:
    """Accept a track, to be continued from its first or last seconds."""
    service = service_of(request)
    text = await body(request, service.settings.body_bytes)

    def submit() -> Job:
        given = json_object(text)
        options = options_of(given) | {"side": side, "join": service.settings.plugin_join}
        with scratch(service.settings.data) as folder:
            track = folder / "input"
            track.write_bytes(from_base64("audio_data", given.get("audio_data")))
            if side == "start":
                fill_up(track, float(options["prompt_seconds"]))
            return service.submit("plugin", model_of(given), None, options, {"input": track})

    return begun(await to_thread.run_sync(submit))


async def retry_music(request: Request) -> Response:
    service = service_of(request)
    given = json_object(await body(request, service.settings.body_bytes))
    session = given.get("session_id")
    if not isinstance(session, str) or not session:
        raise Problem(400, f"session_id: got {shown(session)}, expected the id of an earlier continuation")
    options = options_of(given)
    job = await to_thread.run_sync(lambda: service.retry(session, "plugin", options, model=model_of(given)))
    return begun(job)


def begun(job: Job) -> Response:
    return JSONResponse(
        {
            SUCCESS: True,
            "session_id": job.record.id,
            "seed": job.record.options["seed"],
            "message": f"continuing with {job.record.model}",
        }
    )


def model_of(given: Mapping[str, Any]) -> str | None:
    """Which model, None for the only one. Raises ValueError."""
    name = given.get("model_name") or None
    if name is not None and not isinstance(name, str):
        raise ValueError(f"model_name: got {shown(name)}, expected a path that /api/models lists")
    return name


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The plugin's parameters as options of a job. Raises ValueError."""
    text = given.get("description") or None
    if text is not None and (not isinstance(text, str) or len(text) > MOST_CHARACTERS):
        raise ValueError(f"description: got {shown(text)}, expected a text of at most {MOST_CHARACTERS} characters")
    options: dict[str, Any] = {"text": text, "duration": DURATION, "seed": seed_of(given.get("seed"))}
    for name, (ours, kind, default) in NUMBERS.items():
        value = default if given.get(name) is None else given[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind is int and value != value // 1):
            expected = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
        options[ours] = kind(value)
    return options


def seed_of(value: Any) -> int:
    """The seed; a new one for -1, null, "" and none. Raises ValueError."""
    text = str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
    if value is None or text in ("", "-1", "-1.0"):
        return secrets.randbits(31)
    if text is None or not re.fullmatch(r"\d{1,19}(\.0)?", text):
        raise ValueError(f"seed: got {shown(value)}, expected a whole number from 0 up, or -1")
    return int(text.removesuffix(".0"))


def fill_up(track: Path, seconds: float) -> None:
    """Bring a track that is shorter than its prompt to the prompt's length, with silence. Raises AudioError."""
    wav, rate = audio_files.read(track)
    missing = round(seconds * rate) - wav.shape[1]
    if 0 < missing <= DURATION * rate:
        filled = np.pad(wav, ((0, 0), (0, missing)))
        audio_files.write(track.with_name("filled.wav"), filled, rate, subtype="FLOAT")
        track.with_name("filled.wav").replace(track)


async def poll(request: Request) -> Response:
    return JSONResponse(await to_thread.run_sync(poll_document, service_of(request), request.path_params["id"]))


def poll_document(service: Service, session: str) -> dict[str, Any]:
    """How far a continuation is; when it is done, with its sound."""
    try:
        job = service.find(session)
    except Problem as error:
        return {SUCCESS: False, "status": "unknown", "error": error.detail, "generation_in_progress": False}
    record = job.record
    state = {"queued": "warming", "loading": "warming", "running": "processing", "done": "completed"}
    answer: dict[str, Any] = {
        SUCCESS: True,
        "status": state.get(record.state, "failed"),
        "progress": min(99, int(100 * job.progress)) if record.state != "done" else 100,
        "generation_in_progress": record.state not in FINAL,
        "generation_seed": record.options["seed"],
        "queue_status": queue_status(service, job),
    }
    if record.state == "done":
        answer["audio_data"] = base64.b64encode(result(service, job)).decode()
        answer["seed"] = record.options["seed"]
    elif record.state in FINAL:
        answer["error"] = record.error or "cancelled"
    return answer


def queue_status(service: Service, job: Job) -> dict[str, Any]:
    """Where a job is in the queue, and in words."""
    record, position = job.record, service.position(job)
    left, (waiting, _) = service.seconds_left(job), service.counts()
    words = {
        "queued": ("queued", f"waiting: {position} before this one" if position else "starts next"),
        "loading": ("warming", f"loading {record.model}"),
        "running": ("processing", f"generating with {record.model}"),
        "done": ("completed", "done"),
    }
    status, message = words.get(record.state, ("failed", record.error or "cancelled"))
    return {
        "status": status,
        "message": message,
        "position": position or 0,
        "total_queued": waiting,
        "estimated_time": f"{left:.0f} s" if left is not None else "",
        "estimated_seconds": left if left is not None else 0,
        "source": "clean_lm",
    }


def result(service: Service, job: Job) -> bytes:
    """The first take as a 16-bit WAV file, as a whole brought down to full scale where it would clip."""
    path = service.take(job, 1)
    wav, rate = audio_files.read(path)
    return bytes(audio_files.encode(path, wav / max(1.0, float(np.abs(wav).max())), rate, "PCM_16"))


def answer(problem: Problem) -> Response:
    """An error in the plugin's form."""
    return JSONResponse({SUCCESS: False, "error": problem.detail}, problem.status, problem.headers)


PREFIX = "/api/"
ROUTES = [
    Route("/health", health),
    Route("/api/models", models),
    Route("/api/juce/process_audio", process_audio, methods=["POST"]),
    Route("/api/juce/continue_music", continue_music, methods=["POST"]),
    Route("/api/juce/retry_music", retry_music, methods=["POST"]),
    Route("/api/juce/poll_status/{id}", poll),
]
