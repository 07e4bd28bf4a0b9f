"""The OpenAPI document of /v1, written from the table of options, and /docs, which shows it without a script."""

import json
from html import escape
from typing import Any

from clean_lm import __version__
from clean_lm.request_options import OPTIONS, Option
from clean_lm.service.options import PLACE, default
from clean_lm.service.sound import MEDIA, STREAMED

PROBLEMS = {
    "400": "not readable", "401": "no token, or a wrong one", "403": "another web page's request",
    "404": "unknown job, take or model", "408": "the body stopped", "409": "the job is in another state",
    "413": "a body that is too large", "415": "another Content-Type", "421": "another Host",
    "422": "an option, or audio, that cannot be used: `detail` names it", "429": "too much at once: see Retry-After",
    "503": "not now: see Retry-After", "507": "the disk is full",
}  # fmt: skip
AUDIO_WORDS = {
    "input": "the track to continue: WAV, FLAC, OGG or MP3. Without it, music is made from a text",
    "melody": "melody models: what to follow; several are stems, which are added up",
    "style": "style models: audio whose style to take",
}
NUMBER, TEXT, MAYBE_NUMBER = {"type": "number"}, {"type": "string"}, {"type": ["number", "null"]}
STATES = ["queued", "loading", "running", "done", "failed", "cancelled"]


def option_schema(name: str, option: Option) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": option.kind, "description": option.words}
    if option.choices:
        schema["enum"] = list(option.choices)
    if option.least is not None:
        schema["minimum"] = option.least
    if option.most is not None:
        schema["maximum"] = option.most
    if (value := default(name)) is not None:
        schema["default"] = value
    return schema


def job_schema(audio: dict[str, Any]) -> dict[str, Any]:
    """A job as it is asked for; audio: how a file is sent."""
    sounds = {name: {**audio, "description": words} for name, words in AUDIO_WORDS.items()}
    sounds["melody"] = {"type": "array", "items": audio, "maxItems": 8, "description": AUDIO_WORDS["melody"]}
    options = {name: option_schema(name, option) for name, option in (PLACE | OPTIONS).items()}
    return {"type": "object", "properties": {**sounds, **options}, "additionalProperties": False}


def schemas() -> dict[str, Any]:
    options = {name: option_schema(name, option) for name, option in (PLACE | OPTIONS).items()}
    take = {
        "take": {"type": "integer"},
        "seed": {"type": "integer"},
        "temperature": NUMBER,
        "url": TEXT,
        "duration": {**NUMBER, "description": "seconds"},
        "bars": {"type": "integer", "description": "with bpm"},
        "first_beat_db": {**NUMBER, "description": "level of the first new beat beside that of the prompt's last four"},
        "silent": {"type": "boolean", "description": "there and true where the first beat is near-silent"},
        "log_probability": {**NUMBER, "description": "with rank: mean of a code, in nats, under the model itself"},
        "onset_agreement": {**NUMBER, "description": "with rank: of the rhythm with the prompt's, -1 to 1"},
    }
    result = {
        "takes": {"type": "array", "items": {"type": "object", "properties": take}},
        "sample_rate": {"type": "integer"},
        "channels": {"type": "integer"},
        "duration": {**NUMBER, "description": "seconds"},
        "seam": {**NUMBER, "description": "second at which the new part begins; not without a track"},
        "bpm": {**NUMBER, "description": "with bpm"},
        "bars": {"type": "integer", "description": "with bpm: that were asked for"},
        "level_db": {**NUMBER, "description": "how much louder the new part was made, to meet the track's level"},
        "seconds": {**NUMBER, "description": "that the job took"},
        "real_time_factor": {**NUMBER, "description": "seconds of new audio per second, all takes together"},
        "warnings": {"type": "array", "items": TEXT},
    }
    error = {"title": TEXT, "detail": TEXT}
    job = {
        "id": TEXT,
        "status": {"type": "string", "enum": STATES},
        "model": TEXT,
        "variant": {"type": ["string", "null"]},
        "request": {"type": "object", "description": "the options with their defaults, and the seed"},
        **{name: {"type": ["string", "null"], "format": "date-time"} for name in ("created", "started", "finished")},
        "progress": {**NUMBER, "description": "0 to 1"},
        "position": {"type": ["integer", "null"], "description": "jobs before this one, while it waits"},
        "seconds_left": {**MAYBE_NUMBER, "description": "estimated from measured speed; null while it is unknown"},
        "error": {"type": ["object", "null"], "properties": error},
        "retry_of": {"type": ["string", "null"]},
        "result": {"type": ["object", "null"], "properties": result},
    }
    problem = {"type": TEXT, "title": TEXT, "status": {"type": "integer"}, "detail": TEXT}
    return {
        "Form": job_schema({"type": "string", "format": "binary"}),
        "Json": job_schema({"type": "string", "contentEncoding": "base64"}),
        "Changes": {"type": "object", "properties": options, "additionalProperties": False},
        "Job": {"type": "object", "properties": job},
        "Problem": {"type": "object", "properties": problem},
    }


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def operation(summary: str, status: str, content: dict[str, Any], *problems: str, **more: Any) -> dict[str, Any]:
    """One operation: what it answers, and the problems that it may answer with."""
    problem = {"application/problem+json": {"schema": ref("Problem")}}
    always = ("401", "403", "421", "503")
    answers = {code: {"description": PROBLEMS[code], "content": problem} for code in sorted({*problems, *always})}
    return {"summary": summary, "responses": {status: {"description": "", "content": content}, **answers}, **more}


def parameter(name: str, where: str, words: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "description": words, "schema": schema}


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    job = {"application/json": {"schema": ref("Job")}}
    anything = {"application/json": {"schema": {"type": "object"}}}
    identity = parameter("id", "path", "of a job", type="string")
    sound = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA.values()}
    streamed = {MEDIA[kind]: sound[MEDIA[kind]] for kind in STREAMED}
    asked = {"multipart/form-data": {"schema": ref("Form")}, "application/json": {"schema": ref("Json")}}
    changes = {"application/json": {"schema": ref("Changes")}}
    listen = [
        identity,
        parameter("take", "query", "which take", type="integer", minimum=1, default=1),
        parameter("format", "query", "WAV of 16 bit, or Ogg Vorbis", type="string", enum=[*STREAMED], default="wav"),
        parameter("from", "query", "seam: only what is new", type="string", enum=["start", "seam"], default="start"),
    ]
    take = [
        identity,
        parameter("take", "path", "which take", type="integer", minimum=1),
        parameter("format", "path", "of the file", type="string", enum=[*MEDIA]),
    ]
    refused = ("400", "404", "408", "413", "415", "422", "429", "507")
    create = operation("Continue a track, or make music from a text", "202", job, *refused,
                       requestBody={"required": True, "content": asked})  # fmt: skip
    again = operation("The job once more on the same audio, with other options; without a seed with a new one", "202",
                      job, "400", "404", "408", "413", "422", "429", "507", parameters=[identity],
                      requestBody={"content": changes})  # fmt: skip
    one = [identity]
    paths = {
        "/v1/health": {"get": operation("Whether the service is there", "200", anything)},
        "/v1/models": {"get": operation("The models, their variants, and the service's limits", "200", anything)},
        "/v1/jobs": {"post": create},
        "/v1/jobs/{id}": {
            "get": operation("How far a job is, and its result", "200", job, "404", parameters=one),
            "delete": operation("Cancel a job and remove it with its files", "204", {}, "404", parameters=one),
        },
        "/v1/jobs/{id}/events": {
            "get": operation("The job whenever it changes, as server-sent events, to its end", "200",
                             {"text/event-stream": {"schema": TEXT}}, "404", parameters=one),
        },
        "/v1/jobs/{id}/stream": {
            "get": operation("A take's sound at the model's rate while it is generated; afterwards the take", "200",
                             streamed, "404", "409", "422", "429", parameters=listen),
        },
        "/v1/jobs/{id}/takes/{take}.{format}": {
            "get": operation("A take as a file; supports Range", "200", sound, "404", "409", "422", "507",
                             parameters=take),
        },
        "/v1/jobs/{id}/cancel": {
            "post": operation("Stop a job before its next step", "200", job, "404", parameters=one),
        },
        "/v1/jobs/{id}/retry": {"post": again},
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "clean_lm", "version": __version__, "summary": "Continues music on this machine"},
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
        "paths": paths,
    }


def docs_page() -> str:
    """The document for people."""
    found = document()
    parts = ['<!doctype html><html lang="en"><head><meta charset="utf-8"><title>clean_lm: the API</title>'
             '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/page/docs.css">'
             "</head><body><h1>clean_lm: the API</h1>"
             '<p><a href="/v1/openapi.json">openapi.json</a> is this page for programs.</p>']  # fmt: skip
    for path, operations in found["paths"].items():
        for method, one in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(one['summary'])}.</p>")
            if one.get("parameters"):
                parts.append(_table([(p["name"], _kind(p["schema"]), p["description"]) for p in one["parameters"]]))
            answers = ", ".join(f"{code} {escape(a['description'])}".strip() for code, a in one["responses"].items())
            parts.append(f"<p>Answers: {answers}.</p>")
    for name, title in (("Form", "A job's options"), ("Job", "A job")):
        rows = found["components"]["schemas"][name]["properties"]
        cells = [(key, _kind(schema), schema.get("description", "")) for key, schema in rows.items()]
        parts.append(f"<h2>{title}</h2>{_table(cells)}")
    return "".join([*parts, "</body></html>"])


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type", "")
    words = " or ".join(kind) if isinstance(kind, list) else str(kind)
    words = "file" if schema.get("format") == "binary" else words
    if "enum" in schema:
        words = " | ".join(schema["enum"])
    return words + (f", default {json.dumps(schema['default'])}" if "default" in schema else "")


def _table(rows: list[tuple[str, str, str]]) -> str:
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
