"""weights/lm.py and weights/check.py: every tensor has its place, and every one that has none is named."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clean_lm.models.config import ConfigError
from tests.tiny_models import to_huggingface
from weights import check
from weights.lm import load
from weights.mapping import MappingError

pytestmark = pytest.mark.weights

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
TEXT = "condition_provider.conditioners.description.output_proj"
SELF_WAV = "condition_provider.conditioners.self_wav"

RELEASED = {
    # name: what `check` says of its size; the parameters of small are those that its users report
    "musicgen-small": (420_371_456, "24 layers x 1024, 16 heads, feed-forward 4096, 4 codebooks of 2048"),
    "musicgen-medium": (1_838_737_920, "48 layers x 1536, 24 heads"),
    "musicgen-large": (3_256_956_928, "48 layers x 2048, 32 heads"),
    "musicgen-melody": (None, "attended to: nothing; prepended: self_wav, description"),
    "musicgen-melody-large": (None, "48 layers x 2048, 32 heads"),
    "musicgen-stereo-small": (None, "8 codebooks of 2048, delays 0 0 1 1 2 2 3 3\n32000 Hz stereo"),
    "musicgen-stereo-medium": (None, "48 layers x 1536"),
    "musicgen-stereo-large": (None, "48 layers x 2048"),
    "musicgen-stereo-melody": (None, "32000 Hz stereo"),
    "musicgen-stereo-melody-large": (None, "prepended: self_wav, description"),
    "musicgen-style": (None, "attended to: nothing; prepended: self_wav, description"),
    "audiogen-medium": (None, "16000 Hz mono, windows of 10 s, text from t5-large (1024); attended to: description"),
}

# The sizes of facebook/musicgen-small
SMALL: dict[str, Any] = {
    "model_type": "musicgen",
    "decoder": {
        "hidden_size": 1024,
        "ffn_dim": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_codebooks": 4,
        "vocab_size": 2048,
        "audio_channels": 1,
    },
    "text_encoder": {"d_model": 768},
    "audio_encoder": {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4]},
}

Output = pytest.CaptureFixture[str]


def package(name: str) -> dict[str, Any]:
    return torch.load(GOLDEN / name / "state_dict.bin", weights_only=True)


def save(folder: Path, state: dict[Any, Tensor], name: str = "text") -> Path:
    """A golden checkpoint with other tensors."""
    path = folder / "state_dict.bin"
    torch.save(package(name) | {"best_state": state}, path)
    return path


def run_check(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["check.py", *map(str, args)])
    return check.main()


def unpack(name: str, folder: Path) -> Path:
    """A released key list as plain JSON."""
    path = folder / f"{name}.json"
    path.write_bytes(gzip.decompress((HERE / "layouts" / f"{name}.json.gz").read_bytes()))
    return path


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"max_length": 1500}')
    return folder / "config.json"


def table_rows(out: str) -> dict[str, tuple[int, int]]:
    """The printed table: component -> tensors, parameters."""
    columns = [(line[:16].strip(), line[16:40].replace(",", "").split()) for line in out.splitlines()[2:]]
    return {name: (int(n[0]), int(n[1])) for name, n in columns if len(n) == 2 and n[0].isdigit()}


@pytest.mark.parametrize("name", RELEASED)
def test_released_layouts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    layout = unpack(name, tmp_path)
    assert run_check(monkeypatch, "--layout", layout, "--config", HERE / "layouts" / f"{name}.cfg.yaml") == 0
    out = capsys.readouterr().out
    parameters, words = RELEASED[name]
    assert words in out
    assert out.splitlines()[-1] == "OK, names and shapes (values were not read)"
    assert max(map(len, out.splitlines()[1:])) <= 120
    rows = table_rows(out)
    assert parameters in (None, sum(numbers for _, numbers in rows.values()))
    if name != "musicgen-style":  # several patterns are dropped there
        assert sum(tensors for tensors, _ in rows.values()) == len(json.loads(layout.read_text()))


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("name", ["hf_musicgen_small", "hf_musicgen_small.full"])
def test_released_huggingface(
    name: str, positions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
):
    layout = unpack(name, tmp_path)
    if positions:
        extra = {"decoder.model.decoder.embed_positions.weights": [[2048, 1024], "torch.float32"]}
        layout.write_text(json.dumps(json.loads(layout.read_text()) | extra))
    assert run_check(monkeypatch, "--layout", layout, "--config", write_config(tmp_path, SMALL)) == 0
    out = capsys.readouterr().out
    assert RELEASED["musicgen-small"][1] in out
    kept = {name: row for name, row in table_rows(out).items() if name != "dropped"}
    assert sum(numbers for _, numbers in kept.values()) == 420_371_456
    assert ("the sinusoid is computed" in out) == positions
    assert ("exported by export/codec.py" in out) == name.endswith("full")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("encodec_32khz", "encodec_32khz.cfg.yaml"),
        ("encodec_32khz", "musicgen-small.cfg.yaml"),
        ("musicgen-small", "encodec_32khz.cfg.yaml"),
        ("hf_encodec_32khz", "hf_encodec_32khz.config.json"),
        ("hf_musicgen_small", "hf_encodec_32khz.config.json"),
    ],
)
def test_layout_of_a_codec(name: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    layout = unpack(name, tmp_path)
    assert run_check(monkeypatch, "--layout", layout, "--config", HERE / "layouts" / config) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {layout}: names or configuration of a codec, not of a language model; "
        "`python export/codec.py --codec FILE` checks and exports a codec\n"
    )


def test_values_of_text():
    theirs, model = package("text")["best_state"], load(GOLDEN / "text")
    lm, condition = model.weights("lm"), model.weights("condition")
    d, layer = 64, "transformer.layers.2"
    expected = {
        "embedding": torch.cat([theirs[f"emb.{k}.weight"] for k in range(4)]),
        "heads": torch.cat([theirs[f"linears.{k}.weight"] for k in range(4)]).T,
        "out_norm.weight": theirs["out_norm.weight"],
        "layers.2.qkv": theirs[f"{layer}.self_attn.in_proj_weight"].T,
        "layers.2.out": theirs[f"{layer}.self_attn.out_proj.weight"].T,
        "layers.2.cross_q": theirs[f"{layer}.cross_attention.in_proj_weight"][:d].T,
        "layers.2.cross_out": theirs[f"{layer}.cross_attention.out_proj.weight"].T,
        "layers.2.linear1": theirs[f"{layer}.linear1.weight"].T,
        "layers.2.linear2": theirs[f"{layer}.linear2.weight"].T,
        "layers.2.norm1.bias": theirs[f"{layer}.norm1.bias"],
        "layers.2.norm_cross.weight": theirs[f"{layer}.norm_cross.weight"],
        "layers.2.norm2.weight": theirs[f"{layer}.norm2.weight"],
    }
    assert {name: bool(torch.equal(lm[name], tensor)) for name, tensor in expected.items()} == dict.fromkeys(
        expected, True
    )
    key_values = theirs[f"{layer}.cross_attention.in_proj_weight"][d:].T
    assert torch.equal(condition["key_values.2"], key_values)
    assert torch.equal(condition["output_proj"], theirs[f"{TEXT}.weight"].T)
    assert torch.equal(condition["output_bias"], theirs[f"{TEXT}.bias"])
    assert set(condition) == {"output_proj", "output_bias", "key_values.0", "key_values.1", "key_values.2"}
    assert len(lm) == 4 + 3 * 12
    assert model.parameters == sum(tensor.numel() for tensor in theirs.values())


def test_values_of_a_prefix():
    theirs, melody = package("melody")["best_state"], load(GOLDEN / "melody").weights("melody")
    assert torch.equal(melody["window"], theirs[f"{SELF_WAV}.chroma.spec.window"])
    assert torch.equal(melody["output_proj"], theirs[f"{SELF_WAV}.output_proj.weight"].T)
    theirs, style = package("style")["best_state"], load(GOLDEN / "style").weights("style")
    assert torch.equal(style["layers.1.qkv"], theirs[f"{SELF_WAV}.transformer.layers.1.self_attn.in_proj_weight"].T)
    assert torch.equal(style["codebooks.5"], theirs[f"{SELF_WAV}.rvq.vq.layers.5._codebook.embed"])
    assert torch.equal(style["variance"], theirs[f"{SELF_WAV}.batch_norm.running_var"])
    assert len(style) == 6 + 2 * 8 + 6


def test_fp16_is_widened_exactly():
    theirs, model = package("finetune_fp16")["best_state"], load(GOLDEN / "finetune_fp16")
    name = "transformer.layers.0.self_attn.in_proj_weight"
    wide, narrow = model.weights("lm")["layers.0.qkv"], model.weights("lm", torch.float16)["layers.0.qkv"]
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.float16)
    assert torch.equal(wide, theirs[name].float().T)
    assert torch.equal(narrow, theirs[name].T)


def test_huggingface_gives_the_same_weights(tmp_path: Path):
    save_file(to_huggingface(package("text")["best_state"]), tmp_path / "model.safetensors")
    sizes = {"hidden_size": 64, "ffn_dim": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
    write_config(tmp_path, SMALL | {"decoder": SMALL["decoder"] | sizes})
    ours, other = load(GOLDEN / "text"), load(tmp_path)
    assert ours.parameters == other.parameters
    for component in ("lm", "condition"):
        a, b = ours.weights(component), other.weights(component)
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_names_of_pytorchs_attention(tmp_path: Path):
    state = package("text")["best_state"]
    state = {name.replace("self_attn.", "self_attn.mha."): tensor for name, tensor in state.items()}
    assert sum(".mha." in name for name in state) == 6
    a, b = load(GOLDEN / "text").weights("lm"), load(save(tmp_path, state)).weights("lm")
    assert torch.equal(a["layers.1.qkv"], b["layers.1.qkv"])


def test_every_difference_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    state = package("text")["best_state"]
    state["extra.weight"] = state.pop("linears.1.weight")
    state["transformer.layers.0.linear1.bias"] = torch.zeros(256)
    del state["transformer.layers.2.norm_cross.bias"]
    state["transformer.layers.1.linear2.weight"] = torch.zeros(256, 64)
    state["emb.0.weight"] = torch.zeros(65, 64, dtype=torch.int64)
    expected = [
        "missing     linears.1.weight [64, 64]",
        "missing     transformer.layers.2.norm_cross.bias [64]",
        "unexpected  extra.weight [64, 64]",
        "unexpected  transformer.layers.0.linear1.bias [256]",
        "not floats  emb.0.weight: found torch.int64",
        "misshapen   transformer.layers.1.linear2.weight: found [256, 64], expected [64, 256]",
    ]
    path = save(tmp_path, state)
    with pytest.raises(MappingError) as error:
        load(path)
    head, *lines = str(error.value).split("\n  ")
    assert head == f"{path}: its tensors are not those of its configuration:"
    assert sorted(lines) == sorted(expected)
    assert run_check(monkeypatch, "--ckpt", path) == 1
    out = capsys.readouterr().out
    assert "\n6 problems:\n" in out
    assert [line for line in expected if line not in out] == []
    assert "OK" not in out


@pytest.mark.parametrize("tensor", [None, torch.ones(4)])
def test_widths_that_only_the_tensors_know(tmp_path: Path, tensor: Tensor | None):
    state = package("text")["best_state"]
    del state[f"{TEXT}.weight"]
    path = save(tmp_path, state | ({} if tensor is None else {f"{TEXT}.weight": tensor}))
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: no {TEXT}.weight of two axes")


def test_style_of_another_scale(tmp_path: Path):
    style, path = package("style"), tmp_path / "state_dict.bin"
    torch.save(
        style | {"xp.cfg": style["xp.cfg"].replace("transformer_scale: tiny", "transformer_scale: xsmall")}, path
    )
    with pytest.raises(MappingError) as error:
        load(path)
    assert f"misshapen   {SELF_WAV}.embed.weight: found [32, 768], expected [256, 768]" in str(error.value)
    assert f"missing     {SELF_WAV}.transformer.layers.3.linear2.weight [256, 1024]" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("n_chroma: 12", "n_chroma: twelve", ["n_chroma", "'twelve'", "int"]),
        ("radix2_exp: 14", "radix2_exp: null", ["radix2_exp", "needed"]),
        ("radix2_exp: 14", "radix2_exp: 40", ["self_wav radix2_exp 40", "2 to 20"]),
        ("n_chroma: 12", "n_chroma: 0", ["self_wav chroma 0", "2 pitch classes or more"]),
        ("argmax: true", "argmax: false", ["self_wav.chroma_stem.argmax: found False, supported: True"]),
        ("argmax: true", "argmax: true\n      norm: 2", ["self_wav.chroma_stem.norm: found 2, supported: inf"]),
        ("argmax: true", "argmax: true\n      winhop: 5", ["self_wav.chroma_stem.winhop: found 5, supported: None"]),
        ("eval_wavs: null", "eval_wavs: wavs.json", ["chroma_stem.eval_wavs: found 'wavs.json', supported: None"]),
        ("model: chroma_stem", "model: clap", ["self_wav.model", "'clap'", "'chroma_stem', 'style'"]),
        ("model: chroma_stem", "model: [1]", ["self_wav.model", "[1]"]),
    ],
)
def test_melody_conditioner_of_another_kind(tmp_path: Path, old: str, new: str, words: list[str]):
    refused(tmp_path, "melody", old, new, words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model_name: mert", "model_name: encodec", ["self_wav.style.model_name: found 'encodec', supported: 'mert'"]),
        ("batch_norm: true", "batch_norm: false", ["self_wav.style.batch_norm: found False, supported: True"]),
        ("use_middle_of_segment: false", "use_middle_of_segment: true", ["use_middle_of_segment: found True"]),
        ("scale: tiny", "scale: none", ["self_wav.style.transformer_scale: found 'none'"]),
        ("scale: tiny", "scale: huge", ["self_wav.style.transformer_scale: found 'huge'", "'default', 'large'"]),
        ("eval_q: 3", "eval_q: 7", ["self_wav eval_q 7", "from 1 to n_q_out, 6"]),
        ("eval_q: 3", "eval_q: 0", ["self_wav eval_q 0", "from 1 to n_q_out, 6"]),
        ("bins: 16", "bins: 1", ["self_wav bins 1", "2 vectors or more"]),
        ("ds_factor: 15", "ds_factor: 0", ["self_wav ds_factor 0", "above 0"]),
        ("length: 3.0", "length: .nan", ["self_wav length nan", "above 0"]),
        ("length: 3.0", "length: three", ["style.length", "'three'", "float"]),
        ("sample_rate: ${sample_rate}", "sample_rate: 24000", ["self_wav sample_rate 24000: expected 32000"]),
        ("  - self_wav\n", "", ["fuser.prepend ['description']", "conditioners.self_wav not null"]),
        ("model: style", "model: null", ["['self_wav', 'description']", "conditioners.self_wav null"]),
    ],
)
def test_style_conditioner_of_another_kind(tmp_path: Path, old: str, new: str, words: list[str]):
    refused(tmp_path, "style", old, new, words)


def refused(folder: Path, name: str, old: str, new: str, words: list[str]) -> None:
    """A golden checkpoint with something else in its configuration is refused in these words."""
    theirs, path = package(name), folder / "state_dict.bin"
    assert old in theirs["xp.cfg"]
    torch.save(theirs | {"xp.cfg": theirs["xp.cfg"].replace(old, new)}, path)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert [word for word in [str(path), *words] if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("name", ["text", "finetune_fp16", "stereo", "audiogen", "melody", "style"])
def test_check_goldens(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    assert run_check(monkeypatch, "--ckpt", GOLDEN / name) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "OK, and every value is finite"
    assert captured.err == ""


def test_check_table(monkeypatch: pytest.MonkeyPatch, capsys: Output):
    run_check(monkeypatch, "--ckpt", GOLDEN / "finetune_fp16")
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["component", "tensors", "parameters", "dtype", "becomes"] in words
    assert ["self-attention", "6", "49,152", "float16", "lm.layers.*.qkv,", "lm.layers.*.out"] in words
    assert ["text", "projection", "2", "49,216", "float16", "condition.output_proj,", "condition.output_bias"] in words
    assert ["dropped:", "nothing"] in words


def test_whether_a_tensor_is_there_is_known_without_reading_it(monkeypatch: pytest.MonkeyPatch):
    weights = load(GOLDEN / "text").weights("lm")
    monkeypatch.setattr(weights, "read", None)
    assert "layers.0.qkv" in weights
    assert "layers.9.qkv" not in weights


def test_check_finds_values_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    state = package("finetune_fp16")["best_state"]
    state["linears.3.weight"][5, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    state["out_norm.bias"][0] = torch.nan
    assert run_check(monkeypatch, "--ckpt", save(tmp_path, state)) == 1
    out = capsys.readouterr().out
    assert "\n2 problems:\n" in out
    assert "not finite  linears.3.weight: 3 of 4,096 values" in out
    assert "not finite  out_norm.bias: 1 of 64 values" in out


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (GOLDEN / "options", ["options", "bias_attn: found True", "qk_layer_norm_cross: found True"]),
        (GOLDEN / "none", ["none: no such file or folder"]),
        (HERE, ["no model found; expected audiocraft's state_dict.bin"]),
        (Path(__file__), ["test_weights.py: not a file of torch.save"]),
    ],
)
def test_check_errors(path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Output):
    assert run_check(monkeypatch, "--ckpt", path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert [word for word in words if word not in captured.err] == [], captured.err


@pytest.mark.parametrize(
    "args", [[], ["--ckpt", "a", "--layout", "b"], ["--layout", "a"], ["--ckpt", "a", "--config", "b"]]
)
def test_check_usage(args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Output):
    with pytest.raises(SystemExit) as stop:
        run_check(monkeypatch, *args)
    assert stop.value.code == 2
    assert "usage: check.py" in capsys.readouterr().err


def test_check_as_a_script():
    root = HERE.parent
    done = subprocess.run(
        [sys.executable, root / "weights" / "check.py", "--ckpt", GOLDEN / "options"],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
