"""`clean-lm serve` in a process of its own, and a client of it, for tests."""

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support import ROOT

FINAL = ("done", "failed", "cancelled")


class Answer:
    """Status, headers and body of a response."""

    def __init__(self, status: int, headers: Any, body: bytes):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A service that runs."""

    def __init__(self, process: subprocess.Popen[str], lines: list[str], port: int):
        self.process, self.lines, self.base = process, lines, f"http://127.0.0.1:{port}"
        self.port = port
        self.reader = threading.Thread(target=lines.extend, args=[process.stderr], daemon=True)
        self.reader.start()

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.base + path, data=body, headers=names, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", path, None, **headers)

    def post(self, path: str, document: Any = None, **headers: str) -> Answer:
        body = json.dumps({} if document is None else document).encode()
        return self.call("POST", path, body, Content_Type="application/json", **headers)

    def form(self, path: str, fields: dict[str, Any], files: list[tuple[str, bytes]], **headers: str) -> Answer:
        """A multipart form."""
        mark, parts = uuid.uuid4().hex, []
        for name, value in fields.items():
            parts.append(f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
        for name, content in files:
            head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"; filename="a.wav"\r\n\r\n'
            parts.append(head.encode() + content + b"\r\n")
        body = b"".join([*parts, f"--{mark}--\r\n".encode()])
        return self.call("POST", path, body, Content_Type=f"multipart/form-data; boundary={mark}", **headers)

    def job(self, track: Path | None = None, **fields: Any) -> dict[str, Any]:
        """A job that is accepted."""
        answer = self.form("/v1/jobs", fields, [("input", track.read_bytes())] if track else [])
        assert answer.status == 202, answer.body
        return answer.json

    def wait(self, identity: str, seconds: float = 60) -> dict[str, Any]:
        """The job when it is finished."""
        end = time.monotonic() + seconds
        while (job := self.get(f"/v1/jobs/{identity}").json)["status"] not in FINAL:
            assert time.monotonic() < end, f"not finished after {seconds} s: {job}"
            time.sleep(0.05)
        return job

    def metric(self, name: str) -> float:
        text = self.get("/metrics").body.decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    def stop(self) -> int:
        """End it in good order."""
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()


def start(models: Path, data: Path, *options: str, before: Callable[[], object] | None = None) -> Served:
    """Start a service on a free port, and wait until it listens."""
    command = [sys.executable, "-m", "clean_lm", "serve", "--models", str(models), "--data", str(data)]
    process = subprocess.Popen([*command, "--port", "0", "--threads", "1", *options], cwd=ROOT, text=True,
                               stderr=subprocess.PIPE, preexec_fn=before)  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"listening on http://\S+:(\d+)/", line):
            return Served(process, lines, int(found[1]))
    process.stderr.close()
    process.wait()
    raise AssertionError("".join(lines))


@contextlib.contextmanager
def serving(models: Path, data: Path, *options: str, before: Callable[[], object] | None = None) -> Iterator[Served]:
    """A service for one block."""
    served = start(models, data, *options, before=before)
    try:
        yield served
    finally:
        served.kill()
