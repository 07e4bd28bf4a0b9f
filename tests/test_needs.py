"""What an export takes of memory and disk: little of the one, no more than was said of both, or it does not begin."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clean_lm import memory
from demo.checkpoint import SIZES, TINY, write, xp_cfg
from export import needs, quantize
from export.commands import ExportError
from export.lm import export
from tests.support import GOLDEN, ROOT
from weights.lm import audiocraft, load

pytestmark = pytest.mark.export

TEXT = GOLDEN / "text" / "state_dict.bin"
UNITS = {"GB": 1e9, "MB": 1e6}
# Exports a checkpoint, and prints the most anonymous memory and the most disk that it took, in bytes.
WATCHED = """
import sys, threading
from pathlib import Path
from export import quality
from export.lm import export

checkpoint, folder = map(Path, sys.argv[1:])
quality.FRAMES = quality.GREEDY = 4
peaks, done = {"anonymous": 0, "disk": 0}, threading.Event()

def anonymous():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024

def watch():
    while not done.wait(0.01):
        peaks["anonymous"] = max(peaks["anonymous"], anonymous())
        try:
            disk = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
        except FileNotFoundError:
            continue
        peaks["disk"] = max(peaks["disk"], disk)

threading.Thread(target=watch, daemon=True).start()
export(checkpoint, folder / "bundle", variants=["int8"])
done.set()
print(*peaks.values())
"""


def said(stderr: str) -> tuple[float, float]:
    """What an export said that it needs: bytes of disk and of memory."""
    found = re.search(r"^needs ([\d.]+) (..) of disk and ([\d.]+) (..) of memory$", stderr, re.MULTILINE)
    assert found, stderr
    return float(found[1]) * UNITS[found[2]], float(found[3]) * UNITS[found[4]]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_weights(tmp_path):
    """Half a gigabyte in float32: the process holds no copy of it beside the libraries, and what it said is enough."""
    config = replace(TINY, layers=7, heads=16, dim=1024)
    write(tmp_path / "state_dict.bin", audiocraft(config), xp_cfg(config), torch.float16, seed=0)
    float32 = 2 * (tmp_path / "state_dict.bin").stat().st_size
    assert float32 > 400e6
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", WATCHED, tmp_path / "state_dict.bin", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "state_dict.bin").unlink()
    assert done.returncode == 0, done.stderr
    anonymous, disk = map(int, done.stdout.splitlines()[-1].split())
    disk_said, memory_said = said(done.stderr)
    libraries = 350e6  # what Python, PyTorch and ONNX Runtime hold without a model
    assert anonymous - libraries < 0.75 * float32
    assert anonymous < memory_said
    assert 0.85 * disk_said < disk < disk_said


@pytest.mark.parametrize("size", [size for size in SIZES if size != "tiny"])
def test_eight_gigabytes_are_enough(size):
    """For every released size, in the variants that CPUs run."""
    c = SIZES[size]
    parameters = sum(torch.Size(piece.shape).numel() for row in audiocraft(c).values() for piece in row.pieces)
    wanted = [needs.of_export(c, parameters, [name]) for name in ("mixed", "int8", "fp16")]
    assert max(need.memory for need in wanted[:2]) < 8e9
    assert all(4 * parameters < need.disk < 7 * parameters for need in wanted)


def test_too_little_memory_is_said_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available", lambda: 500_000_000)
    with pytest.raises(ExportError, match=r"^needs 9\d\d\.\d MB of memory, this machine has 500\.0 MB available: "):
        export(TEXT, tmp_path / "bundle", variants=["int8"])
    assert not list(tmp_path.iterdir())
    assert min(said(capsys.readouterr().err)) > 0


def test_too_little_disk_is_said_first(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ExportError, match=r"1\.0 kB free, \d\.\d MB needed; make room or choose another --out"):
        export(TEXT, tmp_path / "bundle", variants=["int8"])
    assert not list(tmp_path.iterdir())


def test_more_variants_say_what_they_need(bundle, tmp_path, monkeypatch, capsys):
    """Less than with the export of fp32; too little of either is said before anything is written."""
    copied, config = Path(shutil.copytree(bundle("text"), tmp_path / "bundle")), load(TEXT).config
    parameters = sum(path.stat().st_size for path in copied.glob("lm_*.data")) // 4
    quantize.add(copied, ["int8"])
    disk, memory_said = said(capsys.readouterr().err)
    exported = needs.of_export(config, parameters, ["int8"])
    assert disk == pytest.approx(exported.disk - 4 * parameters - needs.PADDING * config.layers, rel=0.1)
    assert memory_said == pytest.approx(exported.memory, rel=0.1)
    before = {path: path.stat().st_mtime_ns for path in copied.iterdir()}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ExportError, match=r"bundle: 1\.0 kB free, \d+\.\d .B needed; make room$"):
        quantize.add(copied, ["int4"])
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available", lambda: 500_000_000)
    with pytest.raises(ExportError, match=r"of memory, this machine has 500\.0 MB available"):
        quantize.add(copied, ["int4"])
    assert before == {path: path.stat().st_mtime_ns for path in copied.iterdir()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error")])
def test_what_ends_while_a_variant_is_measured_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*_: object) -> None:
        assert list(tmp_path.glob(".bundle.*.partial/lm_inference.int8.onnx"))
        raise error

    monkeypatch.setattr(quantize, "measure", fail)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        export(TEXT, tmp_path / "bundle", variants=["int8"])
    assert not list(tmp_path.iterdir())
