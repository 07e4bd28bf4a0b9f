"""The text encoder against transformers' T5, live, and against upstream's arrays; its tokenizer against SentencePiece.

Differences of states are shares of the largest state.
"""

import gzip
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
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.utils import sentencepiece_model_pb2_new as spm

import export.bundle_writer
import export.text
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError
from clean_lm.models.config import ConfigError, TextConfig
from clean_lm.models.t5 import T5Encoder, buckets
from clean_lm.text_encoder import TextEncoder
from export.bundle_writer import ExportError
from weights.checkpoint import Checkpoint, CheckpointError, Spec
from weights.huggingface_config import text_config
from weights.mapping import MappingError, Model, differences, fill
from weights.text import dropped, load, read_config, table
from weights.tokenizer import from_sentencepiece, open_tokenizer

pytestmark = [pytest.mark.parity, pytest.mark.models]

HERE = Path(__file__).parent
T5_BASE = HERE / "golden" / "_t5" / "t5-base"
SPIECE = HERE / "golden" / "_t5" / "spiece" / "spiece.model"
TOLERANCE = 1e-5
VOCAB = 300  # of the tiny models: spiece.model has 180 pieces, and there are 100 sentinels
TINY: dict[str, Any] = {"d_model": 24, "d_kv": 6, "num_heads": 3, "d_ff": 20, "num_layers": 2, "vocab_size": VOCAB}
ModelProto: Any = spm.ModelProto  # pyright: ignore[reportAttributeAccessIssue]  # made when it is imported
TEXTS = ["warm analog synth pad with slow drums", "fast punk guitar", " ", "drums 🎸 techno", "a</s> b", "house " * 600]
FIRST = "encoder.block.0.layer.0.SelfAttention"


def t5(seed: int = 0, kind: type[Any] = T5EncoderModel, **sizes: Any) -> Any:
    """A random T5 of transformers, its biases and norms random too."""
    torch.manual_seed(seed)
    model = kind(T5Config(**TINY | sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1 if "relative" in name or parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape) * scale + (parameter.dim() == 1))
    return model


def tensors(model: Any) -> dict[str, Tensor]:
    """A model's tensors as its file has them: the embedding once."""
    return {name: t.clone() for name, t in model.state_dict().items() if not name.endswith("embed_tokens.weight")}


def folder(path: Path, model: Any, state: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """A model's folder, with other tensors or settings; None takes a setting out."""
    path.mkdir(exist_ok=True)
    save_file(tensors(model) if state is None else state, path / "model.safetensors")
    write_config(path, model.config.to_dict() | config)
    shutil.copy(SPIECE, path)
    return path


def write_config(path: Path, config: dict[str, Any]) -> None:
    left = {name: value for name, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(left))


def opened(model: Any) -> Model[TextConfig]:
    """A model without a folder."""
    state = tensors(model)
    specs = {name: Spec(tuple(t.shape), t.dtype) for name, t in state.items()}
    checkpoint = Checkpoint(Path("memory"), "t5", model.config.to_dict(), specs, lambda: state.__getitem__)
    config = read_config(checkpoint)
    rows = table(checkpoint, config)
    assert differences(rows, dropped(checkpoint), specs) == []
    return Model(checkpoint, config, rows)


def encoder(model: Model[TextConfig], dtype: torch.dtype = torch.float32) -> T5Encoder:
    return fill(T5Encoder(model.config), model.weights("text_encoder", dtype))


def graph(model: Model[TextConfig], path: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The exported graph, loaded: (input_ids, attention_mask) -> states."""
    export.text.write_graphs(model, path)
    session = ort.InferenceSession(str(path / "text_encoder.onnx"), providers=["CPUExecutionProvider"])

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})[0])

    return run


@torch.inference_mode()
def run_torch(module: Any, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """Our module, or transformers', on the same arrays."""
    out = module(input_ids=torch.from_numpy(input_ids), attention_mask=torch.from_numpy(attention_mask))
    return getattr(out, "last_hidden_state", out).numpy()


def tokens(seed: int, rows: int, length: int, vocab: int = VOCAB) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens, and a random mask that hides anything but never a whole row."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (rows, length))
    mask[np.arange(rows), rng.integers(0, length, rows)] = 1
    return rng.integers(0, vocab, (rows, length)), mask


def difference(ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    seen = mask.astype(bool)
    return float(np.abs(ours - theirs)[seen].max() / np.abs(theirs[seen]).max())


# The module


@given(count=st.integers(4, 200), max_distance=st.integers(2, 600))
@settings(max_examples=60, deadline=None)
def test_buckets(count: int, max_distance: int):
    max_distance = max(max_distance, count // 4 + 1)
    distance = torch.arange(-2000, 2001)
    theirs = T5Attention._relative_position_bucket(distance, True, count, max_distance)
    ours = buckets(count, max_distance)[distance.clamp(-max_distance, max_distance) + max_distance]
    assert torch.equal(ours, theirs)


def test_buckets_of_t5():
    bucket = dict(zip(range(-128, 129), buckets(32, 128).tolist(), strict=True))
    drawn = {
        -128: 15,
        -91: 15,
        -90: 14,
        -11: 8,
        -8: 8,
        -7: 7,
        -1: 1,
        0: 0,
        1: 17,
        7: 23,
        8: 24,
        11: 24,
        91: 31,
        128: 31,
    }
    assert {distance: bucket[distance] for distance in drawn} == drawn
    assert (bucket[12], bucket[15], bucket[16], bucket[90]) == (25, 25, 26, 30)


@given(
    seed=st.integers(0, 2**31),
    gated=st.booleans(),
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    dim=st.integers(4, 40),
    count=st.sampled_from([4, 8, 32, 33]),
    rows=st.integers(1, 3),
    length=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_transformers(
    seed: int, gated: bool, layers: int, heads: int, head_dim: int, dim: int, count: int, rows: int, length: int
):
    sizes = {"num_layers": layers, "num_heads": heads, "d_kv": head_dim, "d_model": dim, "layer_norm_epsilon": 1e-3}
    kind = {"feed_forward_proj": "gated-gelu" if gated else "relu", "relative_attention_num_buckets": count}
    theirs = t5(seed, **sizes, **kind, relative_attention_max_distance=20).double()  # tiny sizes round badly
    given = tokens(seed, rows, length)
    ours = run_torch(encoder(opened(theirs), torch.float64), *given)
    assert difference(ours, run_torch(theirs, *given), given[1]) < TOLERANCE


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    theirs = t5(1, feed_forward_proj=request.param)
    return theirs, graph(opened(theirs), tmp_path_factory.mktemp(request.param))


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4), length=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_graph(exported: Any, seed: int, rows: int, length: int):
    theirs, run = exported
    given = tokens(seed, rows, length)
    assert difference(run(*given), run_torch(theirs, *given), given[1]) < TOLERANCE


@pytest.mark.parametrize("length", [1, 127, 128, 129, 130, 512, 700])
def test_graph_of_long_texts(exported: Any, length: int):
    theirs, run = exported
    given = tokens(length, 1, length)
    assert difference(run(*given), run_torch(theirs, *given), given[1]) < TOLERANCE


def test_padding_changes_nothing(exported: Any):
    _, run = exported
    ids, _ = tokens(5, 3, 30)
    mask = (np.arange(30) < np.array([30, 11, 1])[:, None]).astype(np.int64)
    batch = run(ids, mask)
    for row, length in enumerate(mask.sum(axis=1)):
        alone = run(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert difference(batch[row : row + 1, :length], alone, mask[row : row + 1, :length]) < TOLERANCE
    assert np.isfinite(run(ids, np.zeros_like(mask))).all()


def test_graph_file(text_bundle: Any):
    path = text_bundle[1] / "text_encoder.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    assert str(HERE.parent).encode() not in path.read_bytes()
    described = export.bundle_writer.describe(path)
    assert [(t["name"], t["dtype"], t["shape"]) for t in described["inputs"] + described["outputs"]] == [
        ("input_ids", "int64", ["rows", "text"]),
        ("attention_mask", "int64", ["rows", "text"]),
        ("last_hidden_state", "float32", ["rows", "text", 24]),
    ]


@pytest.fixture(scope="module")
def t5_base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = load(T5_BASE)
    return encoder(model), graph(model, tmp_path_factory.mktemp("t5-base"))


@pytest.mark.parametrize("case", ["desc", "two"])
@pytest.mark.parametrize("name", ["text", "stereo", "finetune_fp16"])
def test_upstream(t5_base: Any, golden: Callable[[str], Any], name: str, case: str):
    ids, mask, hidden = (golden(name)[f"t5.{case}.{x}"] for x in ("input_ids", "attention_mask", "hidden"))
    module, run = t5_base
    assert difference(run_torch(module, ids, mask), hidden, mask) < TOLERANCE
    assert difference(run(ids, mask), hidden, mask) < TOLERANCE
    for row in np.flatnonzero(mask.any(axis=1)):  # alone, as TextEncoder runs it
        n = mask[row].sum()
        alone = run(ids[row : row + 1, :n], mask[row : row + 1, :n])
        assert difference(alone, hidden[row : row + 1, :n], mask[row : row + 1, :n]) < TOLERANCE


# The tensors


def test_released_layout():
    layout = json.loads(gzip.decompress((HERE / "layouts" / "hf_t5_base_encoder.json.gz").read_bytes()))
    config = json.loads((HERE / "layouts" / "hf_t5_base_encoder.config.json").read_text())
    specs = {name: Spec(tuple(shape), torch.float32) for name, (shape, _) in layout.items()}
    checkpoint = Checkpoint(HERE, "t5", config, specs, lambda: pytest.fail("nothing is read"))
    c = read_config(checkpoint)
    assert (c.layers, c.heads, c.head_dim, c.dim, c.hidden, c.vocab) == (12, 12, 64, 768, 3072, 32128)
    assert (c.buckets, c.max_distance, c.gated, c.pad_token, c.eos_token) == (32, 128, False, 0, 1)
    assert differences(table(checkpoint, c), dropped(checkpoint), specs) == []
    assert dropped(checkpoint)[0].pattern == "encoder.embed_tokens.weight"


def same(a: Model[TextConfig], b: Model[TextConfig]) -> bool:
    x, y = a.weights("text_encoder"), b.weights("text_encoder")
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("gated", [False, True])
def test_values(gated: bool, tmp_path: Path):
    theirs = t5(2, feed_forward_proj="gated-gelu" if gated else "relu")
    state, model = tensors(theirs), load(folder(tmp_path / "t5", theirs))
    ours, block = model.weights("text_encoder"), "encoder.block.1.layer"
    assert torch.equal(ours["embedding"], state["shared.weight"])
    assert torch.equal(ours["relative_bias"], state[f"{FIRST}.relative_attention_bias.weight"])
    qkv = torch.cat([state[f"{block}.0.SelfAttention.{x}.weight"] for x in "qkv"])
    assert torch.equal(ours["layers.1.qkv"], qkv.T)
    assert torch.equal(ours["layers.1.out"], state[f"{block}.0.SelfAttention.o.weight"].T)
    wi = torch.cat([state[f"{block}.1.DenseReluDense.{x}.weight"] for x in (["wi_0", "wi_1"] if gated else ["wi"])])
    assert torch.equal(ours["layers.1.linear1"], wi.T)
    assert torch.equal(ours["layers.1.linear2"], state[f"{block}.1.DenseReluDense.wo.weight"].T)
    assert torch.equal(ours["layers.1.norm2.weight"], state[f"{block}.1.layer_norm.weight"])
    assert len(ours) == 3 + 2 * 6
    assert model.parameters == sum(tensor.numel() for tensor in state.values())


@pytest.mark.parametrize("names", [["shared.weight"], ["encoder.embed_tokens.weight"], None])
def test_embedding_by_either_name(tmp_path: Path, names: list[str] | None):
    theirs, state = t5(), tensors(t5())
    embedding = state.pop("shared.weight")
    named = {name: embedding.clone() for name in names or ["encoder.embed_tokens.weight", "shared.weight"]}
    model = load(folder(tmp_path / "t5", theirs, state | named))
    assert same(model, opened(theirs))


def test_embeddings_that_differ(tmp_path: Path):
    state = tensors(t5())
    state["encoder.embed_tokens.weight"] = state["shared.weight"] + 1
    with pytest.raises(MappingError, match=r"shared\.weight and encoder\.embed_tokens\.weight differ"):
        load(folder(tmp_path / "t5", t5(), state))


@pytest.mark.parametrize("format", ["model.safetensors", "pytorch_model.bin", "shards"])
def test_a_whole_t5(tmp_path: Path, format: str):
    theirs = t5(3, T5ForConditionalGeneration)
    state = tensors(theirs)
    assert "lm_head.weight" in state
    assert any(name.startswith("decoder.") for name in state)
    path = folder(tmp_path / "t5", theirs, state)
    if format != "model.safetensors":
        (path / "model.safetensors").unlink()
    if format == "pytorch_model.bin":
        torch.save(state, path / format)
    if format == "shards":
        shards = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(state)}
        for shard in set(shards.values()):
            torch.save({name: t for name, t in state.items() if shards[name] == shard}, path / shard)
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    model = load(path)
    kept = {name: t for name, t in state.items() if name == "shared.weight" or name.startswith("encoder.")}
    assert model.parameters == sum(t.numel() for t in kept.values())
    given = tokens(3, 2, 9)
    assert difference(run_torch(encoder(model), *given), run_torch(theirs.encoder, *given), given[1]) < TOLERANCE


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight"])
def test_in_a_musicgen(tmp_path: Path, name: str):
    theirs = t5(4)
    state = tensors(theirs)
    state[name] = state.pop("shared.weight")
    named = {f"text_encoder.{name}": tensor for name, tensor in state.items()}
    others = ("decoder.lm_heads.0.weight", "enc_to_dec_proj.bias", "audio_encoder.encoder.layers.0.conv.bias")
    path = folder(tmp_path / "musicgen", theirs, named | {other: torch.ones(1) for other in others})
    write_config(path, {"model_type": "musicgen", "text_encoder": theirs.config.to_dict()})
    assert same(load(path), opened(theirs))
    write_config(path, {"model_type": "musicgen", "text_encoder": theirs.config.to_dict() | {"d_ff": "wide"}})
    with pytest.raises(ConfigError, match=r"text_encoder\.d_ff: got 'wide'"):
        load(path)


def test_every_difference_is_listed(tmp_path: Path):
    state = tensors(t5())
    del state[f"{FIRST}.k.weight"]
    state["extra"] = torch.ones(2)
    state["encoder.final_layer_norm.weight"] = torch.ones(25)
    state["shared.weight"] = torch.ones(VOCAB, 24, dtype=torch.int64)
    path = folder(tmp_path / "t5", t5(), state)
    with pytest.raises(MappingError) as error:
        load(path)
    head, *lines = str(error.value).split("\n  ")
    assert head == f"{path}: its tensors are not those of its configuration:"
    assert sorted(lines) == [
        "misshapen   encoder.final_layer_norm.weight: found [25], expected [24]",
        f"missing     {FIRST}.k.weight [18, 24]",
        "not floats  shared.weight: found torch.int64",
        "unexpected  extra [2]",
    ]


def test_no_embedding(tmp_path: Path):
    state = tensors(t5())
    del state["shared.weight"]
    with pytest.raises(MappingError, match=r"missing     shared\.weight \[300, 24\]"):
        load(folder(tmp_path / "t5", t5(), state))


# The configuration


def test_defaults_of_old_files():
    """config.json of t5-base names neither the feed-forward nor the longest distance."""
    sizes = {"num_layers": 12, "num_heads": 12, "d_kv": 64, "d_model": 768, "d_ff": 3072, "vocab_size": 32128}
    theirs, ours = T5Config(), text_config({"model_type": "t5"} | sizes)
    assert (ours.buckets, ours.max_distance, ours.eps, ours.pad_token, ours.eos_token, ours.gated) == (
        theirs.relative_attention_num_buckets,
        theirs.relative_attention_max_distance,
        theirs.layer_norm_epsilon,
        theirs.pad_token_id,
        theirs.eos_token_id,
        theirs.is_gated_act,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "umt5"}, ["model_type: found 'umt5', supported: 't5'"]),
        ({"feed_forward_proj": "gated-silu"}, ["found 'gated-silu', supported: 'relu', 'gated-gelu'"]),
        ({"feed_forward_proj": ["relu"]}, ["feed_forward_proj: found ['relu']"]),
        ({"dense_act_fn": "silu"}, ["dense_act_fn: found 'silu', supported with 'relu': 'relu'"]),
        ({"is_gated_act": True, "dense_act_fn": "silu"}, ["is_gated_act: found True", "dense_act_fn: found 'silu'"]),
        ({"d_model": None}, ["no d_model"]),
        ({"num_layers": "12"}, ["num_layers: got '12', expected int"]),
        ({"eos_token_id": [1, 2]}, ["eos_token_id: got [1, 2], expected int"]),
        ({"num_heads": 0}, ["heads 0: expected a number above 0"]),
        ({"relative_attention_num_buckets": 3}, ["relative_attention_num_buckets 3", "4 buckets or more"]),
        ({"relative_attention_max_distance": 8}, ["relative_attention_max_distance 8", "over a quarter"]),
        ({"layer_norm_epsilon": 0.0}, ["layer_norm_epsilon 0.0: expected a number above 0"]),
        ({"eos_token_id": 300}, ["eos_token_id 300: expected a token of the 300"]),
        ({"pad_token_id": -1}, ["pad_token_id -1"]),
    ],
)
def test_other_configurations(change: dict[str, Any], words: list[str]):
    tree = T5Config(**TINY).to_dict() | change
    with pytest.raises(ConfigError) as error:
        text_config({name: value for name, value in tree.items() if value is not None})
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


# Files that are something else


def spoil(path: Path, what: str) -> None:
    weights, config = path / "model.safetensors", path / "config.json"
    if what == "no folder":
        shutil.rmtree(path)
    elif what == "no config":
        config.unlink()
    elif what == "no weights":
        weights.unlink()
    elif what == "config":
        config.write_text("{")
    elif what == "list":
        config.write_text("[]")
    elif what == "bert":
        write_config(path, {"model_type": "bert"})
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif what == "lfs":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif what == "shard":
        (path / "model.safetensors.index.json").write_text('{"weight_map": {"shared.weight": "part.safetensors"}}')
    else:
        weights.unlink()
        contents = {
            "code": {"shared.weight": transformers.T5Config},
            "nested": {"shared.weight": {"a": torch.ones(1)}},
            "listed": [torch.ones(1)],
            "text": b"hello, world",
        }
        bin = path / "pytorch_model.bin"
        bin.write_bytes(b"hello, world") if what == "text" else torch.save(contents[what], bin)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("no folder", FileNotFoundError, ["no such file or folder"]),
        ("no config", FileNotFoundError, ["no text encoder found", "config.json", "pytorch_model.bin"]),
        ("no weights", FileNotFoundError, ["model.safetensors not found"]),
        ("config", CheckpointError, ["config.json: not readable JSON"]),
        ("list", CheckpointError, ["config.json: expected a JSON object"]),
        ("bert", CheckpointError, ["model_type is 'bert', expected 't5', or 'musicgen'"]),
        ("truncated", CheckpointError, ["model.safetensors: truncated or damaged"]),
        ("lfs", CheckpointError, ["a Git LFS pointer"]),
        ("shard", FileNotFoundError, ["part.safetensors not found"]),
        ("code", CheckpointError, ["refused", "T5Config", "a dict of tensors"]),
        ("nested", CheckpointError, ["the file holds shared.weight, which are not plain tensors"]),
        ("listed", CheckpointError, ["holds a list, expected a dict of tensors"]),
        ("text", CheckpointError, ["not a file of torch.save", "expected pytorch_model.bin"]),
    ],
)
def test_bad_files(tmp_path: Path, what: str, kind: type[Exception], words: list[str]):
    path = folder(tmp_path / "t5", t5())
    spoil(path, what)
    with pytest.raises(kind) as error:
        load(path)
    assert [word for word in [str(path), *words] if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_in_the_folder(tmp_path: Path, name: str):
    path = folder(tmp_path / "t5", t5())
    assert load(path / name).checkpoint.path == path


# The tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> Any:
    """Ours and transformers' of the same spiece.model, which transformers' own reader of it has read."""
    proto = ModelProto()
    proto.ParseFromString(SPIECE.read_bytes())
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    theirs = T5Tokenizer(vocab=vocab, _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap)
    return from_sentencepiece(SPIECE), theirs


def test_tokens_of_sentencepiece(tokenizers: Any):
    """tokens.json: texts, and what the sentencepiece package 0.2.3 makes of them, with the eos token."""
    rows = json.loads(SPIECE.with_name("tokens.json").read_text(encoding="utf-8"))
    assert len(rows) > 30
    ours, theirs = tokenizers
    assert [text for text, ids in rows if ours.encode(text).ids != ids] == []
    assert [text for text, ids in rows if theirs(text).input_ids != ids] == []


@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                ["warm", "drums", "🎸", "é", "e\u0301", "ﬁ", "▁", "</s>", "<unk>", "<pad>", "<extra_id_0>", "\u3000"]
            )
        ).map(" ".join),
        st.text("abcXYZ 0123,.!?-'\"()\t\n<>/_▁éüﬁ½🎸日", max_size=60),
    )
)
@settings(max_examples=400, deadline=None)
def test_tokens_of_transformers(tokenizers: Any, text: str):
    ours, theirs = tokenizers
    assert ours.encode(text).ids == theirs(text).input_ids


def test_tokens(tokenizers: Any):
    ours, theirs = tokenizers
    assert (ours.token_to_id("<pad>"), ours.token_to_id("</s>"), ours.token_to_id("<unk>")) == (0, 1, 2)
    assert (ours.token_to_id("<extra_id_99>"), ours.token_to_id("<extra_id_0>")) == (180, 279)
    assert ours.encode(" ").ids == [1]
    fullwidth = "a＜/s＞b"  # not a special token before it is normalised, though a piece after it
    assert ours.encode(fullwidth).ids == theirs(fullwidth).input_ids
    assert ours.encode("🎸").tokens == ["▁", "🎸", "</s>"]
    assert ours.encode("🎸").ids[1] == 2


def tiny_tokenizer() -> tuple[Path, TextConfig]:
    return SPIECE.parent, text_config(T5Config(**TINY).to_dict())


def test_tokenizer_json_goes_first(tmp_path: Path):
    _, config = tiny_tokenizer()
    tokenizer = open_tokenizer(SPIECE.parent, config)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "spiece.model").write_bytes(b"damaged")
    text = "warm analog synth pad"
    assert open_tokenizer(tmp_path, config).encode(text).ids == open_tokenizer(SPIECE.parent, config).encode(text).ids


def test_extra_ids(tmp_path: Path):
    _, config = tiny_tokenizer()
    shutil.copy(SPIECE, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 7}')
    assert open_tokenizer(tmp_path, config).get_vocab_size() == 187
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": "many"}')
    with pytest.raises(CheckpointError, match="extra_ids is 'many'"):
        open_tokenizer(tmp_path, config)


def other_model(**changes: Any) -> bytes:
    """spiece.model with other settings."""
    proto = ModelProto()
    proto.ParseFromString(SPIECE.read_bytes())
    for name, value in changes.items():
        message = proto.trainer_spec if hasattr(proto.trainer_spec, name) else proto.normalizer_spec
        setattr(message, name, value)
    return proto.SerializeToString()


def without(*kinds: int) -> bytes:
    """spiece.model without its pieces of some kinds."""
    proto = ModelProto()
    proto.ParseFromString(SPIECE.read_bytes())
    left = [piece for piece in proto.pieces if piece.type not in kinds]
    del proto.pieces[:]
    proto.pieces.extend(left)
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (other_model(model_type=2), ["model_type is 2"]),
        (other_model(byte_fallback=True), ["byte_fallback is 1"]),
        (other_model(treat_whitespace_as_suffix=True), ["treat_whitespace_as_suffix is 1"]),
        (other_model(add_dummy_prefix=False), ["add_dummy_prefix is 0"]),
        (other_model(remove_extra_whitespaces=False), ["remove_extra_whitespaces is 0"]),
        (other_model(escape_whitespaces=False), ["escape_whitespaces is 0"]),
        (without(2), ["0 unknown pieces, expected one"]),
        (without(3), ["a piece </s>"]),
        (SPIECE.read_bytes() * 2, ["unknown pieces"]),
        (b"", ["not a SentencePiece model, or truncated", "0 pieces"]),
        (b"hello, world", ["not a SentencePiece model, or truncated"]),
        (b"\x08\x01", ["not a SentencePiece model, or truncated", "0 pieces"]),
        (b"\x0a\x02\x0a\xff", ["truncated"]),
        (b"\x0a\x03\x0a\x01\xff", ["truncated"]),
        (b"\xff" * 30, ["not a SentencePiece model, or truncated"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer"]),
    ],
)
def test_other_sentencepiece_models(tmp_path: Path, data: bytes, words: list[str]):
    path = tmp_path / "spiece.model"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        from_sentencepiece(path)
    assert [word for word in [str(path), *words] if word not in str(error.value)] == [], str(error.value)


def test_truncated_sentencepiece_model(tmp_path: Path):
    whole, path = SPIECE.read_bytes(), tmp_path / "spiece.model"
    pieces = sum(1 for _ in ModelProto.FromString(whole).pieces)
    assert pieces == 180
    for length in [*range(1, 3000, 7), 5000, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            from_sentencepiece(path)


@pytest.mark.parametrize(
    ("content", "change", "kind", "words"),
    [
        (None, {}, FileNotFoundError, ["no tokenizer.json and no spiece.model"]),
        ("{}", {}, CheckpointError, ["tokenizer.json: not a tokenizer"]),
        ("version https://git-lfs.github.com", {}, CheckpointError, ["Git LFS pointer"]),
        ("ours", {"vocab_size": 200}, CheckpointError, ["go up to 279", "knows 200"]),
        ("ours", {"eos_token_id": 5}, CheckpointError, ["an empty text is [1]", "[5]"]),
    ],
)
def test_other_tokenizers(
    tmp_path: Path, content: str | None, change: dict[str, int], kind: type[Exception], words: list[str]
):
    if content == "ours":
        from_sentencepiece(SPIECE).save(str(tmp_path / "tokenizer.json"))
    elif content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(kind) as error:
        open_tokenizer(tmp_path, text_config(T5Config(**TINY).to_dict() | change))
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


# The bundle


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny T5 of transformers, and the bundle that is exported from its folder."""
    path, theirs = tmp_path_factory.mktemp("text"), t5(6, feed_forward_proj="gated-gelu")
    export.text.export(folder(path / "t5", theirs), path / "bundle")
    return theirs, path / "bundle"


def test_bundle(text_bundle: Any):
    _, bundle = text_bundle
    names = {"manifest.json", "text_encoder.onnx", "text_encoder.onnx.data", "tokenizer.json"}
    assert {path.name for path in bundle.iterdir()} == names
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["model"] == {"text_dim": 24, "text_vocab": 300, "text_pad_token": 0, "text_eos_token": 1}
    assert manifest["graphs"].keys() == {"text_encoder"}
    assert manifest["files"].keys() == names - {"manifest.json"}
    assert manifest["cache_update"] is None


def test_descriptions(text_bundle: Any, tokenizers: Any):
    """What upstream computes: one padded batch, the rows of null text masked."""
    theirs, bundle = text_bundle
    texts = [*TEXTS, None, "", TEXTS[1]]
    batch = tokenizers[1]([text or "" for text in texts], return_tensors="np", padding=True)
    mask = batch["attention_mask"] * np.array([bool(text) for text in texts])[:, None]
    hidden = run_torch(theirs, batch["input_ids"], mask)
    assert mask.shape[1] > 512
    ours = TextEncoder.load(bundle).encode(texts)
    assert [text for text, states in zip(texts, ours, strict=True) if states is None] == [None, ""]
    for row, states in enumerate(ours):
        if states is not None:
            n = mask[row].sum()
            assert difference(states, hidden[row, :n], np.ones(n)) < TOLERANCE
            assert states.dtype == np.float32


def test_nothing_to_encode(text_bundle: Any):
    encoder = TextEncoder.load(text_bundle[1])
    assert encoder.encode([]) == []
    assert encoder.encode([None, ""]) == [None, None]


@pytest.mark.parametrize("descriptions", ["drums", ["a \ud800"], [7]])
def test_descriptions_that_are_none(text_bundle: Any, descriptions: Any):
    with pytest.raises(ValueError, match="descriptions: got"):
        TextEncoder.load(text_bundle[1]).encode(descriptions)


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("tokenizer.json", None, FileNotFoundError, ["tokenizer.json: listed in manifest.json, but not there"]),
        ("tokenizer.json", b"{}", BundleError, ["tokenizer.json: 2 bytes"]),
        ("text_encoder.onnx.data", b"", BundleError, ["text_encoder.onnx.data: 0 bytes"]),
        ("manifest.json", None, FileNotFoundError, ["manifest.json: not found"]),
    ],
)
def test_damaged_bundles(
    text_bundle: Any, tmp_path: Path, name: str, content: bytes | None, kind: type[Exception], words: list[str]
):
    bundle = shutil.copytree(text_bundle[1], tmp_path / "bundle")
    (bundle / name).unlink()
    if content is not None:
        (bundle / name).write_bytes(content)
    with pytest.raises(kind) as error:
        TextEncoder.load(bundle)
    assert [word for word in [str(bundle), *words] if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("not listed", ["contains no tokenizer.json"]),
        ("not a tokenizer", ["tokenizer.json: not readable"]),
    ],
)
def test_bundles_without_a_tokenizer(text_bundle: Any, tmp_path: Path, change: str, words: list[str]):
    bundle = shutil.copytree(text_bundle[1], tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    if change == "not listed":
        del manifest["files"]["tokenizer.json"]
    else:
        size = manifest["files"]["tokenizer.json"]["bytes"]
        (bundle / "tokenizer.json").write_bytes(b"{" + b" " * (size - 1))
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as error:
        TextEncoder.load(bundle, hashes=False)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_bundles_without_a_graph(text_bundle: Any, tmp_path: Path):
    with pytest.raises(BundleError, match="contains no graph lm_inference, only text_encoder"):
        LanguageModel.load(text_bundle[1])
    bundle = shutil.copytree(text_bundle[1], tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["graphs"]["text_encoder"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="contains no text encoder; export it again with --text"):
        TextEncoder.load(bundle)


def test_runtime_without_torch(text_bundle: Any):
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'einops', 'onnx', 'yaml', 'safetensors', 'transformers')))\n"
        "from clean_lm.text_encoder import TextEncoder\n"
        "print([None if s is None else s.shape for s in TextEncoder.load(sys.argv[1]).encode(['drums', None])])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, text_bundle[1]],
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("[(")
    assert done.stdout.endswith(", 24), None]\n")


def test_export_refuses_what_differs(text_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_other(_: Model[TextConfig], folder: Path) -> None:
        for path in text_bundle[1].glob("text_encoder.*"):
            shutil.copy(path, folder)

    monkeypatch.setattr(export.text, "write_graphs", write_other)
    path = folder(tmp_path / "t5", t5(7, feed_forward_proj="gated-gelu"))
    with pytest.raises(ExportError, match=r"nothing was written.*DISAGREES"):
        export.text.export(path, tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["t5"]


def test_export_as_a_script(tmp_path: Path):
    path = folder(tmp_path / "t5", t5())
    (path / "spiece.model").unlink()
    done = subprocess.run(
        [sys.executable, HERE.parent / "export" / "text.py", "--text", path, "--out", tmp_path / "bundle"],
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {path}: no tokenizer.json and no spiece.model; copy one of them from the same T5\n"
    assert not (tmp_path / "bundle").exists()
