"""The programs of examples/ and of the README run as they stand on the demo's bundle, and write what they say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.support import ROOT

pytestmark = pytest.mark.examples
OUT = 5.0  # seconds: the loop's 4, and 1 that is generated

# A stand-in for the sounddevice package: a sound card that keeps what it is given.
SOUND_CARD = """
import numpy as np

class PortAudioError(Exception):
    pass

class OutputStream:
    def __init__(self, rate, channels, dtype):
        if {broken}:
            raise PortAudioError("no output device")
        self.played = []
    def __enter__(self):
        return self
    def write(self, frames):
        self.played.append(frames)
    def __exit__(self, *_):
        np.save({played!r}, np.concatenate(self.played))
"""


def run(name: str, *arguments: object, modules: Path | None = None) -> str:
    """Run an example in a process of its own; what it prints."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(str(folder) for folder in (modules, ROOT) if folder)}
    command = [sys.executable, ROOT / "examples" / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seconds(path: Path) -> float:
    return sf.info(path).duration


def sound_card(folder: Path, broken: bool = False) -> Path:
    """A folder with the stand-in; returns it for PYTHONPATH. What is played goes to played.npy in it."""
    text = SOUND_CARD.format(played=str(folder / "played.npy"), broken=broken)
    (folder / "sounddevice.py").write_text(text, encoding="utf-8")
    return folder


def test_all_are_run():
    """A program that is added to examples/ is added here."""
    here = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "examples").glob("*.py") if f'"{path.name}"' not in here] == []


def test_continue(demo_bundle, tmp_path):
    out = tmp_path / "out.wav"
    said = run("continue.py", "--bundle", demo_bundle, "--output", out, "--duration", OUT)
    assert said.startswith(f"{out}: 5 s")
    assert seconds(out) == OUT


def test_stream(demo_bundle, tmp_path):
    """The same samples on a sound card as in a file."""
    out, arguments = (
        tmp_path / "out.wav",
        ("--bundle", demo_bundle, "--duration", OUT, "--output", tmp_path / "out.wav"),
    )
    assert "playing" in run("stream.py", *arguments, modules=sound_card(tmp_path))
    assert not out.exists()
    assert str(out) in run("stream.py", *arguments, modules=sound_card(tmp_path, broken=True))
    played, written = np.load(tmp_path / "played.npy"), sf.read(out, dtype="float32", always_2d=True)[0]
    assert len(played) == OUT * sf.info(out).samplerate
    np.testing.assert_allclose(written, np.clip(played, -1, 1), atol=2**-15)  # 16 bits


def test_takes(demo_bundle, tmp_path):
    """Different takes, the second of which is the first of the next seed."""
    arguments = ("--bundle", demo_bundle, "--output", tmp_path, "--duration", OUT)
    run("takes.py", *arguments, "--takes", 2)
    first, second = (sf.read(tmp_path / f"take-{number}.wav")[0] for number in (1, 2))
    assert not np.array_equal(first, second)
    run("takes.py", *arguments, "--takes", 1, "--seed", 2)
    np.testing.assert_allclose(sf.read(tmp_path / "take-1.wav")[0], second, atol=1e-4)


def test_batch(demo_bundle, tmp_path):
    """Two rows, whose files are there; the same job once more has nothing to do."""
    arguments = ("--bundle", demo_bundle, "--output", tmp_path / "out", "--duration", OUT)
    said = run("batch.py", *arguments)
    assert "2 rows drawn" in said
    assert "loop/ambient.wav: seed" in said
    assert seconds(tmp_path / "out" / "audio" / "loop" / "drum and bass.wav") == OUT
    assert "0 rows drawn, 2 were done already" in run("batch.py", *arguments)


def test_long(demo_bundle, tmp_path):
    said = run("long.py", "--bundle", demo_bundle, "--output", tmp_path / "out.wav", "--duration", 31, "--stride", 25)
    assert "windows of 30 s, one every 25 s" in said
    assert seconds(tmp_path / "out.wav") == 31


def test_melody(tmp_path):
    assert "noise" in run("melody.py", "--output", tmp_path / "out.wav", "--duration", 1)
    assert seconds(tmp_path / "out.wav") == 1


def test_own_sampler(demo_bundle, tmp_path):
    """min-p of 1 keeps the most probable code alone, as the graph's own greedy draw does."""
    run("own_sampler.py", "--bundle", demo_bundle, "--output", tmp_path / "own.wav", "--duration", OUT, "--min-p", 1)
    greedy = ("--temperature", 0, "--duration", OUT)
    run("continue.py", "--bundle", demo_bundle, "--output", tmp_path / "greedy.wav", *greedy)
    own, expected = (sf.read(tmp_path / name)[0] for name in ("own.wav", "greedy.wav"))
    np.testing.assert_array_equal(own, expected)


# The README's programs


@pytest.fixture
def checkout(demo_bundle, tmp_path, monkeypatch) -> Path:
    """A folder with demo/ and build/bundle, as the README's programs are run in; the current one."""
    (tmp_path / "build").mkdir()
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "build" / "bundle").symlink_to(demo_bundle)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(language: str) -> str:
    """The README's only program in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return found


def test_readme_python(checkout):
    exec(program("python"), {})
    assert seconds(checkout / "out.wav") == 10


def test_readme_javascript(checkout):
    """Both programs of the README write the same sound."""
    modules = ROOT / "js" / "node_modules"
    if not shutil.which("node") or not modules.exists():
        pytest.skip("needs node and js/node_modules: ONNXRUNTIME_NODE_INSTALL=skip npm ci --prefix js")
    (checkout / "node_modules").mkdir()
    (checkout / "node_modules" / "clean-lm").symlink_to(ROOT / "js")
    (checkout / "node_modules" / "onnxruntime-node").symlink_to(modules / "onnxruntime-node")
    (checkout / "out.mjs").write_text(program("js"), encoding="utf-8")
    done = subprocess.run(["node", "out.mjs"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    javascript = sf.read("out.wav")[0]
    exec(program("python"), {})
    np.testing.assert_allclose(javascript, sf.read("out.wav")[0], atol=2e-4)
