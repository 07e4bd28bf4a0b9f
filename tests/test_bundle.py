"""A whole bundle in one export: its parts, what it shares, and what does not belong together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clean_lm.manifest import BundleError, sha256
from clean_lm.musicgen import MusicGen
from export import bundle as module
from export import codec
from export.bundle import export
from export.commands import ExportError
from export.parity import Difference, Verdict
from tests.support import GOLDEN, ROOT
from weights.checkpoint import CheckpointError

pytestmark = pytest.mark.export

LM, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"
CODEC = [f"compression_{half}.onnx{end}" for half in ("decode", "encode") for end in ("", ".data")]
CODEC.append("compression_stream.onnx")
TEXT = ["text_encoder.onnx", "text_encoder.onnx.data"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files(folder: Path) -> set[str]:
    return set(json.loads((folder / "manifest.json").read_text())["files"])


def sound(folder: Path, text: str | None = "slow house") -> np.ndarray:
    model = MusicGen.load(folder)
    model.set_generation_params(duration=0.5)
    made = model.generate([text], seed=0)
    assert isinstance(made, np.ndarray)
    return made


@pytest.fixture
def quick(monkeypatch, music) -> None:
    """Language models come from the bundle that is there: tracing one takes most of an export's time."""

    def copy(model: object, folder: Path, *_: object) -> None:
        for path in music("text", True).glob("lm_*"):
            shutil.copyfile(path, folder / path.name)

    monkeypatch.setattr(module.lm, "write_graphs", copy)


def test_everything(music):
    out = music("text", True)
    manifest = json.loads((out / "manifest.json").read_text())
    assert list(manifest["graphs"]) == ["lm_condition", "lm_inference", *codec.GRAPHS, "text_encoder"]
    assert names(out) == files(out) | {"manifest.json"}
    assert {*CODEC, *TEXT, "tokenizer.json"} < files(out)
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": (out / name).stat().st_size, "sha256": sha256(out / name)}
    model = manifest["model"]
    assert {name: model[name] for name in ("sample_rate", "channels", "hop", "frame_rate", "codebooks", "card")} == {
        "sample_rate": 32000, "channels": 1, "hop": 640, "frame_rate": 50, "codebooks": 4, "card": 64
    }  # fmt: skip
    assert (model["text_dim"], model["text_vocab"], model["text_eos_token"]) == (768, 64, 1)
    assert model["text_encoder"] == "t5-base"
    assert sound(out).shape == (1, 1, 16000)


def test_a_stereo_model_has_a_mono_codec(music):
    out = music("stereo")
    model = json.loads((out / "manifest.json").read_text())["model"]
    assert (model["channels"], model["codebooks"], model["frame_rate"]) == (2, 8, 50)
    assert sound(out, None).shape == (1, 2, 16000)
    with pytest.raises(BundleError, match="contains no text encoder for a description; export it again with --text"):
        sound(out)


# Sharing


@pytest.fixture
def family(quick, music, tmp_path) -> Path:
    """A folder with a whole bundle, one that shares its files, and in a folder within one that shares from that."""
    home = tmp_path / "home"
    shutil.copytree(music("text", True), home / "first")
    checkpoint = GOLDEN / "text" / LM
    export(checkpoint, home / "first", home / "first", home / "second")
    export(checkpoint, home / "second", home / "second", home / "deep" / "third")
    return home


def test_sharing(family, tmp_path):
    """Graphs are not copied, paths are relative and lead to the real files: the folder can move, the middle can go."""
    own = {"lm_inference.onnx", "lm_inference.onnx.data", "lm_condition.onnx", "lm_condition.onnx.data"}
    own.add("tokenizer.json")
    for name, there in (("second", "../first"), ("deep/third", "../../first")):
        assert names(family / name) == own | {"manifest.json"}
        assert files(family / name) == own | {f"{there}/{file}" for file in (*CODEC, *TEXT)}
        manifest = json.loads((family / name / "manifest.json").read_text())
        assert manifest["graphs"]["text_encoder"]["file"] == f"{there}/text_encoder.onnx"
        assert manifest["model"] == json.loads((family / "first" / "manifest.json").read_text())["model"]
    expected = sound(family / "first")
    moved = family.rename(tmp_path / "moved")
    np.testing.assert_array_equal(sound(moved / "second"), expected)
    shutil.rmtree(moved / "second")
    np.testing.assert_array_equal(sound(moved / "deep" / "third"), expected)


def test_a_shared_file_is_gone_or_another(family):
    encoder = family / "first" / "compression_encode.onnx.data"
    content = bytearray(encoder.read_bytes())
    content[100] ^= 1
    encoder.write_bytes(content)
    for call in (lambda: sound(family / "second"), lambda: again(family)):
        with pytest.raises(BundleError, match=r"compression_encode\.onnx\.data: sha256 is"):
            call()
    encoder.unlink()
    for call in (lambda: sound(family / "second"), lambda: again(family)):
        with pytest.raises(
            FileNotFoundError, match=r"compression_encode\.onnx\.data: listed in manifest.json, but not"
        ):
            call()
    assert names(family) == {"first", "second", "deep"}


def again(family: Path) -> None:
    export(GOLDEN / "text" / LM, family / "first", None, family / "fourth")


def test_sharing_through_a_link(family, tmp_path):
    """Paths lead from where the new bundle really is to where the files really are."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away", target_is_directory=True)
    (tmp_path / "near").symlink_to(family, target_is_directory=True)
    export(GOLDEN / "text" / LM, tmp_path / "near" / "first", None, tmp_path / "link" / "bundle")
    assert "../../../home/first/compression_encode.onnx" in files(tmp_path / "far" / "away" / "bundle")
    assert sound(tmp_path / "link" / "bundle", None).shape == (1, 1, 16000)


def test_nothing_to_share(quick, bundle, music, tmp_path):
    for part, arguments in (
        ("compression_encode and no compression_decode and no compression_stream", (bundle("text"), None)),
        ("text_encoder", (None, music("stereo"))),
    ):
        with pytest.raises(ExportError, match=f"this bundle has no {part} to share"):
            export(GOLDEN / "text" / LM, *arguments, tmp_path / "out")


# What does not belong together


def test_a_codec_of_another_rate(tmp_path):
    with pytest.raises(ExportError, match="sample rate 16000 in the codec, 32000 in the language model"):
        export(GOLDEN / "text" / LM, GOLDEN / "audiogen" / CODEC_FILE, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_text_encoder_of_another_width(t5, tmp_path):
    message = r"states 768 wide in the text encoder, 1024 in the language model \(its text: t5-large\)"
    with pytest.raises(ExportError, match=message):
        export(GOLDEN / "audiogen" / LM, None, t5, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codebooks", 2, "codebooks 2 in the codec, 4 in the"),
        ("card", 32, "codes 32 in the codec, 64 in the"),
        ("channels", 2, "channels 2 in the codec, 1 in the"),
    ],
)
def test_codes_of_another_kind(field, value, message):
    config = module.load(GOLDEN / "text" / LM).config
    parts = {"sample_rate": 32000, "channels": 1, "card": 64, "codebooks": 4}
    module.validate_parts(config, parts, None)
    with pytest.raises(ExportError, match=message):
        module.validate_parts(config, {**parts, field: value}, None)


def test_what_is_missing_is_named(tmp_path, t5):
    """The language model first; then the codec beside it; a pointer is explained; a tokenizer is missed early."""
    lm = tmp_path / "model" / LM
    with pytest.raises(FileNotFoundError, match=r"state_dict\.bin: no such file"):
        export(lm, None, None, tmp_path / "out")
    lm.parent.mkdir()
    shutil.copyfile(GOLDEN / "finetune_fp16" / LM, lm)
    with pytest.raises(ExportError, match=r"no compression_state_dict\.bin beside the language model; give --codec"):
        export(lm, None, None, tmp_path / "out")
    torch.save({"pretrained": "facebook/encodec_32khz"}, lm.with_name(CODEC_FILE))
    with pytest.raises(CheckpointError, match=r"a pointer to the codec 'facebook/encodec_32khz'.*"):
        export(lm, None, None, tmp_path / "out")
    shutil.copytree(t5, tmp_path / "t5", ignore=lambda *_: ["tokenizer.json"])
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json and no spiece.model"):
        export(GOLDEN / "text" / LM, None, tmp_path / "t5", tmp_path / "out")
    assert names(tmp_path) == {"model", "t5"}


def test_beside_a_hugging_face_model(tmp_path):
    """Its folder holds the codec too, and audiocraft's file goes first where both are there."""
    (tmp_path / "config.json").touch()
    assert module.beside(tmp_path) == module.beside(tmp_path / "model.safetensors") == tmp_path
    (tmp_path / CODEC_FILE).touch()
    assert module.beside(tmp_path) == tmp_path / CODEC_FILE


# What is left


def test_the_same_bytes(quick, music, t5, tmp_path):
    export(GOLDEN / "text" / LM, None, t5, tmp_path / "again")
    assert names(tmp_path / "again") == names(music("text", True))
    for path in music("text", True).iterdir():
        assert sha256(path) == sha256(tmp_path / "again" / path.name), path.name


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_export_that_ends_early_leaves_nothing(quick, tmp_path, monkeypatch, error):
    def fail(*_: object) -> None:
        assert len(names(next(tmp_path.iterdir()))) == 4  # the language model is written
        raise error

    monkeypatch.setattr(module.codec, "write_graphs", fail)
    with pytest.raises(error):
        export(GOLDEN / "text" / LM, None, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_graphs_that_disagree_are_not_kept(quick, music, t5, tmp_path, monkeypatch):
    """One verdict is enough."""
    disagrees = Verdict("texts", (Difference("largest difference", "the largest state", 1.0, 5e-5),))
    monkeypatch.setattr(module.text, "parity", lambda *_: disagrees)
    with pytest.raises(ExportError, match=r"(?s)nothing was written.*language model agrees.*text encoder DISAGREES"):
        export(GOLDEN / "text" / LM, music("text", True), t5, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# The hub, from its cache


def command(cache: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "export/bundle.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def test_hub(tmp_path):
    """A repository in the local cache is used without a network; one that is not there gives one line.

    What is cached has no codec beside it, which is refused: that it was found is what is tested.
    """
    folder, commit = tmp_path / "models--org--name", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    shutil.copyfile(GOLDEN / "melody" / LM, folder / "snapshots" / commit / LM)
    done = command(tmp_path, "--hub", "org/name", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{commit}: no compression_state_dict.bin beside the language model; give --codec" in done.stderr
    miss = command(tmp_path, "--hub", "org/none", "--out", tmp_path / "out")
    assert (miss.returncode, miss.stdout) == (1, "")
    assert miss.stderr.startswith("error: org/none: neither in the local cache nor to be fetched: ")
    assert miss.stderr.count("\n") == 1
    bad = command(tmp_path, "--hub", "no/such/name", "--out", tmp_path / "out")
    assert bad.stderr.startswith("error: no/such/name: neither in the local cache")
    assert names(tmp_path) == {folder.name}


def test_the_command(quick, music, tmp_path, monkeypatch, capsys):
    """What it prints; a folder that is there is left alone."""
    arguments = ["--lm", GOLDEN / "text" / LM, "--codec", music("text", True), "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["bundle.py", *map(str, arguments)])
    module.main()
    said = capsys.readouterr().out
    assert "language model agrees with the PyTorch modules: 42 calls" in said
    assert "codec agrees" not in said  # compared when it was exported
    assert f"MB  {tmp_path}/out/lm_inference.onnx.data" in said
    with pytest.raises(SystemExit, match=f"error: {tmp_path}/out already exists; remove it or choose another --out"):
        module.main()
