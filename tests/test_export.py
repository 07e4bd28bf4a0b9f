"""What export writes, what it refuses, and what is left when it is interrupted."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from clean_lm.manifest import sha256
from clean_lm.models.config import ConfigError
from export import onnx_graph as graph_module
from export.bundle_writer import ExportError, new_folder
from export.lm import defaults, export, validate
from export.onnx_graph import warnings_are_errors
from tests.support import ATTENTION, GOLDEN
from weights.checkpoint import open_lm
from weights.lm import read_config

pytestmark = pytest.mark.export

TEXT = GOLDEN / "text" / "state_dict.bin"
ROOT = Path(__file__).parents[1]
SAMPLING = {"cfg_coef": 3.0, "top_k": 250, "top_p": 0.0, "temperature": 1.0}


def load(bundle: Path, graph: str = "lm_inference") -> onnx.ModelProto:
    return onnx.load(bundle / f"{graph}.onnx", load_external_data=False)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_not_one_warning(tmp_path):
    """The command in a process where every warning is an error; nothing but progress on stderr."""
    done = run("export/lm.py", "--ckpt", TEXT, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    needs, *said = done.stderr.splitlines()
    assert re.fullmatch(r"needs \d\.\d MB of disk and \d{3}\.\d MB of memory", needs)
    assert said == ["lm_condition.onnx: tracing", "lm_inference.onnx: tracing", "comparing with the PyTorch modules"]
    files = ["lm_condition.onnx", "lm_condition.onnx.data", "lm_inference.onnx", "lm_inference.onnx.data"]
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == [*files, "manifest.json"]
    for part in (*files, "0.28 M parameters", "agrees with the PyTorch modules: 42 calls"):
        assert part in done.stdout


def test_a_warning_ends_the_export():
    with pytest.raises(UserWarning), warnings_are_errors():
        warnings.warn("traced a value", UserWarning, stacklevel=1)


@pytest.mark.parametrize("attention", ATTENTION)
def test_same_checkpoint_same_bytes(bundle, tmp_path, attention):
    export(TEXT, tmp_path / "again", attention)
    for path in bundle("text", attention).iterdir():
        assert sha256(path) == sha256(tmp_path / "again" / path.name), path.name


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("graph", ["lm_inference", "lm_condition"])
def test_the_file_is_clean(bundle, attention, graph):
    """Checked by onnx; no local path, source line or leftover name of the exporter in it."""
    path = bundle("text", attention) / f"{graph}.onnx"
    model = load(path.parent, graph)
    if attention == "standard" or graph == "lm_condition":
        onnx.checker.check_model(str(path), full_check=True)
        assert {opset.domain for opset in model.opset_import} == {""}
    else:
        assert {opset.domain for opset in model.opset_import} == {"", "com.microsoft"}
        own = {node.op_type for node in model.graph.node if node.domain}
        assert own == {"GroupQueryAttention", "MultiHeadAttention"}
    assert not model.functions
    content = path.read_bytes()
    for leftover in (b".py", b"/home", b"/tmp", str(ROOT).encode(), b"Traceback", b"pkg.torch"):
        assert leftover not in content, leftover
    assert model.producer_name == "clean_lm"
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("attention", ATTENTION)
def test_the_contract(bundle, attention):
    """Names, types and symbolic sizes, as CONTRACT.md has them."""
    manifest = json.loads((bundle("text", attention) / "manifest.json").read_text())
    inference = manifest["graphs"]["lm_inference"]
    found = {t["name"]: (t["dtype"], t["shape"]) for t in inference["inputs"]}
    cache, cross = ["rows", 4, "capacity", 16], ["texts", 4, "text", 16]
    expected = {
        "codes": ("int64", ["rows", 4, "columns"]),
        "position": ("int64", [1]),
        "uniform": ("float32", ["batch", 4]),
        **{name: ("float32", []) for name in ("cfg_coef", "temperature", "top_p")},
        "top_k": ("int64", []),
        **{f"past_key_values.{i}.{kv}": ("float32", cache) for i in range(3) for kv in ("key", "value")},
        **{f"cross_key_values.{i}.{kv}": ("float32", cross) for i in range(3) for kv in ("key", "value")},
    }
    assert found == expected
    present = cache if attention == "ort" else ["rows", 4, "columns", 16]
    assert {t["name"]: (t["dtype"], t["shape"]) for t in inference["outputs"]} == {
        "next_codes": ("int64", ["batch", 4]),
        "logits": ("float32", ["batch", 4, 64]),
        **{f"present.{i}.{kv}": ("float32", present) for i in range(3) for kv in ("key", "value")},
    }
    condition = manifest["graphs"]["lm_condition"]
    assert {t["name"]: t["shape"] for t in condition["inputs"]} == {
        "text_states": ["texts", "text", 768],
        "text_mask": ["texts", "text"],
    }
    assert {t["name"]: t["shape"] for t in condition["outputs"]} == {
        f"cross_key_values.{i}.{kv}": cross for i in range(3) for kv in ("key", "value")
    }
    session = ort.InferenceSession(str(bundle("text", attention) / "lm_inference.onnx"))
    assert {t.name: t.shape for t in session.get_inputs()} == {name: shape for name, (_, shape) in expected.items()}


def test_the_manifest(bundle):
    out = bundle("stereo")
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["cache_update"]) == ("clean_lm", 1, "in_place")
    assert manifest["model"] == {
        "layers": 3,
        "heads": 4,
        "head_dim": 12,
        "dim": 48,
        "codebooks": 8,
        "card": 64,
        "special_token": 64,
        "delays": [0, 0, 1, 1, 2, 2, 3, 3],
        "max_duration": 30.0,
        "frame_rate": None,
        "sample_rate": 32000,
        "channels": 2,
        "text_dim": 768,
        "text_encoder": "t5-base",
    }
    assert manifest["defaults"] == SAMPLING | {"duration": 30.0, "extend_stride": 18.0}
    files = {path.name for path in out.iterdir()} - {"manifest.json"}
    assert manifest["files"].keys() == files
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": (out / name).stat().st_size, "sha256": sha256(out / name)}


@pytest.mark.parametrize("name", ["audiogen", "text"])
@pytest.mark.parametrize(
    ("max_duration", "musicgen", "audiogen"),
    [
        (60.0, (30.0, 18.0), (10.0, 2.0)),
        (30.0, (30.0, 18.0), (10.0, 2.0)),
        (20.0, (20.0, 18.0), (10.0, 2.0)),
        (18.0, (18.0, 10.8), (10.0, 2.0)),
        (10.0, (10.0, 6.0), (10.0, 2.0)),
        (5.0, (5.0, 3.0), (5.0, 2.0)),
        (2.0, (2.0, 1.2), (2.0, 0.4)),
    ],
)
def test_defaults(name, max_duration, musicgen, audiogen):
    """Upstream's where it takes them: no longer than a window, and a stride below it."""
    config = replace(read_config(open_lm(GOLDEN / name)), max_duration=max_duration)
    duration, stride = audiogen if name == "audiogen" else musicgen
    assert defaults(config) == SAMPLING | {"duration": duration, "extend_stride": pytest.approx(stride)}
    assert stride < max_duration


def test_defaults_of_audiogen(bundle):
    manifest = json.loads((bundle("audiogen") / "manifest.json").read_text())
    assert manifest["defaults"] == SAMPLING | {"duration": 10.0, "extend_stride": 2.0}


def test_heads_are_padded_for_the_kernel_only(bundle):
    """A head size of 12 becomes 16 in the caches of `ort`; text and `standard` keep 12."""
    sizes = {}
    for attention in ATTENTION:
        manifest = json.loads((bundle("stereo", attention) / "manifest.json").read_text())
        inputs = {
            t["name"]: t["shape"][3] for t in manifest["graphs"]["lm_inference"]["inputs"] if "key_values" in t["name"]
        }
        sizes[attention] = (inputs["past_key_values.0.key"], inputs["cross_key_values.0.key"])
    assert sizes == {"ort": (16, 12), "standard": (12, 12)}


def test_weights_are_where_a_step_needs_them(bundle):
    """The keys and values of the text belong to lm_condition: not in the graph that every step reads."""
    sizes = {name: (bundle("text") / f"{name}.onnx.data").stat().st_size for name in ("lm_inference", "lm_condition")}
    c = {"dim": 64, "layers": 3, "codebooks": 4, "card": 64, "text": 768}
    step = c["layers"] * 14 * c["dim"] ** 2 + c["codebooks"] * (2 * c["card"] + 1) * c["dim"]
    once = c["layers"] * 2 * c["dim"] ** 2 + c["text"] * c["dim"]
    assert 0 <= sizes["lm_inference"] - 4 * step < 4096 * 20
    assert 0 <= sizes["lm_condition"] - 4 * once < 4096 * 5


def test_large_tensors_start_on_a_page(bundle):
    offsets = [
        int(entry.value)
        for tensor in load(bundle("text")).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) > 15
    assert all(offset % 4096 == 0 for offset in offsets)


def test_the_sinusoid_has_upstreams_periods(bundle):
    """A constant by torch's own power: numpy's differs in the last bit, which is 1e-4 at column 1500."""
    model = load(bundle("text"))
    [period] = [t for t in model.graph.initializer if t.name == "period"]
    exponent = torch.arange(32, dtype=torch.float32) / 31
    upstream = torch.full([], 10_000, dtype=torch.float32) ** exponent
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(period), upstream.numpy())


@pytest.mark.parametrize("attention", ATTENTION)
def test_float16(bundle, language_model, attention):
    """Half the size, caches in float16; close to the float32 bundle, whose draws it mostly repeats."""
    half, full = bundle("finetune_fp16", attention, "fp16"), bundle("finetune_fp16", attention)
    ratio = (half / "lm_inference.fp16.onnx.data").stat().st_size / (full / "lm_inference.onnx.data").stat().st_size
    assert 0.49 < ratio < 0.55
    lm = language_model("finetune_fp16", attention, "fp16")
    assert lm.lm.inputs["past_key_values.0.key"].dtype == "float16"
    assert lm.lm.outputs["logits"].dtype == "float32"
    codes = lm.generate_codes(frames=20, seed=0)
    same = language_model("finetune_fp16", attention).generate_codes(frames=20, seed=0)
    assert (codes[:, :, :3] == same[:, :, :3]).mean() > 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("options", r"(?s)bias_attn: found True, supported: False.*qk_layer_norm: found True"),
    ],
)
def test_models_that_are_not_implemented(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        export(GOLDEN / name / "state_dict.bin", tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("keep")
    done = run("export/lm.py", "--ckpt", TEXT, "--out", tmp_path / "bundle")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/bundle already exists; remove it or choose another --out\n"
    assert (tmp_path / "bundle" / "mine").read_text() == "keep"


def test_graphs_that_disagree_are_not_kept(tmp_path, monkeypatch):
    """A weight changed on its way into the file is seen by the comparison that ends the export."""
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda t: contiguous(t) * (1.01 if t.shape == (64, 256) else 1))
    with pytest.raises(ExportError, match=r"(?s)nothing was written.*DISAGREES"):
        export(TEXT, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_errors_are_one_line(tmp_path):
    done = run("export/lm.py", "--ckpt", tmp_path / "none.bin")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path}/none.bin: no such file or folder\n"


def test_an_interrupted_export_leaves_nothing(tmp_path):
    """Ctrl-C while it writes."""
    process = subprocess.Popen(
        [sys.executable, "export/lm.py", "--ckpt", TEXT, "--out", tmp_path / "bundle"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.*.partial/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"Traceback" not in said
    assert said.splitlines()[-1] == b"interrupted: nothing was written"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(graph_module.ir, "save", full)
    with pytest.raises(ExportError, match="disk is full; nothing was kept"):
        export(TEXT, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_too_small_a_disk_is_seen_first(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ExportError, match=r"1\.0 kB free, 5\.0 MB needed"), new_folder(tmp_path / "bundle", 5_000_000):
        pytest.fail("was entered")


def test_conditions_in_both_places_are_refused():
    config = read_config(open_lm(TEXT))
    for cross, prepend in ((("description",), ("self_wav",)), (("self_wav",), ("description",))):
        with pytest.raises(ConfigError, match=r"xp.cfg fuser\.cross.*fuser\.prepend"):
            validate(replace(config, cross=cross, prepend=prepend))
