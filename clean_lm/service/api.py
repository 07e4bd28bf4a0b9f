"""/v1: models, jobs, their sound and their results."""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from clean_lm import __version__
from clean_lm.manifest import Manifest
from clean_lm.options import one_of
from clean_lm.request_options import AUDIO, OPTIONS
from clean_lm.service import sound
from clean_lm.service.jobs import Job, Service
from clean_lm.service.problems import EndedEarly, Problem
from clean_lm.service.store import FINAL
from clean_lm.service.uploads import body, json_object, read_job, scratch, upload

LOOK = 0.2  # seconds between two looks at a job for its events
LONGEST_STOP = 10.0  # seconds that a job may need to stop, before it is deleted
HEARTBEAT = 10.0  # seconds after which a comment keeps a connection open
SMALL = 2**20  # bytes of a body without audio
encoding = CapacityLimiter(2)  # files that are encoded at the same time


def service_of(request: Request) -> Service:
    return request.app.state.service


def iso(seconds: float | None) -> str | None:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def job_document(service: Service, job: Job) -> dict[str, Any]:
    """A job as clients see it."""
    record = job.record
    return {
        "id": record.id,
        "status": record.state,
        "model": record.model,
        "variant": record.variant,
        "request": record.options,
        "created": iso(record.created),
        "started": iso(record.started),
        "finished": iso(record.finished),
        "progress": round(job.progress, 4),
        "position": service.position(job),
        "seconds_left": service.seconds_left(job),
        "error": None if record.error is None else {"title": "the job failed", "detail": record.error},
        "retry_of": record.retry_of,
        "result": record.result if record.state == "done" else None,
    }


async def health(request: Request) -> Response:
    waiting, running = service_of(request).counts()
    return JSONResponse({"status": "live", "version": __version__, "waiting": waiting, "running": running})


async def models(request: Request) -> Response:
    return JSONResponse(await to_thread.run_sync(models_document, service_of(request)))


def models_document(service: Service) -> dict[str, Any]:
    settings = service.settings
    limits = {
        "body_bytes": settings.body_bytes,
        "audio_seconds": settings.audio_seconds,
        "duration": settings.duration,
        "takes": settings.takes,
        "waiting": settings.waiting,
    }
    found = [model_document(service, name, path) for name, path in service.models.bundles().items()]
    return {"models": found, "limits": limits}


def model_document(service: Service, name: str, path: Path) -> dict[str, Any]:
    """One model, or why it cannot be used."""
    manifest = service.models.read(path)
    if not isinstance(manifest, Manifest):
        return {"name": name, "error": manifest}
    model, defaults = manifest.language_model, manifest.defaults
    return {
        "name": name,
        "bytes": manifest.used_bytes(),
        "variant": manifest.variant,
        "variants": [{"name": variant, "bytes": info.bytes} for variant, info in manifest.variants.items()],
        "sample_rate": model.sample_rate,
        "channels": model.channels,
        "max_duration": model.max_duration,
        "defaults": {"duration": defaults.duration, "extend_stride": defaults.extend_stride},
        "takes_text": "text_encoder" in manifest.graphs,
        "takes_melody": model.self_wav == "melody",
        "takes_style": model.self_wav == "style" and "style_features" in manifest.graphs,
        "loaded": service.models.loaded(name),
        "error": None,
    }


async def create(request: Request) -> Response:
    service = service_of(request)
    with scratch(service.settings.data) as folder:
        asked = await read_job(request, folder, service.settings.body_bytes)
        job = await to_thread.run_sync(
            lambda: service.submit("v1", asked.model, asked.variant, asked.options, asked.files)
        )
    return accepted(service, job)


def accepted(service: Service, job: Job) -> Response:
    return JSONResponse(job_document(service, job), 202, {"Location": f"/v1/jobs/{job.record.id}"})


async def found(request: Request) -> tuple[Service, Job]:
    """The job that the path names. Raises Problem."""
    service = service_of(request)
    return service, await to_thread.run_sync(service.find, request.path_params["id"])


async def state(request: Request) -> Response:
    service, job = await found(request)
    return JSONResponse(job_document(service, job))


async def events(request: Request) -> Response:
    service, job = await found(request)
    changes = job_events(service, job)
    return StreamingResponse(changes, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def job_events(service: Service, job: Job) -> AsyncIterator[str]:
    """The job whenever it has changed, until it is finished or the service ends."""
    last, said = "", time.monotonic()
    while True:
        document = job_document(service, job)
        if (text := json.dumps(document)) != last:
            last, said = text, time.monotonic()
            yield f"event: job\ndata: {text}\n\n"
        elif time.monotonic() - said > HEARTBEAT:
            said = time.monotonic()
            yield ": waiting\n\n"
        if document["status"] in FINAL or service.stopping:
            return
        await anyio.sleep(LOOK)


async def stream(request: Request) -> Response:
    service, job = await found(request)
    query = request.query_params
    kind = one_of("format", query.get("format", "wav"), sound.STREAMED)
    begins = one_of("from", query.get("from", "start"), ("start", "seam"))
    number = take_number(query.get("take", "1"), job)
    if job.record.state == "done":
        return await finished(service, job, number, kind, begins == "seam")
    if job.record.state in FINAL:
        raise Problem(409, f"the job is {job.record.state}: it has no sound")
    pieces = sound.live(service, job, number, kind, begins == "seam")
    first = await anext(pieces, b"")  # errors are answered before a status is sent
    if not first and job.record.state == "done":
        return await finished(service, job, number, kind, begins == "seam")

    async def all_pieces() -> AsyncIterator[bytes]:
        try:
            yield first
            async for piece in pieces:
                yield piece
            if job.record.state != "done":
                raise EndedEarly
        finally:
            await pieces.aclose()  # pyright: ignore[reportAttributeAccessIssue]

    return StreamingResponse(all_pieces(), media_type=sound.MEDIA[kind], headers={"Cache-Control": "no-store"})


def take_number(text: str, job: Job) -> int:
    """Raises Problem for takes that the job does not have."""
    takes = job.record.options["takes"]
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= takes:
        raise Problem(404, f"take: got {text!r}, this job has {takes}")
    return int(text)


async def take(request: Request) -> Response:
    service, job = await found(request)
    kind = request.path_params["format"]
    if kind not in sound.MEDIA:
        raise Problem(404, f"format: got {kind!r}, expected one of {', '.join(sound.MEDIA)}")
    return await finished(service, job, take_number(request.path_params["take"], job), kind)


async def finished(service: Service, job: Job, number: int, kind: str, from_seam: bool = False) -> Response:
    """A take's file."""
    path = service.take(job, number)
    options, result = job.record.options, job.record.result or {}
    begin = result.get("seam", 0.0) if from_seam else 0.0
    target = await to_thread.run_sync(sound.encoded, path, number, kind, options, begin, limiter=encoding)
    name = f"{job.record.model}-{job.record.id[:6]}-{number}.{kind}"
    return FileResponse(target, media_type=sound.MEDIA[kind], filename=name, content_disposition_type="inline")


async def cancel(request: Request) -> Response:
    service = service_of(request)
    job = await to_thread.run_sync(service.cancel, request.path_params["id"])
    return JSONResponse(job_document(service, job))


async def retry(request: Request) -> Response:
    service = service_of(request)
    document = json_object(await body(request, SMALL))
    for name in AUDIO:
        if name in document:
            raise ValueError(f"{name}: got one, but a retry is on the job's own audio; send a new job")
    defaults = {name: None for name, value in document.items() if value is None and name in OPTIONS}
    given = upload(document, {}, form=False)
    identity, changes = request.path_params["id"], {**given.options, **defaults}
    job = await to_thread.run_sync(
        lambda: service.retry(identity, "v1", changes, model=given.model, variant=given.variant)
    )
    return accepted(service, job)


async def delete(request: Request) -> Response:
    service = service_of(request)
    job = await to_thread.run_sync(service.cancel, request.path_params["id"])
    with anyio.move_on_after(LONGEST_STOP):
        while job.record.state not in FINAL and not service.stopping:
            await anyio.sleep(LOOK)
    if job.record.state not in FINAL:
        raise Problem(503, "the job is cancelled, but its model is still being loaded: try again", {"Retry-After": "5"})
    await to_thread.run_sync(service.store.remove, job.record.id)
    return Response(status_code=204)


ROUTES = [
    Route("/v1/health", health),
    Route("/v1/models", models),
    Route("/v1/jobs", create, methods=["POST"]),
    Route("/v1/jobs/{id}", state, methods=["GET"]),
    Route("/v1/jobs/{id}", delete, methods=["DELETE"]),
    Route("/v1/jobs/{id}/events", events),
    Route("/v1/jobs/{id}/stream", stream),
    Route("/v1/jobs/{id}/takes/{take}.{format}", take),
    Route("/v1/jobs/{id}/cancel", cancel, methods=["POST"]),
    Route("/v1/jobs/{id}/retry", retry, methods=["POST"]),
]
