"""clean-lm serve: what it makes is what the command line makes, nothing is lost, and nobody gets in who may not."""

import base64
import http.client
import io
import json
import os
import resource
import shutil
import socket
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clean_lm import cli
from clean_lm.manifest import Manifest
from clean_lm.request_options import OPTIONS
from clean_lm.service.command import settings_of
from clean_lm.service.jobs import Service, Stopped
from clean_lm.service.models import Models
from clean_lm.service.problems import Problem
from tests.service import Served, serving, start
from tests.support import ROOT
from tests.test_cli import SHORT, tone

pytestmark = pytest.mark.runtime

BUNDLES = ROOT / "tests/golden/conformance/bundles"
LONG = {"prompt_seconds": 1, "duration": 200, "rate": "codec", "join": "rendered"}  # a job that does not end by itself
QUICK = {"prompt_seconds": 1, "duration": 2}


@pytest.fixture(scope="module")
def models(music, tmp_path_factory) -> Path:
    """Two bundles in a folder."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two-7"):
        shutil.copytree(music("text", True), folder / name)
    return folder


@pytest.fixture(scope="module")
def track(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("track") / "track.wav"
    sf.write(path, tone(2.5, 44100, 2), 44100, "PCM_24")
    return path


@pytest.fixture(scope="module")
def served(models, tmp_path_factory) -> Iterator[Served]:
    with serving(models, tmp_path_factory.mktemp("data")) as found:
        yield found


def pcm(content: bytes) -> np.ndarray:
    return sf.read(io.BytesIO(content), dtype="int16", always_2d=True)[0]


# results


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"takes": 2, "text": "slow house"}, ["--splice", "--takes", "2", "--text", "slow house"]),
        ({"join": "rendered", "side": "start"}, ["--from", "start"]),
        ({"join": "rendered", "rate": "codec", "top_k": 5, "strategy": "peak", "fade_out": 0.5},
         ["--rate", "codec", "--top-k", "5", "--strategy", "peak", "--fade-out", "0.5"]),
        ({"temperature": 0.5, "match_level": "false", "channel": "left", "negative_text": "drums", "text": "pads"},
         ["--splice", "--temperature", "0.5", "--no-match-level", "--channel", "left", "--negative-text", "drums",
          "--text", "pads"]),
        ({"bpm": 240, "prompt_bars": 1, "bars": 3, "loop": "true", "takes": 3, "spread": "true", "rank": "true"},
         ["--splice", "--bpm", "240", "--prompt-bars", "1", "--bars", "3", "--loop", "--takes", "3", "--spread",
          "--rank"]),
    ],
)  # fmt: skip
def test_results_are_the_command_lines(served, models, track, tmp_path, fields, options):
    done = served.wait(served.job(track, model="one", seed=7, **QUICK, **fields)["id"])
    assert done["status"] == "done", done
    for extension in ("wav", "flac", "ogg"):
        out = tmp_path / f"out.{extension}"
        command = ["continue", track, "-o", out, "--bundle", models / "one", *SHORT, "--seed", "7", "--threads", "1"]
        assert cli.main([*map(str, command), *options]) == 0
        for take in done["result"]["takes"]:
            name = out.with_stem(f"out-{take['take']}") if "takes" in fields else out
            answer = served.get(take["url"].replace(".wav", f".{extension}"))
            assert (answer.status, answer.headers["Content-Type"]) == (200, f"audio/{extension}")
            if extension == "ogg":  # has a serial number of its own
                np.testing.assert_array_equal(pcm(answer.body), sf.read(name, dtype="int16", always_2d=True)[0])
            else:
                assert answer.body == name.read_bytes()


def test_music_from_a_text(served, models, tmp_path):
    done = served.wait(served.job(model="one", seed=3, duration=2, text="pads")["id"])
    command = ["generate", "-o", tmp_path / "out.wav", "--bundle", models / "one", "--seed", "3", "--duration", "2"]
    assert cli.main([*map(str, command), "--text", "pads", "--threads", "1"]) == 0
    assert served.get(done["result"]["takes"][0]["url"]).body == (tmp_path / "out.wav").read_bytes()
    assert "seam" not in done["result"]


def test_json_is_the_same_job(served, track):
    sent = {"model": "one", "seed": 5, "input": base64.b64encode(track.read_bytes()).decode(), **QUICK}
    first = served.post("/v1/jobs", sent)
    assert (first.status, first.headers["Location"]) == (202, f"/v1/jobs/{first.json['id']}")
    second = served.job(track, model="one", seed=5, **QUICK)
    assert second["request"] == first.json["request"]
    urls = [served.wait(job["id"])["result"]["takes"][0]["url"] for job in (first.json, second)]
    assert served.get(urls[0]).body == served.get(urls[1]).body


@pytest.mark.parametrize("prompt_bars", [1, 2])
def test_appended_on_a_bar_line(served, track, prompt_bars):
    """A track of two bars and a half: what goes before is the track up to the prompt's first bar line, and what comes
    from there on is what `rendered` gives."""
    bars = {"bpm": 240, "prompt_bars": prompt_bars, "bars": prompt_bars + 1}
    fields = {"model": "one", "seed": 5, "strategy": "clip", **bars}
    given = [served.wait(served.job(track, join=join, **fields)["id"]) for join in ("append", "rendered")]
    appended, rendered = (pcm(served.get(done["result"]["takes"][0]["url"]).body) for done in given)
    line = (2 - prompt_bars) * 44100
    assert given[0]["result"]["seam"] == 2
    np.testing.assert_allclose(appended[line:], rendered, rtol=0, atol=1)  # of 24 and of 16 bits
    peak = int(appended.max())
    before = np.clip(sf.read(track, dtype="int16", always_2d=True)[0][: line // 2], -peak, peak)
    np.testing.assert_allclose(appended[: line // 2], before, rtol=0, atol=1)


def test_ranges(served, track):
    """Players seek."""
    url = served.wait(served.job(track, model="one", seed=5, **QUICK)["id"])["result"]["takes"][0]["url"]
    part = served.get(url, Range="bytes=100-199")
    assert (part.status, part.body) == (206, served.get(url).body[100:200])


# the sound while it is made


def test_sound_while_it_is_generated(served, track):
    """A listener's file has the length that its header says, and within a sample's step the result's samples."""
    fields = {"prompt_seconds": 1, "duration": 6, "join": "rendered", "rate": "codec", "strategy": "clip", "seed": 2}
    job = served.job(track, model="one", takes=2, **fields)["id"]
    live = served.get(f"/v1/jobs/{job}/stream?take=2")
    assert served.wait(job)["status"] == "done"
    heard, kept = pcm(live.body), pcm(served.get(f"/v1/jobs/{job}/takes/2.wav").body)
    assert len(live.body) == 44 + heard.nbytes
    assert struct.unpack("<I", live.body[40:44]) == (heard.nbytes,)
    scale = 10 ** (-1 / 20) * 2**15  # `clip` cuts at -1 dB
    np.testing.assert_allclose(np.clip(heard, -scale, scale), kept, atol=1)


def test_only_what_is_new_as_ogg(served, track):
    job = served.job(track, model="one", **{**QUICK, "duration": 6})["id"]
    live = served.get(f"/v1/jobs/{job}/stream?from=seam&format=ogg")
    wav, rate = sf.read(io.BytesIO(live.body))
    assert len(wav) == 5 * rate
    served.wait(job)
    wav, rate = sf.read(io.BytesIO(served.get(f"/v1/jobs/{job}/stream?from=seam").body))
    whole, _ = sf.read(io.BytesIO(served.get(f"/v1/jobs/{job}/takes/1.wav").body))
    assert len(wav) == 5 * rate == 5 * 44100  # the take, which has the track's rate
    np.testing.assert_array_equal(wav, whole[-len(wav) :])


def test_a_format_that_cannot_hold_a_take(served, tmp_path):
    sf.write(tmp_path / "three.wav", tone(2, 44100, 3), 44100)
    done = served.wait(served.job(tmp_path / "three.wav", model="one", **QUICK)["id"])
    answer = served.get(done["result"]["takes"][0]["url"].replace(".wav", ".mp3"))
    assert (answer.status, answer.json["detail"][:36]) == (422, "result-1.mp3: cannot hold 3 channels")


def test_events(served, track):
    job = served.job(track, model="two-7", **QUICK)["id"]
    text = served.get(f"/v1/jobs/{job}/events").body.decode()
    jobs = [json.loads(block.split("data: ", 1)[1]) for block in text.split("\n\n") if block.startswith("event: job")]
    states = [found["status"] for found in jobs]
    order = ["queued", "loading", "running", "done"]
    assert states == sorted(states, key=order.index)
    assert states[-1] == "done"
    progress = [found["progress"] for found in jobs]
    assert progress == sorted(progress)


# cancel, retry, delete, the queue


def test_cancelled_within_a_step(served, track):
    job = served.job(track, model="one", **LONG)["id"]
    while served.get(f"/v1/jobs/{job}").json["progress"] == 0:
        time.sleep(0.02)
    began = time.monotonic()
    served.post(f"/v1/jobs/{job}/cancel")
    assert served.wait(job)["status"] == "cancelled"
    assert time.monotonic() - began < 2
    assert served.get(f"/v1/jobs/{job}/takes/1.wav").status == 409


def test_a_listener_hears_the_end_of_a_cancelled_job(served, track):
    """And sees that it is not the whole: the answer is cut off."""
    job = served.job(track, model="one", **LONG)["id"]
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", f"/v1/jobs/{job}/stream")
    response = connection.getresponse()
    served.post(f"/v1/jobs/{job}/cancel")
    with pytest.raises(http.client.IncompleteRead) as cut:
        response.read()
    assert len(cut.value.partial) > 44
    connection.close()


def test_retry(served, track):
    first = served.wait(served.job(track, model="one", seed=1, top_k=5, **QUICK)["id"])
    again = served.post(f"/v1/jobs/{first['id']}/retry", {"seed": 1}).json
    assert again["request"] == first["request"]
    assert again["retry_of"] == first["id"]
    other = served.post(f"/v1/jobs/{first['id']}/retry", {"model": "two-7", "top_k": 7}).json
    assert (other["model"], other["request"]["top_k"]) == ("two-7", 7)
    assert other["request"]["seed"] != 1
    served.call("DELETE", f"/v1/jobs/{first['id']}")  # its audio was linked, not borrowed
    sounds = [served.get(f"/v1/jobs/{served.wait(job['id'])['id']}/takes/1.wav").body for job in (again, other)]
    assert sounds[0] != sounds[1]


def test_retry_with_defaults(served, track):
    """null brings an option back to its default; other audio is another job."""
    fields = {"bpm": 240, "prompt_bars": 1, "bars": 2, "text": "pads", "top_k": 5}
    first = served.wait(served.job(track, model="one", **fields)["id"])
    path = f"/v1/jobs/{first['id']}/retry"
    again = served.post(path, {"bpm": None, "bars": None, "prompt_bars": None, "text": None, "top_k": None}).json
    assert [again["request"][name] for name in fields] == [None, None, None, None, 250]
    for name in ("input", "style", "melody"):
        answer = served.post(path, {name: None})
        assert (answer.status, f"{name}: got one, but a retry is on" in answer.json["detail"]) == (422, True)


def test_delete(served, models, track, tmp_path):
    with serving(models, tmp_path) as own:
        job = own.job(track, model="one", **LONG)["id"]
        assert own.call("DELETE", f"/v1/jobs/{job}").status == 204
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/stream"), ("GET", "/events"), ("POST", "/retry")):
            answer = own.call(method, f"/v1/jobs/{job}{path}")
            assert (answer.status, answer.json["detail"]) == (404, "no such job; it may have expired"), path
        assert list((tmp_path / "jobs").iterdir()) == []


def test_a_bundle_that_is_replaced(tmp_path):
    """A job of the new one waits for those of the old one, and is made by the new one."""
    shutil.copytree(BUNDLES / "text", tmp_path / "one")
    models = Models(tmp_path, None, 1, 10**9)
    with models.lease("one", None) as model:
        old = dict(model.lm.manifest.document)
        new = old | {"defaults": old["defaults"] | {"duration": 3.5}}
        shutil.rmtree(tmp_path / "one")
        shutil.copytree(BUNDLES / "text", tmp_path / "one")
        (tmp_path / "one/manifest.json").write_text(json.dumps(new))
        with pytest.raises(Stopped), models.lease("one", None, stop):
            pass
    with models.lease("one", None) as model:
        assert model.lm.manifest.document == new
    assert models.resident() == Manifest.read(tmp_path / "one").used_bytes()


def stop() -> None:
    raise Stopped


def test_the_queue_is_counted_by_one_thread_at_a_time(models, tmp_path):
    """What runs may end while it is."""
    asked = ["serve", "--models", str(models), "--data", str(tmp_path), "--queue", "1"]
    service = Service(settings_of(cli.parser().parse_args(asked)))

    class Live(dict):
        def values(self):
            assert service._changed._is_owned()  # pyright: ignore[reportAttributeAccessIssue]
            return super().values()

    service._live = Live()
    service.submit("v1", "one", None, {"text": "pads"}, {})
    with pytest.raises(Problem, match="the queue is full: 1 jobs wait"):
        service.submit("v1", "one", None, {"text": "pads"}, {})


def test_the_queue_is_bounded(models, track, tmp_path):
    with serving(models, tmp_path, "--queue", "2") as own:
        running = own.job(track, model="one", **LONG)["id"]
        while own.get(f"/v1/jobs/{running}").json["status"] == "queued":
            time.sleep(0.02)
        waiting = [own.job(track, model="one", **QUICK)["id"] for _ in range(2)]
        assert [own.get(f"/v1/jobs/{job}").json["position"] for job in waiting] == [0, 1]
        refused = own.form("/v1/jobs", {"model": "one", **QUICK}, [("input", track.read_bytes())])
        assert refused.status == 429
        assert int(refused.headers["Retry-After"]) >= 1
        own.post(f"/v1/jobs/{running}/cancel")
        assert [own.wait(job)["status"] for job in waiting] == ["done", "done"]


def test_models_leave_memory(models, track, tmp_path):
    """Where only one fits, the least recently used goes; one that never fits is refused."""
    need = max(model["bytes"] for model in start_models(models, tmp_path / "a"))
    with serving(models, tmp_path / "b", "--resident-memory", str(need * 1.5 / 1e9)) as own:
        for name in ("one", "two-7", "one"):
            assert own.wait(own.job(track, model=name, **QUICK)["id"])["status"] == "done"
            loaded = {model["name"]: model["loaded"] for model in own.get("/v1/models").json["models"]}
            assert {n for n, variant in loaded.items() if variant is not None} == {name}
            assert own.metric("clean_lm_resident_weights_bytes") <= need * 1.5
    with serving(models, tmp_path / "c", "--resident-memory", str(need * 0.5 / 1e9)) as own:
        failed = own.wait(own.job(track, model="one", **QUICK)["id"])
        assert "--resident-memory" in failed["error"]["detail"]


def start_models(models: Path, data: Path) -> list[dict]:
    with serving(models, data) as own:
        return own.get("/v1/models").json["models"]


def test_cancelled_while_it_waits_for_memory(models, track, tmp_path):
    """And deleted: the service still answers, ends at once, and the job does not come back."""
    need = max(model["bytes"] for model in start_models(models, tmp_path / "a"))
    options = ("--parallel", "2", "--resident-memory", str(need * 1.5 / 1e9))
    own = start(models, tmp_path / "b", *options)
    first = own.job(track, model="one", **LONG)["id"]
    while own.get(f"/v1/jobs/{first}").json["progress"] == 0:
        time.sleep(0.02)
    waits = own.job(track, model="two-7", **QUICK)["id"]
    time.sleep(0.3)
    assert own.get(f"/v1/jobs/{waits}").json["status"] == "loading"
    assert own.call("DELETE", f"/v1/jobs/{waits}").status == 204
    late = own.job(track, model="two-7", **QUICK)["id"]
    while own.get(f"/v1/jobs/{late}").json["status"] == "queued":
        time.sleep(0.02)
    own.post(f"/v1/jobs/{first}/cancel")
    own.post(f"/v1/jobs/{late}/cancel")
    own.stop()
    own.kill()
    with serving(models, tmp_path / "b") as again:
        assert [again.get(f"/v1/jobs/{job}").json["status"] for job in (first, late)] == ["cancelled", "cancelled"]
        assert again.get(f"/v1/jobs/{waits}").status == 404


# nothing is lost


def test_killed_and_started_again(models, track, tmp_path):
    """Finished results are there, what waited runs, what ran runs again: with the same sound."""
    own = start(models, tmp_path)
    done = own.wait(own.job(track, model="one", seed=1, **QUICK)["id"])
    sound = own.get(done["result"]["takes"][0]["url"]).body
    ran = own.job(track, model="one", seed=2, **{**QUICK, "duration": 8})["id"]
    waits = own.job(track, model="one", seed=1, **QUICK)["id"]
    while own.get(f"/v1/jobs/{ran}").json["progress"] < 0.1:
        time.sleep(0.01)
    own.kill()
    for half in ("upload-x", "jobs/x"):  # as if it had been killed while it took an upload
        (tmp_path / half).mkdir()
    with serving(models, tmp_path) as again:
        assert not [path for path in (tmp_path / "upload-x", tmp_path / "jobs" / "x") if path.exists()]
        assert again.get(done["result"]["takes"][0]["url"]).body == sound
        assert again.wait(ran)["status"] == "done"
        assert again.get(again.wait(waits)["result"]["takes"][0]["url"]).body == sound


def test_a_job_that_ends_the_service_is_not_tried_for_ever(models, track, tmp_path):
    identity = ""
    for _ in range(2):
        own = start(models, tmp_path)
        identity = identity or own.job(track, model="one", **LONG)["id"]
        while own.get(f"/v1/jobs/{identity}").json["progress"] == 0:
            time.sleep(0.01)
        own.kill()
    with serving(models, tmp_path) as own:
        failed = own.get(f"/v1/jobs/{identity}").json
        assert (failed["status"], "the service ended 2 times" in failed["error"]["detail"]) == ("failed", True)
        assert own.wait(own.post(f"/v1/jobs/{identity}/retry", QUICK).json["id"])["status"] == "done"


def test_ended_in_good_order(models, track, tmp_path):
    """SIGTERM: at once, with a listener; what ran is put back and is no attempt."""
    own = start(models, tmp_path)
    identity = own.job(track, model="one", **LONG)["id"]
    with socket.create_connection(("127.0.0.1", own.port)) as connection:
        connection.sendall(f"GET /v1/jobs/{identity}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        connection.recv(100)
        began = time.monotonic()
        own.stop()
        assert time.monotonic() - began < 8
    own.kill()
    rows = sqlite3.connect(tmp_path / "jobs.sqlite").execute("SELECT state, attempts FROM jobs").fetchall()
    assert rows == [("queued", 0)]


def test_a_full_disk_fails_the_job(models, track, tmp_path):
    """Here: no file may have more than 700 kB. The service goes on."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))

    with serving(models, tmp_path, before=limit) as own:
        failed = own.wait(own.job(track, model="one", prompt_seconds=1, duration=20)["id"])
        assert (failed["status"], failed["error"]["detail"][:16]) == ("failed", "the disk is full")
        refused = own.form("/v1/jobs", {"model": "one"}, [("input", bytes(800_000))])
        assert (refused.status, refused.json["detail"][:16]) == (507, "the disk is full")
        small = {**QUICK, "join": "rendered", "rate": "codec"}
        assert own.wait(own.job(track, model="one", **small)["id"])["status"] == "done"


def test_a_full_disk_at_the_start_moves_nothing(models, track, tmp_path):
    """The list of jobs is not damaged: it stays where it is for the next start."""
    with serving(models, tmp_path) as own:
        job = own.wait(own.job(track, model="one", **QUICK)["id"])
        own.stop()
    with pytest.raises(AssertionError, match=r"error: --data: .* cannot be opened"):
        start(models, tmp_path, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert list(tmp_path.glob("damaged-*")) == []
    with serving(models, tmp_path) as own:
        assert own.get(f"/v1/jobs/{job['id']}").json["result"] == job["result"]


def test_a_damaged_list_of_jobs_is_kept_aside(models, track, tmp_path):
    with serving(models, tmp_path) as own:
        own.wait(own.job(track, model="one", **QUICK)["id"])
        own.stop()
    content = (tmp_path / "jobs.sqlite").read_bytes()
    (tmp_path / "jobs.sqlite").write_bytes(b"x" * 100 + content[100:])
    with serving(models, tmp_path) as own:
        assert own.wait(own.job(track, model="one", **QUICK)["id"])["status"] == "done"
        assert any("damaged" in line for line in own.lines)
    (aside,) = tmp_path.glob("damaged-*/jobs.sqlite")
    assert aside.read_bytes()[100:] == content[100:]
    assert len(list(aside.parent.glob("jobs/*/take-1.wav"))) == 1


def test_results_expire(models, track, tmp_path):
    with serving(models, tmp_path) as own:
        jobs = [own.wait(own.job(track, model="one", **QUICK)["id"])["id"] for _ in range(3)]
        own.stop()
    size = sum(path.stat().st_size for path in (tmp_path / "jobs" / jobs[0]).iterdir())
    with serving(models, tmp_path, "--keep-gb", str(size * 2.5 / 1e9)) as own:
        time.sleep(0.5)
        assert [own.get(f"/v1/jobs/{job}").status for job in jobs] == [404, 200, 200]
        own.stop()
    with serving(models, tmp_path, "--keep-days", "1e-6") as own:
        time.sleep(0.5)
        assert [own.get(f"/v1/jobs/{job}").status for job in jobs] == [404, 404, 404]


# who may come in, and with what


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "127.0.0.1:1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "192.168.0.7:8000"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example:8000"}, 421),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost:3000"}, 403),
    ],
)
def test_hosts_and_origins(served, headers, status):
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.request("GET", "/v1/health", headers=headers)
    response = connection.getresponse()
    assert response.status == status, response.read()
    connection.close()


def test_a_web_page_that_may(models, tmp_path):
    origin = "http://localhost:3000"
    with serving(models, tmp_path, "--allow-origin", origin, "--allow-host", "studio.local") as own:
        asked = own.call("OPTIONS", "/v1/jobs", Origin=origin, Access_Control_Request_Method="POST")
        assert (asked.status, asked.headers["Access-Control-Allow-Origin"]) == (204, origin)
        answer = own.get("/v1/models", Origin=origin, Host="studio.local")
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
        assert own.get("/v1/models").headers["Access-Control-Allow-Origin"] is None


def test_the_token(models, track, tmp_path):
    token = "secret-of-eight"
    with serving(models, tmp_path, "--host", "0.0.0.0", "--token", token) as own:
        for path in ("/v1/models", "/metrics", "/api/models", "/v1/jobs/x", "/v1/openapi.json"):
            assert own.get(path).status == 401, path
            assert own.get(path, Authorization="Bearer wrong").status == 401
        assert own.get("/api/models").json == {"success": False, "error": own.get("/v1/models").json["detail"]}
        for path in ("/", "/health", "/docs"):
            assert own.get(path).status == 200, path
        assert own.get("/v1/models", Authorization=f"Bearer {token}").status == 200
        assert own.get(f"/v1/models?token={token}").status == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--host: 0.0.0.0 lets other machines in: give --token"),
        (["--token", "short"], "--token: expected 8 printable ASCII characters or more"),
        (["--models", "none"], "--models: none is no folder"),
        (["--parallel", "0"], "--parallel: got 0, expected a whole number from 1 to 64"),
        (["--resident-memory", "nan"], "--resident-memory: got nan"),
        (["--preload", "nobody"], "--preload: model: got 'nobody', expected one of one, two-7"),
    ],
)
def test_refused_at_the_start(models, tmp_path, capsys, options, said):
    given = ["serve", "--models", str(models), "--data", str(tmp_path), "--port", "0", *options]
    assert cli.main(given) == 1
    assert said in capsys.readouterr().err


def test_one_service_for_a_data_folder_and_a_port(served, models, tmp_path, capsys):
    with serving(models, tmp_path):
        assert cli.main(["serve", "--models", str(models), "--data", str(tmp_path), "--port", "0"]) == 1
        assert "is in use by another clean-lm serve" in capsys.readouterr().err
    taken = ["serve", "--models", str(models), "--data", str(tmp_path / "other"), "--port", str(served.port)]
    assert cli.main(taken) == 1
    assert f"--port: 127.0.0.1:{served.port} cannot be had" in capsys.readouterr().err


REFUSED = {
    "option": ({"tempo": 3}, 422, "'tempo': unknown option, expected some of model"),
    "kind": ({"takes": "many"}, 422, "takes: got 'many', expected a whole number"),
    "bounds": ({"temperature": -1}, 422, "temperature: got -1.0, expected 0 (greedy)"),
    "choice": ({"side": "middle"}, 422, "side: got 'middle', expected one of end, start"),
    "model": ({"model": "../one"}, 404, "model: got '../one', expected one of one, two-7"),
    "variant": ({"variant": "int3"}, 422, "variant: got 'int3', expected one of"),
    "takes": ({"takes": 9}, 422, "takes: got 9, this service allows 8"),
    "duration": ({"duration": 301}, 422, "duration: got 301, this service allows 300"),
    "prompt": ({"duration": 1}, 422, "duration: requested 1 s, but the prompt already has 1 s"),
    "seed": ({"seed": 2**64}, 422, "seed: got 18446744073709551616"),
    "path": ({"input": "/etc/passwd"}, 422, "input: got a text, expected a file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_command_lines_words(served, track, name):
    fields, status, said = REFUSED[name]
    answer = served.form("/v1/jobs", {"model": "one", **QUICK, **fields}, [("input", track.read_bytes())])
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert said in answer.json["detail"]
    assert str(served.lines) not in answer.json["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"{", "application/json", 400, "not readable JSON"),
        (b"[]", "application/json", 400, "expected a JSON object"),
        (b"[" * 100_000, "application/json", 400, "not readable JSON"),
        (b'{"model": 3}', "application/json", 422, "model: got 3, expected a text"),
        (b'{"model": "one", "input": "%%"}', "application/json", 422, "input: not readable as base64"),
        (b'{"model": "one", "input": "AAAA"}', "application/json", 422, "input: not readable as audio"),
        (b'{"model": "one", "text": "\\ud800", "duration": 2}', "application/json", 422, "expected Unicode text"),
        (b"x", "text/plain", 415, "expected multipart/form-data or application/json"),
        (b"x", "multipart/form-data", 400, "the form is not readable"),
        (b'{"model": "one", "model": "two-7"}', "application/json", 400, "'model': given twice"),
        (
            b'{"model": "one", "text": "a", "join": "glue"}',
            "application/json",
            422,
            "join: got 'glue', expected one of",
        ),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 422, "model: not given, expected one of one, two-7"),
        (
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\none\r\n',
            "multipart/form-data; boundary=x",
            400,
            "the form ends before its closing boundary",
        ),
    ],
)
def test_bodies_that_are_none(served, body, kind, status, said):
    answer = served.call("POST", "/v1/jobs", body, Content_Type=kind)
    assert (answer.status, said in answer.json["detail"]) == (status, True), answer.body


def test_large_bodies(models, tmp_path):
    """By their header before they are read, and without one as soon as they are too large."""
    with serving(models, tmp_path, "--body-mb", "0.1", "--max-audio", "2") as own:
        assert own.call("POST", "/v1/jobs", bytes(200_000), Content_Type="application/json").status == 413
        connection = http.client.HTTPConnection("127.0.0.1", own.port)
        pieces = (bytes(10_000) for _ in range(1000))
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        try:
            connection.request("POST", "/v1/jobs", pieces, headers, encode_chunked=True)
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered and closed in the middle
        else:
            assert connection.getresponse().status == 413
        connection.close()
        sf.write(tmp_path / "long.flac", np.zeros((32000 * 3, 1)), 32000)
        answer = own.form("/v1/jobs", {"model": "one"}, [("input", (tmp_path / "long.flac").read_bytes())])
        assert (answer.status, answer.json["detail"]) == (
            422, "input: has 3 s, this service takes 2 s: send a shorter part")  # fmt: skip
        assert list((tmp_path / "jobs").iterdir()) == []
        assert list(tmp_path.glob("upload-*")) == []


def test_clients_that_go_away(served, track):
    """In the middle of a body, of a stream, of events: neither threads nor files stay behind."""
    job = served.job(track, model="one", **LONG)["id"]
    served.get("/v1/health")
    before = served.metric("process_open_fds")
    head = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"
    for number in range(30):
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
            if number % 3 == 0:
                connection.sendall(b"POST /v1/jobs HTTP/1.1\r\n" + head)
                continue
            path = "stream" if number % 3 == 1 else "events"
            connection.sendall(f"GET /v1/jobs/{job}/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert b"200 OK" in connection.recv(1000)
    for _ in range(100):
        if served.metric("process_open_fds") <= before + 2:
            break
        time.sleep(0.1)
    assert served.metric("process_open_fds") <= before + 2
    served.post(f"/v1/jobs/{job}/cancel")
    assert served.wait(job)["status"] == "cancelled"


def test_unknown_paths(served):
    for method, path, status in (("GET", "/v2", 404), ("PUT", "/v1/jobs", 405), ("GET", "/page/../app.py", 404),
                                 ("GET", "/page/%2e%2e/app.py", 404), ("GET", "/v1/jobs/..%2f..", 404)):  # fmt: skip
        answer = served.call(method, path)
        assert answer.status == status, path
        assert answer.json["status"] == status


def test_the_documents(served):
    document = served.get("/v1/openapi.json").json
    assert document["openapi"] == "3.1.0"
    assert b"prompt_seconds" in served.get("/docs").body
    assert served.get("/").headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert served.metric("clean_lm_jobs_accepted_total") >= 1


# requests that nobody would write

VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(),
                   max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))  # fmt: skip
NAMES = st.sampled_from([*OPTIONS, "model", "variant", "input", "melody", "style", "session_id", "audio_data",
                         "model_name", "prompt_duration", "description"]) | st.text(max_size=8)  # fmt: skip
PATHS = ["/v1/jobs", "/v1/jobs/x/retry", "/v1/jobs/x/cancel", "/api/juce/process_audio", "/api/juce/continue_music",
         "/api/juce/retry_music"]  # fmt: skip
IDS = st.text(st.characters(codec="utf-8", min_codepoint=33), min_size=1, max_size=10)


@settings(max_examples=int(os.environ.get("CLEAN_LM_REQUESTS", "100")), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(path=st.sampled_from(PATHS), given=st.dictionaries(NAMES, VALUES, max_size=6), identity=IDS,
       raw=st.none() | st.binary(max_size=40))  # fmt: skip
def test_malformed_requests(served, path, given, identity, raw):
    """4xx, in the form that the path's client expects; the service goes on."""
    path = path.replace("/x/", f"/{quote(identity, safe='')}/")
    document = {"model": "none", "model_name": "none", **given}  # so that none of them is a job
    document = {name: "none" if name.startswith("model") else value for name, value in document.items()}
    body = json.dumps(document).encode() if raw is None else raw
    answer = served.call("POST", path, body, Content_Type="application/json")
    assert 400 <= answer.status < 500, (answer.status, answer.body)
    found = answer.json
    assert found["success"] is False if path.startswith("/api/") else found["status"] == answer.status
    for part in ("", "/stream", "/events", "/takes/1.wav", "/takes/x.wav"):
        answer = served.get(f"/v1/jobs/{quote(identity, safe='')}{part}")
        assert answer.status in (404, 405), part  # 405: with a slash in the id it is another path
    assert served.get(f"/api/juce/poll_status/{quote(identity, safe='')}").status in (200, 404)
    assert served.get("/health").json["status"] == "live"
