"""The plugin's whole session with clean-lm serve, by a client that knows the plugin and not the service."""

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from tests.plugin_client import PluginClient, Refused, Session
from tests.service import serving
from tests.test_cli import tone

pytestmark = pytest.mark.runtime

RATE = 44100
SECONDS = 5
PROMPT = 2  # seconds
WHOLE = 30  # seconds that the plugin always gets
MODEL = "loops-12"
OPTIONS: dict[str, Any] = {"model_name": MODEL, "prompt_duration": PROMPT, "top_k": 250, "temperature": 1.0,
                           "cfg_coef": 3.0, "description": "", "seed": 7}  # fmt: skip


@pytest.fixture(scope="module")
def models(music: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of them as two checkpoints, and one that cannot be loaded."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("loops-3", MODEL, "plain", "torn"):
        shutil.copytree(music("text", True), folder / name)
    graph = folder / "torn" / "lm_inference.onnx"
    graph.write_bytes(b"torn".ljust(graph.stat().st_size, b"\0"))
    return folder


@pytest.fixture(scope="module")
def client(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PluginClient]:
    with serving(models, tmp_path_factory.mktemp("data")) as served:
        yield PluginClient(served.base)


@pytest.fixture(scope="module")
def recorded() -> np.ndarray:
    """What a musician has recorded: int16 [samples, 2]."""
    return np.round(tone(SECONDS, RATE, 2, 0.3) * 32767).astype(np.int16)


@pytest.fixture(scope="module")
def continued(client: PluginClient, recorded: np.ndarray) -> tuple[Session, np.ndarray]:
    """A continuation, and its sound."""
    session = client.continue_music(wav(recorded), **OPTIONS)
    return session, sound(client, session)


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, RATE, "PCM_16", format="WAV")
    return file.getvalue()


def sound(client: PluginClient, session: Session) -> np.ndarray:
    """A completed session's samples, int16 [samples, 2], at the rate of what was recorded."""
    found = client.wait(session)
    assert found.status == "completed", found.error
    assert found.wav is not None
    file = sf.SoundFile(io.BytesIO(found.wav))
    assert (file.format, file.subtype, file.samplerate, file.channels) == ("WAV", "PCM_16", RATE, 2)
    return file.read(dtype="int16")


def assert_untouched(found: np.ndarray, track: np.ndarray) -> None:
    """Assert that a result begins with a track, scaled down as a whole only if it would clip."""
    start, wanted = found[: len(track)].astype(float), track.astype(float)
    scale = (start * wanted).sum() / (wanted**2).sum()
    assert scale <= 1.0001
    assert np.abs(start - scale * wanted).max() <= 1  # of the last bit
    if scale < 0.9999:
        assert np.abs(found.astype(int)).max() >= 32766, f"scaled by {scale} without need"


def test_health_is_answered_in_time(client):
    for _ in range(20):
        client.health()


def test_models_are_listed_and_checkpoints_grouped(client):
    entries = {entry["name"]: entry for group in client.models().values() for entry in group}
    assert set(entries) == {"loops", "plain", "torn"}
    assert entries["plain"]["type"] == "single"
    assert [one["epoch"] for one in sorted(entries["loops"]["checkpoints"], key=lambda one: one["epoch"])] == [3, 12]
    assert len(set(client.paths())) == 4


def test_process_audio_gives_prompt_and_continuation(client, recorded):
    path = next(path for path in client.paths() if path.endswith(MODEL))
    options = OPTIONS | {"model_name": path}
    session = client.process(wav(recorded), **options)
    assert session.seed == 7
    found = sound(client, session)
    assert abs(len(found) - WHOLE * RATE) <= 1
    assert np.abs(found[PROMPT * RATE :]).max() > 0
    absent = dict.fromkeys(("top_k", "temperature", "cfg_coef"))
    defaults = client.process(wav(recorded), model_name=path, prompt_duration=PROMPT, seed=7, **absent)
    np.testing.assert_array_equal(sound(client, defaults), found)
    first = wav(np.concatenate([recorded[: PROMPT * RATE], -recorded[PROMPT * RATE :]]))
    np.testing.assert_array_equal(sound(client, client.process(first, **options)), found)


def test_what_is_shorter_than_the_prompt_is_filled_up(client, recorded):
    found = sound(client, client.process(wav(recorded[:RATE]), **OPTIONS))
    assert abs(len(found) - WHOLE * RATE) <= 1


def test_continue_music_leaves_the_track_as_it_is(client, recorded, continued):
    session, found = continued
    assert session.seed == 7
    assert abs(len(found) - (SECONDS - PROMPT + WHOLE) * RATE) <= 1
    assert_untouched(found, recorded[: (SECONDS - PROMPT) * RATE])  # there the old service's prompt begins
    assert np.abs(found[SECONDS * RATE :]).max() > 0


def test_retry_runs_the_input_again_never_the_result(client, continued):
    session, found = continued
    parameters = {name: value for name, value in OPTIONS.items() if name != "seed"}
    second = client.retry(session.id, **parameters, seed=8)
    other = sound(client, second)
    assert second.id != session.id
    assert other.shape == found.shape
    assert (other != found).any()
    third = client.retry(second.id, **parameters, seed=7)
    np.testing.assert_array_equal(sound(client, third), found)


def test_health_and_queue_while_something_runs(client, recorded):
    running, waiting = [client.process(wav(recorded), **OPTIONS) for _ in range(2)]
    reply = client.poll(waiting.id)
    assert reply["queue_status"]["status"] == "queued"
    assert reply["queue_status"]["total_queued"] >= 1
    for _ in range(10):
        client.health()
    for session in (running, waiting):
        found = client.wait(session)
        assert found.status == "completed"
        assert len({*found.progress}) > 1


def test_a_model_that_cannot_be_loaded_fails_with_a_reason(client, recorded):
    found = client.wait(client.process(wav(recorded), **OPTIONS | {"model_name": "torn"}))
    assert (found.status, found.wav) == ("failed", None)


@pytest.mark.parametrize(
    "change",
    [
        {"audio_data": None},
        {"audio_data": ""},
        {"audio_data": "no base64!"},
        {"audio_data": base64.b64encode(b"no sound").decode()},
        {"audio_data": 5},
        {"model_name": "nobody's"},
        {"model_name": 5},
        {"prompt_duration": 0},
        {"prompt_duration": -1},
        {"prompt_duration": "long"},
        {"top_k": "many"},
        {"top_k": -1},
        {"temperature": -1},
        {"temperature": "hot"},
        {"cfg_coef": "much"},
        {"seed": "x"},
        {"seed": 1.5},
        {"description": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("route", ["process_audio", "continue_music"])
def test_wrong_requests_are_refused(client, recorded, route, change):
    document = {"audio_data": base64.b64encode(wav(recorded)).decode()} | OPTIONS | change
    with pytest.raises(Refused) as refused:
        client.begin_raw(route, json.dumps(document).encode())
    assert refused.value.status == 400


@pytest.mark.parametrize("route", ["process_audio", "continue_music"])
def test_a_prompt_that_leaves_nothing_to_make_is_refused(client, recorded, route):
    long = wav(np.concatenate([recorded] * (WHOLE // SECONDS + 1)))
    document = OPTIONS | {"audio_data": base64.b64encode(long).decode(), "prompt_duration": WHOLE}
    with pytest.raises(Refused) as refused:
        client.begin_raw(route, json.dumps(document).encode())
    assert refused.value.status == 400


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'"text"', b"\xff\xfe", b"{"])
@pytest.mark.parametrize("route", ["process_audio", "continue_music", "retry_music"])
def test_bodies_that_are_no_object_are_refused(client, route, body):
    with pytest.raises(Refused) as refused:
        client.begin_raw(route, body)
    assert refused.value.status == 400


@pytest.mark.parametrize("session", ["none", "0" * 32, "x" * 3000, "a%20b%00c"])
def test_unknown_sessions(client, session):
    with pytest.raises(Refused) as refused:
        client.retry(session, **OPTIONS)
    assert refused.value.status == 404
    assert client.poll(session)["status"] == "unknown"


def test_a_track_of_30_megabytes(client):
    seconds = 128
    track = np.round(tone(seconds, RATE, 2, 0.3) * 32767).astype(np.int16)
    assert len(base64.b64encode(wav(track))) > 30e6
    found = sound(client, client.continue_music(wav(track), **OPTIONS))
    assert abs(len(found) - (seconds - PROMPT + WHOLE) * RATE) <= 1
    assert_untouched(found, track[: (seconds - PROMPT) * RATE])


def test_seeds_that_mean_any(client, recorded):
    options = {name: value for name, value in OPTIONS.items() if name != "seed"}
    seeds = [client.process(wav(recorded), **options, **seed).seed for seed in
             ({}, {"seed": -1}, {"seed": None}, {"seed": ""})]  # fmt: skip
    assert len(set(seeds)) == 4
