"""ONNX Runtime itself: its oldest version, and the kernels that it is asked for."""

import os
import re
import tomllib

import onnxruntime as ort
import pytest

from clean_lm import cli
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError, GraphInfo
from clean_lm.manifest_fields import TensorInfo
from clean_lm.session import OLDEST, TILES_OFF, Graph
from tests.support import ROOT

pytestmark = [pytest.mark.quick, pytest.mark.runtime]

BUNDLE = ROOT / "tests/golden/conformance/bundles/text"


@pytest.mark.parametrize("version", ["1.9.0", "1.20.1", "1.28.0", "0.30", "1.28.0.dev20260101+cpu"])
def test_an_old_onnxruntime_is_refused(monkeypatch, capsys, tmp_path, version):
    """It would end the process."""
    monkeypatch.setattr(ort, "__version__", version)
    message = f"onnxruntime {version} found, expected 1.29 or newer: pip install -U onnxruntime"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LanguageModel.load(BUNDLE)
    assert cli.main(["generate", "-o", str(tmp_path / "out.wav"), "--bundle", str(BUNDLE)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("version", ["1.29.0", "1.100.2", "2.0", "1.29.0.dev20260101"])
def test_newer_ones_are_taken(monkeypatch, version):
    monkeypatch.setattr(ort, "__version__", version)
    LanguageModel.load(BUNDLE)


def test_the_oldest_versions_are_the_same_everywhere():
    """Those that a job installs are the lower bounds in pyproject.toml, and the one that is refused is below."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    allowed = {name: bound for package in packages for name, bound in re.findall(r"^([\w-]+)>=([\d.]+),<\d+$", package)}
    pins = re.findall(r"^([\w-]+)==([\d.]+)\.0$", (ROOT / "constraints-oldest.txt").read_text(), re.M)
    assert len(allowed) == len(packages)
    assert dict(pins) == allowed
    assert allowed["onnxruntime"] == ".".join(map(str, OLDEST))


@pytest.mark.parametrize(
    ("dtype", "chosen", "expected"), [("int8", None, "1"), ("int8", "0", "0"), ("float32", None, None)]
)
def test_attention_reads_int8_caches_without_tiles(monkeypatch, tmp_path, dtype, chosen, expected):
    """ONNX Runtime sees the variable while such a session opens, and the application's own choice always."""
    monkeypatch.delenv(TILES_OFF, raising=False)
    if chosen is not None:
        monkeypatch.setenv(TILES_OFF, chosen)
    seen = []

    def opened(*_, **__):
        seen.append(os.environ.get(TILES_OFF))
        raise RuntimeError("no model")

    monkeypatch.setattr(ort, "InferenceSession", opened)
    caches = {"past_key_values.0.key": TensorInfo("past_key_values.0.key", dtype, (1, 2))}
    with pytest.raises(BundleError, match="no model"):
        Graph(tmp_path, GraphInfo("lm_inference", "a.onnx", "a.onnx.data", caches, {}), {}).open()
    assert seen == [expected]
    assert os.environ.get(TILES_OFF) == chosen
