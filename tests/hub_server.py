"""A local server that speaks the routes of the Hugging Face hub that the project uses.

Files that are not text are redirected to a storage with another origin, as the hub redirects large files to its own.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c0ffee".ljust(40, "0")
TOKEN = "hf_secret"
TEXT = (".json", ".md")


class Hub:
    """Repositories in memory. `private` ones need TOKEN; `requests` are (method, path, token) in their order."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        self.stored: list[tuple[str, str | None]] = []  # requests to the storage: path, token
        self.endpoint = self.storage = ""

    def downloads(self) -> list[str]:
        """The names of the files whose content was sent, in their order."""
        found = [path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]
        own = [path.split("/", 5)[5] for path in found if path.endswith(TEXT)]
        return own + [path.split("/", 3)[3] for path, _ in self.stored]


class Handler(BaseHTTPRequestHandler):
    """The hub's routes."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.note(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.list("/".join(parts[2:4]), parts[4:])
        repository, _, revision, name = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        if (files := self.open(repository, revision)) is None:
            return None
        if name not in files:
            return self.fail(404, "EntryNotFound")
        etag = hashlib.sha256(files[name]).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        if name.endswith(TEXT):
            return self.send(200, files[name], headers)
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(files[name]))}
        return self.send(302, b"", headers | linked | {"Location": f"{self.hub.storage}/{repository}/{name}"})

    def list(self, repository: str, rest: list[str]) -> None:
        """/api/models/{repository}[/revision/{revision} | /tree/{revision}]"""
        files = self.open(repository, rest[1] if len(rest) > 1 else "main")
        if files is None:
            return None
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(file), "oid": "0" * 40} for name, file in files.items()
            ]
            return self.answer(entries)
        siblings = [{"rfilename": name} for name in files]
        return self.answer(
            {"id": repository, "modelId": repository, "sha": COMMIT, "private": False, "siblings": siblings}
        )

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.note(path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.token() != TOKEN:
            return self.fail(401, "")
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            self.hub.repositories.setdefault(name, {})
            if given.get("visibility") == "private" or given.get("private"):
                self.hub.private.add(name)
            return self.answer({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})
        repository = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        for line in map(json.loads, body.splitlines()):  # /commit/
            if line["key"] == "file":
                self.hub.repositories[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.hub.endpoint}/{repository}/commit/{COMMIT}"
        return self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})

    def open(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """The files of a repository, or None, and the answer is sent."""
        hub = self.hub
        if repository in hub.gated:
            return self.fail(403, "GatedRepo")
        if repository not in hub.repositories or (repository in hub.private and self.token() != TOKEN):
            return self.fail(401, "RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self.fail(404, "RevisionNotFound")
        return hub.repositories[repository]

    def token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def note(self, path: str) -> None:
        self.hub.requests.append((self.command, path, self.token()))

    def answer(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def fail(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code} if code else {})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


class Storage(Handler):
    """Where the hub redirects to: /{repository}/{name}."""

    def do_GET(self) -> None:
        path = unquote(self.path)
        if self.command == "GET":
            self.hub.stored.append((path, self.token()))
        _, user, name, file = path.split("/", 3)
        self.send(200, self.hub.repositories[f"{user}/{name}"][file], {})


@contextmanager
def served(handler: type[Handler], hub: Hub, host: str) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, cache: Any) -> Iterator[Hub]:
    """A hub that huggingface_hub talks to in this process, with an empty cache of its own."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    hub = Hub()
    with served(Handler, hub, "localhost") as hub.endpoint, served(Storage, hub, "127.0.0.1") as hub.storage:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, for large files
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "*")
        # It tries five times where nothing answers, and waits for half a minute between them.
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))
        yield hub
