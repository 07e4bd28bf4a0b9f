"""MERT against transformers' HuBERT, which it is one of, live. Differences are shares of the largest feature."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HubertConfig, HubertForCTC, HubertForSequenceClassification, HubertModel

import export.bundle_writer
import export.mert
from clean_lm.models.config import ConfigError, MertConfig
from clean_lm.models.mert import Mert
from export.bundle_writer import ExportError
from tests.tiny_models import CONV, SPELLINGS, hubert, mert_folder, mert_tensors
from weights.checkpoint import Checkpoint, CheckpointError, Spec
from weights.huggingface_config import mert_config
from weights.mapping import MappingError, Model, differences, fill
from weights.mert import dropped, load, table

pytestmark = [pytest.mark.parity, pytest.mark.models]

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-5
# config.json of m-a-p/MERT-v1-95M: what says how it is built
PUBLISHED: dict[str, Any] = {
    "model_type": "mert_model",
    "sample_rate": 24_000,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-05,
    "do_stable_layer_norm": False,
    "attention_relax": -1.0,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "feature_extractor_cqt_bins": 336,
    "mask_time_prob": 0.05,
}
Run = Callable[[np.ndarray], np.ndarray]


def opened(model: Any) -> Model[MertConfig]:
    """A model without a folder."""
    state, config = mert_tensors(model), mert_config(model.config.to_dict())
    specs = {name: Spec(tuple(t.shape), t.dtype) for name, t in state.items()}
    checkpoint = Checkpoint(Path("memory"), "mert", {}, specs, lambda: state.__getitem__)
    rows = table(checkpoint, config)
    assert differences(rows, dropped(checkpoint), specs) == []
    return Model(checkpoint, config, rows)


@torch.inference_mode()
def ours(model: Model[MertConfig], audio: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    return fill(Mert(model.config), model.weights("mert", dtype))(torch.from_numpy(audio).to(dtype)).numpy()


@torch.inference_mode()
def theirs(model: Any, audio: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(audio).to(model.dtype)).last_hidden_state.numpy()


def session(path: Path) -> Run:
    opened = ort.InferenceSession(str(path / "style_features.onnx"), providers=["CPUExecutionProvider"])
    return lambda audio: np.asarray(opened.run(["features"], {"audio": audio})[0])


def noise(seed: int, rows: int, samples: int) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal((rows, samples))).astype(np.float32)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    assert np.isfinite(a).all()
    return float(np.abs(a - b).max() / np.abs(b).max())


# The module


@given(
    seed=st.integers(0, 2**31),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 8, 12]),
    hidden=st.integers(1, 30),
    convs=st.lists(st.tuples(st.integers(4, 9), st.integers(2, 5), st.integers(1, 3)), min_size=2, max_size=4),
    positions=st.integers(1, 9),
    groups=st.sampled_from([1, 2, 4]),
    rows=st.integers(1, 3),
    more=st.integers(0, 90),
)
@settings(max_examples=40, deadline=None)
def test_transformers(
    seed: int,
    layers: int,
    heads: int,
    head_dim: int,
    hidden: int,
    convs: list[tuple[int, int, int]],
    positions: int,
    groups: int,
    rows: int,
    more: int,
):
    channels, kernels, strides = (list(sizes) for sizes in zip(*convs, strict=True))
    sizes: dict[str, Any] = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": heads * head_dim}
    sizes |= {"conv_dim": channels, "conv_kernel": kernels, "conv_stride": strides, "intermediate_size": hidden}
    sizes |= {"num_conv_pos_embeddings": positions, "num_conv_pos_embedding_groups": groups}
    upstream = hubert(seed, **sizes)
    model = opened(upstream)
    audio = noise(seed, rows, model.config.receptive_field + more)
    features = ours(model, audio, torch.float64)  # tiny sizes round badly
    assert features.shape[1] == model.config.features(audio.shape[1])
    assert difference(features, theirs(upstream.double(), audio)) < TOLERANCE


def test_lengths():
    config = mert_config(PUBLISHED)
    assert (config.hop, config.receptive_field) == (320, 400)
    lengths = {0: 0, 79: 0, 399: 0, 400: 1, 719: 1, 720: 2, 72_000: 224, 120_000: 374}
    assert {samples: config.features(samples) for samples in lengths} == lengths


# The graph


@pytest.fixture(scope="module")
def mert_bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny HuBERT of transformers, the bundle that the command makes of its folder, and what the command said."""
    path, upstream = tmp_path_factory.mktemp("mert"), hubert(1)
    done = command(mert_folder(path / "mert", upstream, model_type="mert_model"), path / "bundle")
    assert done.returncode == 0, done.stderr
    return upstream, path / "bundle", done.stdout


def command(mert: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "export" / "mert.py", "--mert", mert, "--out", out],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def run(mert_bundle: Any) -> Run:
    return session(mert_bundle[1])


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4), samples=st.integers(400, 5000))
@settings(max_examples=30, deadline=None)
def test_graph(mert_bundle: Any, run: Run, seed: int, rows: int, samples: int):
    audio = noise(seed, rows, samples)
    assert difference(run(audio), theirs(mert_bundle[0], audio)) < TOLERANCE


@pytest.mark.parametrize("samples", [400, 401, 719, 720, 1039, 1040, 24_000, 72_000, 240_000])
def test_graph_of_lengths(mert_bundle: Any, run: Run, samples: int):
    audio = noise(samples, 1, samples)
    features = run(audio)
    assert features.shape == (1, (samples - 400) // 320 + 1, 24)
    assert difference(features, theirs(mert_bundle[0], audio)) < TOLERANCE


@pytest.mark.parametrize("loudness", [0, 1e-4, 100])
def test_loudness(mert_bundle: Any, run: Run, loudness: float):
    audio = noise(2, 2, 4000) * np.array([[loudness], [1]], dtype=np.float32)
    assert difference(run(audio), theirs(mert_bundle[0], audio)) < TOLERANCE


def test_graph_file(mert_bundle: Any):
    path = mert_bundle[1] / "style_features.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    assert str(ROOT).encode() not in path.read_bytes()
    described = export.bundle_writer.describe(path)
    assert [(t["name"], t["dtype"], t["shape"]) for t in described["inputs"] + described["outputs"]] == [
        ("audio", "float32", ["styles", "samples"]),
        ("features", "float32", ["styles", "features", 24]),
    ]


def test_full_size(tmp_path: Path):
    """The widths of MERT-v1-95M, one of its layers."""
    layout: dict[str, Any] = PUBLISHED | {"num_hidden_layers": 1}
    upstream = hubert(3, **layout)
    export.mert.write_graphs(opened(upstream), tmp_path)
    features = session(tmp_path)
    for samples in (400, 24_000):
        audio = noise(samples, 1, samples)
        assert difference(features(audio), theirs(upstream, audio)) < TOLERANCE


# The tensors


def test_released_layout():
    with torch.device("meta"):
        state = mert_tensors(HubertModel(HubertConfig(**PUBLISHED)))
    specs = {name: Spec(tuple(t.shape), t.dtype) for name, t in state.items()}
    checkpoint = Checkpoint(ROOT, "mert", PUBLISHED, specs, lambda: pytest.fail("nothing is read"))
    config = mert_config(PUBLISHED)
    assert (config.layers, config.heads, config.dim, config.hidden) == (12, 12, 768, 3072)
    assert (config.position_kernel, config.position_groups, config.sample_rate) == (128, 16, 24_000)
    rows = table(checkpoint, config)
    assert differences(rows, dropped(checkpoint), specs) == []
    assert Model(checkpoint, config, rows).parameters == 94_370_944


def same(a: Model[MertConfig], b: Model[MertConfig]) -> bool:
    x, y = a.weights("mert"), b.weights("mert")
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def test_values(tmp_path: Path):
    upstream = hubert(4)
    state, model = mert_tensors(upstream), load(mert_folder(tmp_path / "mert", upstream))
    weights, layer = model.weights("mert"), "encoder.layers.1"
    for part in ("weight", "bias"):
        qkv = torch.cat([state[f"{layer}.attention.{x}_proj.{part}"] for x in "qkv"])
        assert torch.equal(weights[f"layers.1.qkv.{part}"], qkv.T if part == "weight" else qkv)
    assert torch.equal(weights["layers.1.linear2.weight"], state[f"{layer}.feed_forward.output_dense.weight"].T)
    assert torch.equal(weights["layers.1.norm2.bias"], state[f"{layer}.final_layer_norm.bias"])
    assert torch.equal(weights["convs.3"], state["feature_extractor.conv_layers.3.conv.weight"])
    assert torch.allclose(weights["positions.weight"], upstream.get_submodule(CONV).weight, rtol=1e-6, atol=0)
    assert len(weights) == 7 + 2 * 5 + 2 * 12
    assert model.parameters == sum(t.numel() for name, t in state.items() if name != "masked_spec_embed")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_files(tmp_path: Path, spelling: str, file: str):
    upstream = hubert(5)
    path = mert_folder(tmp_path / "mert", upstream, mert_tensors(upstream, spelling))
    if file == "pytorch_model.bin":
        (path / "model.safetensors").unlink()
        torch.save(mert_tensors(upstream, spelling), path / file)
    assert same(load(path), opened(upstream))
    assert same(load(path / file), opened(upstream))


def test_a_folder_of_transformers(tmp_path: Path):
    upstream = hubert(6)
    upstream.save_pretrained(tmp_path)
    assert same(load(tmp_path), opened(upstream))


@pytest.mark.parametrize("prefix", ["hubert.", "mert_model."])
@pytest.mark.parametrize("kind", [HubertForCTC, HubertForSequenceClassification])
def test_under_a_head(tmp_path: Path, kind: type[Any], prefix: str):
    upstream = hubert(7, kind, use_weighted_layer_sum=True)
    state = {name.replace("hubert.", prefix): t for name, t in mert_tensors(upstream).items()}
    assert any(not name.startswith(prefix) for name in state)
    assert same(load(mert_folder(tmp_path / "mert", upstream, state)), opened(upstream.hubert))


def test_half(tmp_path: Path):
    upstream = hubert(8).half()
    model = load(mert_folder(tmp_path / "mert", upstream, mert_tensors(upstream)))
    audio = noise(8, 1, 2000)
    assert difference(ours(model, audio), theirs(upstream.float(), audio)) < TOLERANCE


def test_every_difference_is_listed(tmp_path: Path):
    state = mert_tensors(hubert())
    del state["encoder.layers.0.attention.k_proj.bias"], state[f"{CONV}.weight_g"]
    state["feature_extractor.conv_layers.1.layer_norm.weight"] = torch.ones(7)
    state["encoder.layer_norm.weight"] = torch.ones(25)
    path = mert_folder(tmp_path / "mert", hubert(), state)
    with pytest.raises(MappingError) as error:
        load(path)
    head, *lines = str(error.value).split("\n  ")
    assert head == f"{path}: its tensors are not those of its configuration:"
    assert sorted(lines) == [
        "misshapen   encoder.layer_norm.weight: found [25], expected [24]",
        "missing     encoder.layers.0.attention.k_proj.bias [24]",
        f"missing     {CONV}.weight_g [1, 1, 16]",
        "unexpected  feature_extractor.conv_layers.1.layer_norm.weight [7]",
    ]


# The configuration


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sample_rate": 16_000}, ["sample_rate: found 16000, supported: 24000"]),
        ({"sample_rate": None}, ["sample_rate: found nothing", "supported: 24000"]),
        ({"feature_extractor_cqt": True}, ["feature_extractor_cqt: found True, supported: False"]),
        ({"deepnorm": True}, ["deepnorm: found True, supported: False"]),
        ({"attention_relax": 32.0}, ["attention_relax: found 32.0, supported: -1.0"]),
        ({"do_stable_layer_norm": True, "attention_relax": 1}, ["do_stable_layer_norm: found True", "relax: found 1"]),
        ({"feat_extract_norm": "layer"}, ["feat_extract_norm: found 'layer', supported: 'group'"]),
        ({"feat_extract_activation": "relu"}, ["feat_extract_activation: found 'relu', supported: 'gelu'"]),
        ({"feat_proj_layer_norm": False}, ["feat_proj_layer_norm: found False, supported: True"]),
        ({"hidden_act": "gelu_new"}, ["hidden_act: found 'gelu_new', supported: 'gelu'"]),
        ({"conv_bias": True}, ["conv_bias: found True, supported: False"]),
        ({"conv_pos_batch_norm": True}, ["conv_pos_batch_norm: found True, supported: False"]),
        ({"layer_norm_eps": 1e-12}, ["layer_norm_eps: found 1e-12, supported: 1e-05"]),
        ({"hidden_size": None}, ["no hidden_size"]),
        ({"num_hidden_layers": "12"}, ["num_hidden_layers: got '12', expected int"]),
        ({"conv_kernel": [10, 3, True]}, ["conv_kernel: got True in it"]),
        ({"intermediate_size": 0}, ["hidden 0: expected a number above 0"]),
        ({"conv_stride": [5, 2]}, ["conv_stride [5, 2]: expected numbers above 0, as many in each"]),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 0]}, ["2, 0]: expected numbers above 0"]),
        ({"conv_dim": [], "conv_kernel": [], "conv_stride": []}, ["conv_dim [], conv_kernel [], conv_stride []"]),
        ({"num_attention_heads": 7}, ["dim 768 is not a multiple of the heads 7"]),
        ({"num_conv_pos_embedding_groups": 5}, ["dim 768 is not a multiple of the position_groups 5"]),
    ],
)
def test_other_configurations(change: dict[str, Any], words: list[str]):
    with pytest.raises(ConfigError) as error:
        mert_config({name: x for name, x in (PUBLISHED | change).items() if x is not None})
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_every_problem_is_listed(tmp_path: Path):
    path = mert_folder(tmp_path / "mert", hubert(), deepnorm=True, conv_bias=True)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(error.value).split("\n  ") == [
        f"{path}: clean_lm does not support this MERT:",
        "config.json deepnorm: found True, supported: False",
        "config.json conv_bias: found True, supported: False",
    ]


# Files that are something else


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("no folder", FileNotFoundError, ["no such file or folder"]),
        ("no config", FileNotFoundError, ["no MERT found", "config.json", "pytorch_model.bin"]),
        ("no weights", FileNotFoundError, ["model.safetensors not found"]),
        ("wav2vec2", CheckpointError, ["model_type is 'wav2vec2', expected 'mert_model' or 'hubert'"]),
        ("list", CheckpointError, ["model_type is ['hubert'], expected"]),
    ],
)
def test_bad_files(tmp_path: Path, what: str, kind: type[Exception], words: list[str]):
    path = mert_folder(tmp_path / "mert", hubert())
    if what == "no folder":
        shutil.rmtree(path)
    elif what == "no config":
        (path / "config.json").unlink()
    elif what == "no weights":
        (path / "model.safetensors").unlink()
    else:
        (path / "config.json").write_text(json.dumps({"model_type": ["hubert"] if what == "list" else what}))
    with pytest.raises(kind) as error:
        load(path)
    assert [word for word in [str(path), *words] if word not in str(error.value)] == [], str(error.value)


# The bundle


def test_bundle(mert_bundle: Any):
    _, bundle, said = mert_bundle
    names = {"manifest.json", "style_features.onnx", "style_features.onnx.data"}
    assert {path.name for path in bundle.iterdir()} == names
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["model"] == {
        "style_sample_rate": 24_000,
        "style_feature_dim": 24,
        "style_hop": 320,
        "style_receptive_field": 400,
    }
    assert manifest["graphs"].keys() == {"style_features"}
    assert manifest["files"].keys() == names - {"manifest.json"}
    assert manifest["cache_update"] is None
    assert "agrees with the PyTorch modules: 75 features of 1.0 s, largest difference" in said


def test_export_refuses_what_differs(mert_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_other(_: Model[MertConfig], folder: Path) -> None:
        for path in mert_bundle[1].glob("style_features.*"):
            shutil.copy(path, folder)

    monkeypatch.setattr(export.mert, "write_graphs", write_other)
    path = mert_folder(tmp_path / "mert", hubert(9))
    with pytest.raises(ExportError, match=r"nothing was written.*DISAGREES"):
        export.mert.export(path, tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["mert"]


def test_refusal_of_the_command(tmp_path: Path):
    path = mert_folder(tmp_path / "mert", hubert(), feature_extractor_cqt=True)
    done = command(path, tmp_path / "bundle")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: {path}: clean_lm does not support this MERT: "
        "config.json feature_extractor_cqt: found True, supported: False\n"
    )
    assert not (tmp_path / "bundle").exists()
