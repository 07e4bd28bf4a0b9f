"""The exported conditioners: their tensors, what the manifest says, and the comparison that ends an export."""

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import yaml

import weights.lm
from clean_lm.models.config import LMConfig, MelodyConfig, StyleConfig
from export.bundle_writer import draft, write
from export.conditioner import describe, lead, parity, write_graph
from weights.audiocraft_config import lm_config
from weights.checkpoint import Checkpoint, Spec
from weights.lm import SELF_WAV, load
from weights.mapping import Model

pytestmark = pytest.mark.export

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"

Made = Callable[[str], tuple[Model[LMConfig], Path]]


def bundle(folder: Path, model: Model[LMConfig]) -> Path:
    """A bundle that holds the conditioner alone."""
    name = write_graph(model, folder)
    assert model.config.self_wav is not None
    write(draft(folder, describe(model.config.self_wav), {}, None, [name]))
    return folder


def released(name: str) -> Model[LMConfig]:
    """A released model's conditioner with random weights, one layer of it where it has layers."""
    tree = yaml.safe_load((HERE / "layouts" / f"{name}.cfg.yaml").read_text())
    config = lm_config(tree, text_dim=768)
    if isinstance(config.self_wav, StyleConfig):
        config = replace(config, self_wav=replace(config.self_wav, layers=1))
    listed = json.loads(gzip.decompress((HERE / "layouts" / f"{name}.json.gz").read_bytes()))
    tensors = {name: random_tensor(name, shape) for name, (shape, _) in listed.items() if name.startswith(SELF_WAV)}
    specs = {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    checkpoint = Checkpoint(Path("memory"), "audiocraft", tree, specs, lambda: tensors.__getitem__)
    return Model(checkpoint, config, weights.lm.self_wav(config))


def random_tensor(name: str, shape: list[int]) -> torch.Tensor:
    """Of a scale that keeps what comes out of a layer near 1."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))
    if name.endswith("running_var"):
        return values.square() + 0.1
    return values * shape[-1] ** -0.5 if name.endswith("weight") and len(shape) == 2 else values


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A golden model and its bundle."""
    folders: dict[str, tuple[Model[LMConfig], Path]] = {}

    def make(name: str) -> tuple[Model[LMConfig], Path]:
        if name not in folders:
            model = load(GOLDEN / name)
            folders[name] = model, bundle(tmp_path_factory.mktemp(name), model)
        return folders[name]

    return make


def test_descriptions():
    melody = MelodyConfig(chroma=12, radix2_exp=14, sample_rate=32000, duration=30.0, output_dim=64)
    assert describe(melody) == {"self_wav": "melody"}
    style = load(GOLDEN / "style").config.self_wav
    assert isinstance(style, StyleConfig)
    assert describe(style) == {
        "self_wav": "style",
        "style_length": 3.0,
        "style_sample_rate": 24000,
        "style_rate": 75,
        "style_ds_factor": 15,
        "style_levels": 6,
        "style_eval_q": 3,
    }


@pytest.mark.parametrize(
    ("name", "inputs", "shape"),
    [
        ("melody", {"audio": ["melodies", "samples"]}, ["melodies", 235, 64]),
        ("style", {"features": ["styles", "features", 768], "eval_q": []}, ["styles", "tokens", 56]),
    ],
)
def test_bundle(made: Made, name: str, inputs: dict[str, list[object]], shape: list[object]):
    _, folder = made(name)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", f"lm_{name}.onnx", f"lm_{name}.onnx.data"}
    graph = json.loads((folder / "manifest.json").read_text())["graphs"][f"lm_{name}"]
    assert {tensor["name"]: tensor["shape"] for tensor in graph["inputs"]} == inputs
    assert [(tensor["name"], tensor["shape"]) for tensor in graph["outputs"]] == [("self_wav", shape)]
    assert {tensor["name"]: tensor["dtype"] for tensor in graph["inputs"] + graph["outputs"]} == {
        tensor: "int64" if tensor == "eval_q" else "float32" for tensor in [*inputs, "self_wav"]
    }


@pytest.mark.parametrize("name", ["melody", "style"])
def test_parity(made: Made, name: str):
    model, folder = made(name)
    assert parity(folder, model).agrees
    read = model.checkpoint.open()
    other = replace(model, checkpoint=replace(model.checkpoint, open=lambda: lambda name: read(name) + 0.001))
    assert not parity(folder, other).agrees


@pytest.mark.parametrize("name", ["musicgen-melody", "musicgen-stereo-melody-large", "musicgen-style"])
def test_released_layouts(tmp_path: Path, name: str):
    model = released(name)
    verdict = parity(bundle(tmp_path, model), model)
    assert verdict.agrees, verdict
    compared, _, every = verdict.compared.split()[:3]
    assert int(compared) > 0.9 * int(every), verdict
    (path,) = tmp_path.glob("lm_*.onnx")
    session = ort.InferenceSession(str(path))
    if name == "musicgen-style":
        feed, tokens = {"features": np.zeros((1, 224, 768), np.float32), "eval_q": np.array(3)}, 15
    else:
        feed, tokens = {"audio": np.zeros((1, 1), np.float32)}, 235
    (out,) = session.run(None, feed)
    assert np.asarray(out).shape == (1, tokens, model.config.dim)


def test_clear_choices():
    scores = torch.tensor([[1.0, 4.0, 3.0], [2.0, 2.0, -8.0], [-1.0, -2.0, -4.0]])
    assert lead(scores).tolist() == [0.25, 0.0, 0.25]
