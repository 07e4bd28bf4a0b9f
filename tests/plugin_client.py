"""A client of the protocol that the plugin gary4juce speaks, which takes nothing that the plugin would stumble over.

Written from what the plugin sends and reads, not from the service: every reply is checked for its fields and types.
"""

import base64
import http.client
import json
import socket
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

CONNECT, REPLY = 0.4, 1.0  # seconds that the plugin gives a health check: for its connection, and for the reply
OFFLINE = ("unhealthy", "failed", "down", "error")
ORDER = ("warming", "processing", "completed", "failed")
QUEUE = ("queued", "warming", "processing", "completed", "failed")
SIZES = {"small", "medium", "large"}


class Refused(Exception):
    """The service says no: an HTTP status, and its reply."""

    def __init__(self, status: int, reply: dict[str, Any]):
        super().__init__(f"{status}: {reply.get('error')}")
        self.status, self.reply = status, reply


@dataclass(frozen=True)
class Session:
    """A generation that was accepted."""

    id: str
    seed: int


@dataclass
class Finished:
    """A generation's end, and what was heard on the way."""

    status: str
    wav: bytes | None  # of a completed one
    error: str | None  # of a failed one
    statuses: list[str] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)


class PluginClient:
    """Speaks to the service at `base`. Raises Refused where the service says no, AssertionError where the plugin could
    not read what it says."""

    def __init__(self, base: str):
        url = urlsplit(base)
        assert url.hostname
        assert url.port
        self.host, self.port = url.hostname, url.port

    def health(self) -> dict[str, Any]:
        """A health check as the plugin does it, by hand and in a hurry."""
        with socket.create_connection((self.host, self.port), CONNECT) as connection:
            ends = time.monotonic() + REPLY
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n\r\n".encode())
            reply = b""
            while b"\r\n\r\n" not in reply:
                reply += receive(connection, ends)
            head, _, body = reply.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            assert first.split(" ")[1].startswith("2"), first
            assert "content-length" in headers, "a body without a length is not read"
            while len(body) < int(headers["content-length"]):
                body += receive(connection, ends)
        found = json.loads(body)
        assert isinstance(found["status"], str), found
        assert found["status"] not in OFFLINE, found
        return found

    def models(self) -> dict[str, list[dict[str, Any]]]:
        """The list of models by their sizes."""
        status, reply = self._request("GET", "/api/models")
        assert (status, reply["success"]) == (200, True)
        datetime.fromisoformat(reply["updated_at"])
        assert set(reply["models"]) == SIZES
        for entries in reply["models"].values():
            assert isinstance(entries, list)
            for entry in entries:
                require_entry(entry)
        return reply["models"]

    def paths(self) -> list[str]:
        """What can be sent as `model_name`."""
        entries = [entry for group in self.models().values() for entry in group]
        return [one["path"] for entry in entries for one in entry.get("checkpoints", [entry])]

    def process(self, wav: bytes, **options: Any) -> Session:
        return self._begin("process_audio", audio_data=base64.b64encode(wav).decode(), **options)

    def continue_music(self, wav: bytes, **options: Any) -> Session:
        return self._begin("continue_music", audio_data=base64.b64encode(wav).decode(), **options)

    def retry(self, session: str, **options: Any) -> Session:
        return self._begin("retry_music", session_id=session, **options)

    def begin_raw(self, route: str, body: bytes) -> Session:
        """Send any bytes where JSON is expected."""
        status, reply = self._request("POST", f"/api/juce/{route}", body)
        assert isinstance(reply["success"], bool), reply
        if not reply["success"]:
            assert status >= 400, (status, reply)
            require_text(reply["error"])
            raise Refused(status, reply)
        assert status == 200, (status, reply)
        require_text(reply["session_id"])
        require_text(reply["message"])
        require_number(reply["seed"], int)
        return Session(reply["session_id"], reply["seed"])

    def poll(self, session: str) -> dict[str, Any]:
        """What a session does."""
        status, reply = self._request("GET", f"/api/juce/poll_status/{session}")
        assert status == 200, (status, reply)
        if reply["status"] != "unknown":
            require_poll(reply)
        return reply

    def wait(self, session: Session, seconds: float = 120, pause: float = 0.1) -> Finished:
        """Poll until a session is at its end. Raises TimeoutError."""
        found, ends = Finished("", None, None), time.monotonic() + seconds
        while time.monotonic() < ends:
            reply = self.poll(session.id)
            found.statuses.append(reply["status"])
            found.progress.append(reply["progress"])
            ranks = [min(ORDER.index(status), 2) for status in found.statuses[-2:]]
            assert ranks == sorted(ranks), f"from {found.statuses[-2]} back to {found.statuses[-1]}"
            assert found.progress[-2:] == sorted(found.progress[-2:]), f"progress falls: {found.progress[-2:]}"
            assert reply["generation_seed"] == session.seed, (reply["generation_seed"], session.seed)
            if reply["status"] in ("completed", "failed"):
                found.status, found.error = reply["status"], reply.get("error")
                sent = reply.get("audio_data")
                found.wav = None if sent is None else base64.b64decode(sent, validate=True)
                return found
            time.sleep(pause)
        raise TimeoutError(f"session {session.id} is {found.statuses[-1:]} after {seconds} s")

    def _begin(self, route: str, **document: Any) -> Session:
        return self.begin_raw(route, json.dumps(document).encode())

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of a reply."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            reply = json.loads(response.read())
        finally:
            connection.close()
        assert isinstance(reply, dict), reply
        return response.status, reply


def receive(connection: socket.socket, ends: float) -> bytes:
    """What comes next. Raises TimeoutError at `ends`."""
    connection.settimeout(max(0.001, ends - time.monotonic()))
    piece = connection.recv(65536)
    assert piece, "the connection ended before the reply did"
    return piece


def require_text(value: Any) -> None:
    assert isinstance(value, str), value
    assert value


def require_number(value: Any, *types: type) -> None:
    """A number, 0 or more; true and false are none."""
    assert isinstance(value, types), value
    assert not isinstance(value, bool)
    assert value >= 0


def require_entry(entry: dict[str, Any]) -> None:
    """One model, or the checkpoints of one."""
    if entry["type"] == "single":
        assert set(entry) == {"name", "path", "type"}, entry
        require_text(entry["path"])
    else:
        assert entry["type"] == "group", entry
        assert set(entry) == {"name", "type", "checkpoints"}, entry
        assert entry["checkpoints"]
        for one in entry["checkpoints"]:
            assert set(one) == {"name", "path", "epoch"}, one
            require_text(one["name"])
            require_text(one["path"])
            require_number(one["epoch"], int)
    require_text(entry["name"])


def require_poll(reply: dict[str, Any]) -> None:
    """The fields of a poll's reply, by its status."""
    assert reply["success"] is True, reply
    assert reply["status"] in ORDER, reply["status"]
    require_number(reply["progress"], int, float)
    assert reply["progress"] <= 100
    assert isinstance(reply["generation_in_progress"], bool)
    assert reply["generation_in_progress"] == (reply["status"] in ("warming", "processing"))
    require_number(reply["generation_seed"], int)
    queue = reply["queue_status"]
    assert queue["status"] in QUEUE, queue
    assert isinstance(queue["message"], str), queue
    assert isinstance(queue["source"], str), queue
    require_number(queue["position"], int)
    require_number(queue["total_queued"], int)
    assert isinstance(queue["estimated_time"], str | None), queue
    if queue["estimated_seconds"] is not None:
        require_number(queue["estimated_seconds"], int, float)
    assert "estimated_seconds" in queue
    assert ("audio_data" in reply) == (reply["status"] == "completed"), reply["status"]
    if reply["status"] == "failed":
        require_text(reply["error"])
    ended = reply["status"] in ("completed", "failed")
    assert (queue["status"] in ("completed", "failed")) == ended, (reply["status"], queue["status"])
