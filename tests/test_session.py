"""ONNX Runtime itself: its oldest version."""

import re
import tomllib

import onnxruntime as ort
import pytest

from clean_lm import cli
from clean_lm.language_model import LanguageModel
from clean_lm.session import OLDEST
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
