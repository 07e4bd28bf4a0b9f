"""Graphs that the run's tests share: the same files as without sharing, and what is traced anew."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clean_lm.models import mert
from clean_lm.models.lm import LM
from export import onnx_graph
from export.lm_graphs import ATTENTION, lm_specs, stop_sort_at_top_k
from export.onnx_graph import TensorSpec, write
from tests.support import GOLDEN
from tests.traces import Traces, Unknown, describe
from weights.lm import load

pytestmark = pytest.mark.export

INPUTS = {"x": TensorSpec("x", torch.float32, ("texts", 3))}


@pytest.fixture
def fresh(traces: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Traces:
    """Shared by nothing, and with nothing in it; `traced` counts what it has traced."""
    assert isinstance(onnx_graph.trace, Traces)  # as every test of the run has it
    monkeypatch.setattr(onnx_graph, "trace", onnx_graph.trace.trace)
    (tmp_path / "traces").mkdir()
    return Traces(tmp_path / "traces")


@pytest.fixture
def traced(fresh: Traces, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    trace, seen = fresh.trace, []
    monkeypatch.setattr(fresh, "trace", lambda module, *rest: seen.append(module) or trace(module, *rest))
    return seen


def test_the_same_bytes(fresh: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A layer of a language model: what is traced, what is then shared, and what is read back."""
    model = load(GOLDEN / "text")
    c, weights = replace(model.config, layers=1), model.weights("lm")
    inputs, outputs = lm_specs(c, "ort", torch.float32)
    for name in ("traced", "shared", "read"):
        if name == "shared":
            monkeypatch.setattr(onnx_graph, "trace", fresh)
        (tmp_path / name).mkdir()
        module = LM(c, ATTENTION["ort"]())
        path = tmp_path / name / "lm.onnx"
        write(module, weights, torch.float32, inputs, outputs, path, change=stop_sort_at_top_k)
    for file in ("lm.onnx", "lm.onnx.data"):
        first, *others = ((tmp_path / name / file).read_bytes() for name in ("traced", "shared", "read"))
        assert others == [first, first], file
    assert len(list(fresh.folder.glob("*.onnx"))) == 1


def test_what_is_traced_anew(fresh: Traces, traced: list[nn.Module], monkeypatch: pytest.MonkeyPatch):
    """Other sizes, types and inputs, and a module whose code is another for the time of a test."""

    def operators(module: nn.Module, dtype: torch.dtype = torch.float32, inputs: Any = INPUTS) -> list[str]:
        return [node.op_type for node in fresh(module, dtype, inputs).graph]

    plain = operators(mert.Linear(3, 4))
    assert operators(mert.Linear(3, 4)) == plain
    assert len(traced) == 1
    operators(mert.Linear(3, 5))
    assert len(traced) == 2
    half = {"x": TensorSpec("x", torch.float16, ("texts", 3))}
    operators(mert.Linear(3, 4), torch.float16, half)
    assert len(traced) == 3
    with monkeypatch.context() as patch:
        patch.setattr(mert.Linear, "forward", lambda self, x: (x @ self.weight + self.bias).relu())
        assert "Relu" in operators(mert.Linear(3, 4))
        assert len(traced) == 4
    assert operators(mert.Linear(3, 4)) == plain
    assert len(traced) == 4


def test_a_tests_own_module_is_not_shared(fresh: Traces, traced: list[nn.Module]):
    class Own(mert.Linear):
        pass

    with pytest.raises(Unknown, match="Own"):
        describe(Own(3, 4))
    for _ in range(2):
        fresh(Own(3, 4), torch.float32, INPUTS)
    assert len(traced) == 2
    assert list(fresh.folder.iterdir()) == []


def test_settings_and_tensors_tell_modules_apart():
    modules = [mert.Linear(3, 4) for _ in range(4)]
    vars(modules[1])["count"] = 1
    vars(modules[2])["filters"] = torch.zeros(2)
    vars(modules[3])["filters"] = torch.ones(2)
    assert len({repr(describe(module)) for module in modules}) == 4
    assert describe(mert.Linear(3, 4)) == describe(mert.Linear(3, 4))
