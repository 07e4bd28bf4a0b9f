# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""What people bring as a checkpoint, a test for every kind: read, with the right values, or refused in one line."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from clean_lm.models.config import ConfigError
from export import bundle, codec, lm
from export.commands import ExportError
from tests.support import GOLDEN, ROOT
from tests.test_lora import musicgen
from weights import codec as codec_weights
from weights import text as text_weights
from weights.checkpoint import CheckpointError, open_codec, open_lm, open_text
from weights.lm import load
from weights.mapping import MappingError

pytestmark = pytest.mark.weights

FILE = GOLDEN / "text" / "state_dict.bin"
T5 = "condition_provider.conditioners.description.t5"


def package() -> dict[str, Any]:
    return torch.load(FILE, weights_only=True)


def assert_same_values(ours: Any, state: dict[str, Tensor]) -> None:
    assert ours.specs.keys() == state.keys()
    read = ours.open()
    assert all(torch.equal(read(name), tensor) for name, tensor in state.items())


def refused(kind: type[Exception], words: list[str], call: Callable[[], object]) -> None:
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert "\n" not in message, message
    assert [word for word in words if word not in message] == [], message


# Wrappers and trainers


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "lm.", "module._orig_mod.", "_orig_mod.module.", "model.lm.",
               "_fsdp_wrapped_module.", "module.model._orig_mod."]
)  # fmt: skip
def test_names_left_by_wrappers(tmp_path: Path, prefix: str):
    made = package()
    state = made["best_state"]
    made["best_state"] = {prefix + name: tensor for name, tensor in state.items()}
    torch.save(made, tmp_path / "state_dict.bin")
    ours = open_lm(tmp_path)
    assert_same_values(ours, state)
    assert prefix in ours.notes[0]
    load(tmp_path)


def test_names_left_within(tmp_path: Path):
    """Of torch.compile on every layer, and of activation checkpointing."""
    made = package()
    state, wrapped = made["best_state"], {}
    for name, tensor in state.items():
        inner = name.replace("transformer.layers.0.", "transformer.layers.0._orig_mod.")
        wrapped[inner.replace("layers.1.", "layers.1._checkpoint_wrapped_module.")] = tensor
    made["best_state"] = wrapped
    torch.save(made, tmp_path / "state_dict.bin")
    assert_same_values(open_lm(tmp_path), state)


def test_names_left_on_a_codec(tmp_path: Path):
    made = torch.load(GOLDEN / "text" / "compression_state_dict.bin", weights_only=True)
    state = made["best_state"]
    made["best_state"] = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(made, tmp_path / "compression_state_dict.bin")
    assert_same_values(open_codec(tmp_path), state)
    codec_weights.load(tmp_path)


def test_names_left_on_a_hugging_face_model(tmp_path: Path):
    musicgen().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
    assert_same_values(open_lm(tmp_path), state)


def test_one_name_by_two_wrappers(tmp_path: Path):
    made = package()
    state = made["best_state"]
    made["best_state"] = {f"module.{name}": tensor for name, tensor in state.items()} | {"out_norm.bias": torch.ones(1)}
    torch.save(made, tmp_path / "state_dict.bin")
    refused(CheckpointError, ["out_norm.bias", "same tensor"], lambda: open_lm(tmp_path))


@pytest.mark.parametrize("prefix", ["", "model.", "lm."])
def test_lightning(tmp_path: Path, prefix: str):
    """Its state_dict has no configuration: that of --base is taken."""
    state = package()["best_state"]
    path = tmp_path / "last.ckpt"
    named = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"state_dict": named, "pytorch-lightning_version": "2.5.0", "epoch": 3, "optimizer_states": []}, path)
    words = ["a checkpoint of PyTorch Lightning", "no xp.cfg", "it holds state_dict", "with --base", "best_state"]
    refused(CheckpointError, words, lambda: open_lm(path))
    assert_same_values(open_lm(path, FILE), state)
    assert_same_values(open_lm(tmp_path, FILE.parent), state)
    assert load(path, FILE).config == load(FILE).config


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_bare_tensors(tmp_path: Path, prefix: str):
    state = package()["best_state"]
    path = tmp_path / "finetune.pt"
    torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    refused(CheckpointError, ["bare tensors", "no xp.cfg", "--base"], lambda: open_lm(path))
    assert_same_values(open_lm(path, FILE), state)


@pytest.mark.parametrize("name", ["checkpoint.th", "other.th"])
def test_fsdp(tmp_path: Path, name: str):
    """checkpoint.th of dora's folder whose best_state is empty, with the configuration as text."""
    made = package()
    state = made.pop("best_state")
    full = made | {"best_state": {}, "fsdp_best_state": {"model": state}, "history": [{"epoch": 1}]}
    torch.save(full, tmp_path / name)
    assert_same_values(open_lm(tmp_path / name), state)
    if name == "checkpoint.th":
        assert_same_values(open_lm(tmp_path), state)
    torch.save(made | {"best_state": {}, "fsdp_best_state": {}}, tmp_path / name)
    refused(CheckpointError, ["best_state is empty", "FSDP", "export_lm"], lambda: open_lm(tmp_path / name))


# Archives


def archive(path: Path, mode: str) -> Path:
    names = ("state_dict.bin", "compression_state_dict.bin")
    if mode == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.write(FILE.parent / name, f"finetune/{name}")
    else:
        with tarfile.open(path, mode) as file:
            for name in names:
                file.add(FILE.parent / name, f"finetune/{name}")
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.tar", "w"),
        ("a.tar.gz", "w:gz"),
        ("a.tar.xz", "w:xz"),
        ("a.tar.bz2", "w:bz2"),
        ("a.zip", "zip"),
        ("state_dict.bin", "zip"),
    ],
)
@pytest.mark.parametrize("reader", [open_lm, open_codec, open_text])
def test_archives(tmp_path: Path, name: str, mode: str, reader: Callable[[Path], object]):
    path = archive(tmp_path / name, mode)
    words = ["an archive that holds finetune/state_dict.bin, finetune/compression_state_dict.bin: unpack it"]
    refused(CheckpointError, words, lambda: reader(path))


@pytest.mark.parametrize(("head", "kind"), [(b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07\x01\x00", "RAR")])
def test_archives_by_their_first_bytes(tmp_path: Path, head: bytes, kind: str):
    path = tmp_path / "state_dict.bin"
    path.write_bytes(head + bytes(600))
    refused(CheckpointError, [f"a {kind} archive; unpack it"], lambda: open_lm(path))


def test_a_file_of_torch_save_is_no_archive():
    assert open_lm(FILE).layout == "audiocraft"


# Hugging Face's folders


def as_bin(folder: Path, shards: int) -> dict[str, Tensor]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return tensors
    files = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        torch.save({name: tensor for name, tensor in tensors.items() if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    return tensors


@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_model_bin(tmp_path: Path, shards: int):
    musicgen().save_pretrained(tmp_path)
    tensors = as_bin(tmp_path, shards)
    file = next(tmp_path.glob("pytorch_model*.bin"))
    for path in (tmp_path, tmp_path / "config.json", file):
        assert_same_values(open_lm(path), tensors)
    assert_same_values(open_codec(tmp_path), tensors)
    assert_same_values(open_text(tmp_path), tensors)
    load(tmp_path)
    codec_weights.load(tmp_path)
    text_weights.load(tmp_path)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_decoder_alone(tmp_path: Path, format: str):
    """MusicgenForCausalLM's folder with the model that it was taken from; refused where that is not given."""
    model = musicgen()
    model.save_pretrained(tmp_path / "whole")
    for parameter in model.decoder.parameters():
        parameter.data += 0.1
    model.decoder.save_pretrained(tmp_path / "decoder")
    if format == "bin":
        as_bin(tmp_path / "decoder", 1)
    words = ["a decoder that was saved without the projection of the text (enc_to_dec_proj)", "save the whole model",
             "--base FOLDER"]  # fmt: skip
    refused(CheckpointError, words, lambda: open_lm(tmp_path / "decoder"))
    ours = open_lm(tmp_path / "decoder", tmp_path / "whole")
    assert_same_values(ours, {n: t for n, t in model.state_dict().items() if n in ours.specs})
    assert load(tmp_path / "decoder", tmp_path / "whole").config == load(tmp_path / "whole").config


def test_a_decoder_with_a_text_projection(tmp_path: Path):
    model = musicgen()
    model.decoder.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {f"enc_to_dec_proj.{name}": tensor for name, tensor in model.enc_to_dec_proj.state_dict().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    ours = load(tmp_path)
    assert (ours.config.text_dim, ours.config.sample_rate) == (10, 32_000)
    assert "EnCodec's at 32 kHz" in ours.checkpoint.notes[0]


@pytest.mark.parametrize(
    ("generation", "seconds", "words"),
    [
        ({"max_length": 256}, 30.0, ["max_length 256, 5.12 s", "less than the 30 s", "--max-duration SECONDS"]),
        ({"max_new_tokens": 256}, 30.0, ["has no max_length: windows of 30 s", "--max-duration SECONDS"]),
        ({"max_length": None}, 30.0, ["has no max_length: windows of 30 s"]),
        (None, 30.0, ["has no max_length: windows of 30 s"]),
        ({"max_length": 1500}, 30.0, []),
        ({"max_length": 1503}, 30.06, []),
    ],
)
def test_windows_of_generation_config(tmp_path: Path, generation: Any, seconds: float, words: list[str]):
    musicgen().save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.unlink()
    if generation is not None:
        path.write_text(json.dumps(generation))
    model = load(tmp_path)
    assert model.config.max_duration == pytest.approx(seconds)
    assert [word for word in words if word not in " ".join(model.checkpoint.notes)] == []
    assert len(model.checkpoint.notes) == bool(words)
    other = load(tmp_path, max_duration=8.0)
    assert (other.config.max_duration, other.checkpoint.notes) == (8.0, ())


def test_the_windows_are_told_and_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    musicgen().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"max_length": 256}')
    lm.export(tmp_path / "model", tmp_path / "bundle")
    assert "note: generation_config.json has max_length 256" in capsys.readouterr().err
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["model"]["max_duration"] == 30.0


# Values


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch):
    """Found before anything is traced, in every command; nothing is written."""
    monkeypatch.setattr("export.onnx_graph.write", lambda *_: pytest.fail("traced"))
    made = package()
    name = "transformer.layers.1.linear1.weight"
    made["best_state"][name][0, 0] = value
    torch.save(made, tmp_path / "state_dict.bin")
    coded = torch.load(FILE.with_name("compression_state_dict.bin"), weights_only=True)
    torch.save(coded, tmp_path / "compression_state_dict.bin")
    words = ["state_dict.bin: not finite", name, "1 of"]
    refused(MappingError, words, lambda: lm.export(tmp_path, tmp_path / "out"))
    refused(MappingError, words, lambda: bundle.export(tmp_path, None, None, tmp_path / "out"))
    first = "quantizer.vq.layers.0._codebook.embed"
    coded["best_state"][first][0, 0] = value
    torch.save(coded, tmp_path / "compression_state_dict.bin")
    refused(MappingError, ["not finite", first], lambda: codec.export(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# Fine-tuned T5


def finetuned(folder: Path, t5: Path, tensors: bool) -> tuple[Path, Any]:
    """The golden model with a T5 of its own, as audiocraft's T5Conditioner saves it: the module, by the name t5."""
    made = package()
    made["xp.cfg"] = made["xp.cfg"].replace("finetune: false", "finetune: true")
    assert "finetune: true" in made["xp.cfg"]
    model = T5EncoderModel(T5Config(**json.loads((t5 / "config.json").read_text()))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if tensors:
        made["best_state"] |= {f"{T5}.{name}": tensor for name, tensor in model.state_dict().items()}
    folder.mkdir()
    torch.save(made, folder / "state_dict.bin")
    for name in ("compression_state_dict.bin",):
        (folder / name).write_bytes((FILE.parent / name).read_bytes())
    return folder, model


def test_a_fine_tuned_t5(tmp_path: Path, t5: Path):
    folder, model = finetuned(tmp_path / "model", t5, tensors=True)
    ours = text_weights.load_finetuned(open_lm(folder), t5)
    read = ours.checkpoint.open()
    assert all(torch.equal(read(name), tensor) for name, tensor in model.state_dict().items())
    bundle.export(folder, None, t5, tmp_path / "bundle")
    from clean_lm.text_encoder import TextEncoder

    texts = TextEncoder.load(tmp_path / "bundle")
    [states] = texts.encode(["slow house drums"])
    ids = torch.tensor([texts.tokenizer.encode("slow house drums").ids])
    with torch.inference_mode():
        theirs = model(ids).last_hidden_state[0].numpy()
    assert abs(states - theirs).max() < 1e-4 * abs(theirs).max()


def test_a_fine_tuned_t5_that_is_not_there(tmp_path: Path, t5: Path):
    folder, _ = finetuned(tmp_path / "model", t5, tensors=False)
    words = ["conditioners.description.t5.finetune", "not in the file", "--stock-text"]
    refused(ExportError, words, lambda: bundle.export(folder, None, t5, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
    bundle.export(folder, None, t5, tmp_path / "bundle", stock_text=True)
    assert (tmp_path / "bundle" / "text_encoder.onnx").exists()


# Other codecs


@pytest.mark.parametrize("name", ["dac_44khz", "//pretrained/dac_44khz"])
def test_a_pointer_to_dac(tmp_path: Path, name: str):
    torch.save({"pretrained": name, "exported": True}, tmp_path / "compression_state_dict.bin")
    words = [f"a pointer to the codec {name!r}", "Descript's DAC, not EnCodec", "facebook/encodec_32khz"]
    refused(CheckpointError, words, lambda: open_codec(tmp_path))


def test_a_folder_of_dac(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "dac"}')
    refused(CheckpointError, ["'dac'", "Descript's DAC, not EnCodec"], lambda: open_codec(tmp_path))


def test_a_codec_at_44100_hz():
    """A hop of 512 there makes 86.13 frames a second."""
    with pytest.raises(
        ConfigError, match=r"44100 is not a multiple of the hop 512: 86\.13 codes a second, expected a w"
    ):
        replace(codec_weights.load(GOLDEN / "text").config, sample_rate=44_100, ratios=(8, 8, 8)).validate()


def test_one_line_and_nothing_written(tmp_path: Path):
    """The command itself: exit status 1, one line on stderr."""
    path = archive(tmp_path / "a.zip", "zip")
    run = subprocess.run(
        [sys.executable, "export/bundle.py", "--lm", path, "--out", tmp_path / "out"],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert len(io.StringIO(run.stderr).readlines()) == 1
    assert not (tmp_path / "out").exists()
