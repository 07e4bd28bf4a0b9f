"""The conformance kit: the Python runtime passes it, it is what its generator writes, and its runner sees mistakes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conformance
import make_conformance
import numpy as np
import onnx
import pytest
from conformance import KIT, check, difference, read
from conftest import ROOT
from onnx import numpy_helper

import export.text
from clean_lm.manifest import Manifest
from weights.text import load

CASES = list(read(KIT))


@pytest.mark.parametrize(("case", "bundle"), CASES, ids=[case["name"] for case, _ in CASES])
def test_the_runtime_passes(case: dict[str, Any], bundle: Path | None):
    rows = check(case, bundle)
    assert [row.what for row in rows] == list(case["expected"])
    assert [row for row in rows if not row.passed] == []


def test_the_cases_are_what_the_generator_writes(tmp_path: Path):
    """On the bundles that are there; floats within each case's tolerance, for they are of another machine."""
    make_conformance.write(tmp_path, make_conformance.cases(KIT))
    kit, again = (json.loads((folder / "cases.json").read_text(encoding="utf-8")) for folder in (KIT, tmp_path))
    assert {name: kit[name] for name in ("format", "version")} == {name: again[name] for name in ("format", "version")}
    made = list(read(tmp_path))
    assert [case["name"] for case, _ in made] == [case["name"] for case, _ in CASES]
    for (ours, _), (theirs, _) in zip(made, CASES, strict=True):
        assert ours.keys() == theirs.keys()
        for entry in ("do", "bundles", "within", "source"):
            assert ours[entry] == theirs[entry], ours["name"]
        assert same(ours["given"], theirs["given"]), ours["name"]
        for name, expected in theirs["expected"].items():
            assert difference(ours["expected"][name], expected) <= theirs["within"][name], (ours["name"], name)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two cases are given the same: floats within the rounding of another machine."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, np.ndarray) and ours.dtype.kind == "f":
        return difference(ours, theirs) <= 1e-6
    return bool(np.array_equal(ours, theirs))


def test_the_bundles_are_what_the_exporter_writes(bundle: Callable[..., Path], music: Callable[..., Path], tmp_path):
    t5 = tmp_path / "t5"
    t5.mkdir()
    export.text.write_graphs(load(make_conformance.write_t5(t5)), tmp_path)
    made = {
        "text": [(bundle("text"), "lm_"), (music("text"), "compression_"), (tmp_path, "text_encoder")],
        "standard": [(bundle("text", "standard"), "lm_")],
        "stereo": [(music("stereo"), "")],
        "melody": [(music("melody"), "lm_")],
    }
    for name, parts in made.items():
        folder = KIT / "bundles" / name
        compared = {path.name for there, prefix in parts for path in there.glob(f"{prefix}*.onnx")}
        assert compared == {path.name for path in folder.glob("*.onnx")}
        for there, prefix in parts:
            for path in there.glob(f"{prefix}*.onnx"):
                assert same_graph(path, folder / path.name), f"{name}/{path.name}: run tests/make_conformance.py"
    whole, kit = (Manifest.read(folder).document for folder in (music("stereo"), KIT / "bundles" / "stereo"))
    assert {**whole, "files": {}} == {**kit, "files": {}}
    assert whole["files"].keys() == kit["files"].keys()


def same_graph(ours: Path, theirs: Path) -> bool:
    """Whether two graphs are one, their weights within the rounding of another machine."""
    weights, rest = [], []
    for path in (ours, theirs):
        model = onnx.load(path)
        weights.append({t.name: numpy_helper.to_array(t) for t in model.graph.initializer})
        del model.graph.initializer[:]
        rest.append(model.graph.SerializeToString(deterministic=True))
    first, second = weights
    close = (np.allclose(first[name], second[name], rtol=0, atol=1e-6) for name in first)
    return rest[0] == rest[1] and first.keys() == second.keys() and all(close)


def test_what_is_shared():
    """One bundle beside another, as --codec and --text make them; what is in the folder is in a manifest."""
    standard, melody = (Manifest.read(KIT / "bundles" / name).document for name in ("standard", "melody"))
    for graph in ("compression_encode", "compression_decode", "compression_stream", "text_encoder"):
        assert standard["graphs"][graph]["file"] == f"../text/{graph}.onnx"
    assert melody["graphs"]["compression_decode"]["file"] == "../text/compression_decode.onnx"
    listed = {KIT / "bundles" / name / file for name in make_conformance.BUNDLES for file in manifest_files(name)}
    there = {path for path in (KIT / "bundles").rglob("*") if path.is_file() and path.name != "manifest.json"}
    assert {path.resolve() for path in listed} == {path.resolve() for path in there}


def manifest_files(name: str) -> list[str]:
    manifest = Manifest.read(KIT / "bundles" / name)
    files = list(manifest.document["files"])
    manifest.check_files(files)
    return files


def test_every_case_is_told_apart():
    names = [case["name"] for case, _ in CASES]
    assert len(set(names)) == len(names)
    assert {case["do"] for case, _ in CASES} == {name[3:] for name in vars(conformance) if name.startswith("do_")}
    assert {path.name for _, path in CASES if path} == set(make_conformance.BUNDLES)


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1, 2, 4], [1, 2, 3], 1),
        (np.array([[2.0, 1.0]]), np.array([[2.0, 0.5]]), 0.25),
        (np.array([2.0, np.nan]), np.array([2.0, 0.5]), np.nan),
        (np.array([2.0]), np.array([2.0, 0.5]), np.inf),
        (np.zeros((2, 1), np.int32), np.zeros((1, 2), np.int32), np.inf),
        (True, False, 1),
    ],
)
def test_differences(found: Any, expected: Any, error: float):
    np.testing.assert_equal(difference(found, expected), error)
    assert not conformance.Row("", "", error, 1e-4).passed


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, ROOT / "tests" / "conformance.py", *arguments]
    return subprocess.run(program, check=False, capture_output=True, text=True, cwd=ROOT)


def test_the_command_sees_another_code(tmp_path: Path):
    """A kit of two cases, one of which expects what is not so."""
    kit = json.loads((KIT / "cases.json").read_text(encoding="utf-8"))
    fine, other, *_ = (case for case in kit["cases"] if case["do"] == "uniforms")
    other["given"]["seed"] = "8"
    (tmp_path / "cases.json").write_text(json.dumps(kit | {"cases": [fine, other]}))
    (tmp_path / "arrays.bin").write_bytes((KIT / "arrays.bin").read_bytes())
    done = command(tmp_path)
    first, second, last = done.stdout.splitlines()
    assert (" ok " in first, " FAIL " in second, last, done.returncode) == (True, True, "1 failed", 1)
    (tmp_path / "cases.json").write_text(json.dumps(kit | {"cases": [fine]}))
    done = command(tmp_path)
    assert (done.stdout.splitlines()[-1], done.returncode) == ("all passed", 0)
