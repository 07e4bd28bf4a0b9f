"""Every released size at its full width, and files beyond what 32 bits can address."""

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
import yaml

from demo.checkpoint import random_tensor
from export import bundle_writer as folder_module
from export import lm_parity, verify
from export import onnx_graph as graph_module
from export.lm import export
from export.lm_graphs import LM_GRAPHS
from tests.support import ATTENTION, GOLDEN
from weights.lm import load

pytestmark = pytest.mark.export

LAYOUTS = Path(__file__).parent / "layouts"
TEXT = GOLDEN / "text"

# heads, codebooks, sample rate, width of the text's states; a head is 64 wide in all of them
RELEASED = {
    "musicgen-small": (16, 4, 32_000, 768),
    "musicgen-medium": (24, 4, 32_000, 768),
    "musicgen-large": (32, 4, 32_000, 768),
    "musicgen-stereo-small": (16, 8, 32_000, 768),
    "musicgen-stereo-medium": (24, 8, 32_000, 768),
    "musicgen-stereo-large": (32, 8, 32_000, 768),
    "audiogen-medium": (24, 4, 16_000, 1024),
    "musicgen-melody": (24, 4, 32_000, 768),
    "musicgen-stereo-melody-large": (32, 8, 32_000, 768),
    "musicgen-style": (24, 4, 32_000, 768),
}
STANDARD = ("musicgen-stereo-melody-large", "audiogen-medium")  # the rest is lowered for ONNX Runtime, audiogen too


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Not kept as pytest keeps others: half a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def write_checkpoint(folder: Path, name: str, layers: int) -> Path:
    """A released model's xp.cfg and the tensors of its key list, random, in float16; of its layers only the first."""
    listed = json.loads(gzip.decompress((LAYOUTS / f"{name}.json.gz").read_bytes()))
    tree = yaml.safe_load((LAYOUTS / f"{name}.cfg.yaml").read_text())
    tree["transformer_lm"]["num_layers"] = layers
    generator, state = torch.Generator().manual_seed(0), {}
    for key, (shape, dtype) in listed.items():
        layer = re.match(r"transformer\.layers\.(\d+)\.", key)
        if layer is None or int(layer[1]) < layers:
            values = random_tensor(key, tuple(shape), generator)
            values = values.abs() if key.endswith("running_var") else values
            state[key] = values.half() if dtype == "torch.float32" else values.to(torch.int64)
    torch.save({"best_state": state, "xp.cfg": yaml.safe_dump(tree)}, folder / "state_dict.bin")
    return folder / "state_dict.bin"


def places(path: Path) -> tuple[list[int], list[int], list[int]]:
    """Of a graph's tensors: the bytes of those in its file, of those outside it, and where the latter begin."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    inside = [len(t.raw_data) for t in tensors if not t.external_data]
    outside = [{e.key: e.value for e in t.external_data} for t in tensors if t.external_data]
    return inside, [int(entry["length"]) for entry in outside], [int(entry["offset"]) for entry in outside]


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, "ort") for name in RELEASED if name != STANDARD[0]),
        *((name, "standard") for name in STANDARD),
    ],
)
def test_released_sizes(folder, name, attention, capsys, monkeypatch):
    """One layer, written by its own configuration and exported: what ONNX Runtime and PyTorch compute agrees."""
    monkeypatch.setattr(lm_parity, "STEPS", 4)
    heads, codebooks, rate, text_dim = RELEASED[name]
    export(write_checkpoint(folder, name, layers=1), folder / "bundle", attention)
    assert re.search("^agrees with the PyTorch modules: 1[05] calls", capsys.readouterr().out, re.MULTILINE)
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    model, graphs = manifest["model"], manifest["graphs"]
    sizes = ("heads", "head_dim", "dim", "codebooks", "card", "sample_rate", "text_dim")
    assert tuple(model[size] for size in sizes) == (heads, 64, 64 * heads, codebooks, 2048, rate, text_dim)
    shapes = {t["name"]: t["shape"] for g in graphs.values() for t in g["inputs"] + g["outputs"]}
    prefix = "prefix" in shapes
    assert prefix == ("melody" in name or "style" in name) == (len(graphs) == 3)
    assert shapes["codes"] == ["rows", codebooks, "columns"]
    assert shapes["past_key_values.0.key"] == ["rows", heads, "capacity", 64]
    if prefix:
        assert shapes["prefix"] == ["rows", "prefix", 64 * heads]
        assert (
            shapes["self_wav"]
            == {
                "melody": ["melodies", 235, 64 * heads],
                "style": ["styles", "tokens", 64 * heads],
            }[model["self_wav"]]
        )
    else:
        assert shapes["cross_key_values.0.value"] == ["texts", heads, "text", 64]
    assert shapes["text_states"] == ["texts", "text", text_dim]
    for graph in graphs:
        inside, outside, _ = places(folder / "bundle" / f"{graph}.onnx")
        assert sum(inside) < 5_000
        assert min(outside) >= graph_module.INLINE
        assert (folder / "bundle" / f"{graph}.onnx").stat().st_size < 40_000


def test_a_layer_adds_little_to_the_graph(bundle):
    """A file of protobuf can have 2 GB. A graph's has 10 kB a layer, whatever its width: half a MB for large's 48."""
    for attention in ATTENTION:
        assert (bundle("text", attention) / "lm_inference.onnx").stat().st_size < 3 * 10_000


def test_what_lies_outside_the_graph(folder, monkeypatch):
    """Tensors from the bound up; with a lower one too, upstream's tokens."""
    monkeypatch.setattr(graph_module, "INLINE", 128)
    export(TEXT / "state_dict.bin", folder / "bundle")
    for graph in LM_GRAPHS:
        inside, outside, _ = places(folder / "bundle" / f"{graph}.onnx")
        assert max(inside, default=0) < 128 <= min(outside) < 1024
    assert verify.golden(folder / "bundle", TEXT)[1] == []


def test_offsets_beyond_32_bits(folder, monkeypatch):
    """Tensors half a GiB apart in files of holes: read right by ONNX Runtime, onnx_ir and the quantizer."""
    monkeypatch.setattr(graph_module, "PAGE", 2**29)
    monkeypatch.setattr(folder_module, "sha256", lambda _: "0" * 64)
    export(TEXT / "state_dict.bin", folder / "bundle")
    path = folder / "bundle" / "lm_inference.onnx"
    _, _, offsets = places(path)
    assert any(2**31 < offset < 2**32 for offset in offsets)
    assert max(offsets) > 2 * 2**32
    assert verify.golden(folder / "bundle", TEXT)[1] == []
    initializers = graph_module.load(path).graph.initializers
    for name, tensor in load(TEXT).weights("lm").items():
        assert torch.equal(graph_module.weight_of(initializers[name]), tensor)
