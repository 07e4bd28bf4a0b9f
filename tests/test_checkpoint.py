"""weights/checkpoint.py, containers.py: a checkpoint is opened; anything else is refused in words; no code is run."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from weights.checkpoint import CheckpointError, Spec, open_layout, open_lm

pytestmark = [pytest.mark.weights, pytest.mark.quick]

GOLDEN = Path(__file__).parent / "golden"
LAYOUTS = Path(__file__).parent / "layouts"
XP_CFG = "lm_model: transformer_lm\nsample_rate: 32000\n"


def state() -> dict[str, Tensor]:
    return {
        "emb.0.weight": torch.arange(12.0).reshape(3, 4),
        "transformer.layers.0.self_attn.mha.in_proj_weight": torch.ones(6, 2, dtype=torch.float16),
        "steps": torch.tensor(7),
    }


def save(path: Path, legacy: bool = False, **changes: Any) -> Path:
    """A file as audiocraft exports it, with entries changed (`_` for `.` in xp_cfg), or left out where None."""
    package = {"best_state": state(), "xp.cfg": XP_CFG, "version": "1.4.0", "exported": True}
    package |= {name.replace("_cfg", ".cfg"): value for name, value in changes.items()}
    package = {name: value for name, value in package.items() if value is not None}
    torch.save(package, path, _use_new_zipfile_serialization=not legacy)
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_lm(path)
    assert str(error.value).startswith(str(path))
    return str(error.value).removeprefix(str(path))


def assert_words(message: str, *words: str) -> None:
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["state_dict.bin", "other.th"])
def test_opens(tmp_path: Path, name: str, legacy: bool):
    checkpoint = open_lm(save(tmp_path / name, legacy))
    assert checkpoint.layout == "audiocraft"
    assert checkpoint.config == {"lm_model": "transformer_lm", "sample_rate": 32000}
    assert checkpoint.specs == {
        "emb.0.weight": Spec((3, 4), torch.float32),
        "transformer.layers.0.self_attn.in_proj_weight": Spec((6, 2), torch.float16),
        "steps": Spec((), torch.int64),
    }
    assert torch.equal(checkpoint.open()("emb.0.weight"), state()["emb.0.weight"])
    assert torch.equal(checkpoint.open()("transformer.layers.0.self_attn.in_proj_weight"), torch.ones(6, 2).half())


def test_opens_the_folder_it_is_in(tmp_path: Path):
    save(tmp_path / "state_dict.bin")
    assert open_lm(tmp_path).path == tmp_path / "state_dict.bin"


def test_old_file_without_version(tmp_path: Path):
    assert len(open_lm(save(tmp_path / "old.bin", version=None, exported=None)).specs) == 3


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_anywhere(tmp_path: Path, legacy: bool):
    whole = save(tmp_path / "whole.bin", legacy).read_bytes()
    path = tmp_path / "state_dict.bin"
    for length in [*range(8, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        message = refused(path)
        if legacy and "run code" in message:  # cut within the name of a function: it is not one that is allowed
            assert_words(message, "the file: tor")
        else:
            assert_words(message, f"truncated or damaged ({length} bytes; ", "fetch or copy it again")


@pytest.mark.parametrize("part", [0.02, 0.05, 0.5, 0.9])
def test_truncated_model(tmp_path: Path, part: float):
    """Cut within its first 64 KB, torch fails in another way than further on: OSError, RuntimeError."""
    whole = (GOLDEN / "text" / "state_dict.bin").read_bytes()
    path = tmp_path / "state_dict.bin"
    path.write_bytes(whole[: int(len(whole) * part)])
    assert_words(refused(path), f"truncated or damaged ({int(len(whole) * part)} bytes; ", "fetch or copy it again")


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_anywhere(tmp_path: Path, legacy: bool):
    """A byte changed within the pickle: opened or refused, and never another error."""
    path = save(tmp_path / "state_dict.bin", legacy)
    whole = path.read_bytes()
    outcomes = set()
    for at in range(8, min(len(whole), 1200), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x93]) + whole[at + 1 :])
        try:
            open_lm(path)
            outcomes.add("opened")
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {"opened", "refused"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not a file of torch.save", "0 bytes", "expected state_dict.bin"]),
        (b"hello, world", ["not a file of torch.save", "12 bytes", "b'hello, w'", "expected state_dict.bin"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", ["Git LFS pointer", "git lfs pull"]),
        (b"PK\x03\x04 and no archive", ["truncated or damaged", "fetch or copy it again"]),
        (b"\x80\x04 and no pickle", ["truncated or damaged", "fetch or copy it again"]),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, words: list[str]):
    path = tmp_path / "state_dict.bin"
    path.write_bytes(content)
    assert_words(refused(path), *words)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"gone\.bin: no such file or folder"):
        open_lm(tmp_path / "gone.bin")
    with pytest.raises(FileNotFoundError, match=r"no model found; expected audiocraft's state_dict\.bin, or"):
        open_lm(tmp_path)


def test_other_contents(tmp_path: Path):
    path = tmp_path / "state_dict.bin"
    torch.save([1, 2], path)
    assert_words(refused(path), "holds a list", "expected a dict with best_state and xp.cfg")
    torch.save(state(), path)
    assert_words(refused(path), "has no best_state and no xp.cfg", "it holds emb.0.weight", "save them as best_state")
    torch.save({"version": 1}, path)
    assert_words(refused(path), "has no best_state and no xp.cfg; it holds version")
    assert "bare" not in refused(path)
    save(path, best_state=[1])
    assert_words(refused(path), "best_state is a list", "expected a dict of tensors")
    save(path, best_state={"a": torch.ones(1), 3: torch.ones(1), "lr": 0.1})
    assert_words(refused(path), "best_state holds 3, lr", "not plain tensors", "expected names and tensors")
    save(path, best_state={"empty": torch.empty(2, device="meta"), "sparse": torch.eye(2).to_sparse()})
    assert_words(refused(path), "best_state holds empty, sparse", "not plain tensors")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"bytes", ["xp.cfg is a bytes", "expected yaml text"]),
        ("", ["yaml of a NoneType", "expected a mapping"]),
        ("- 1", ["yaml of a list", "expected a mapping"]),
        ("a: [1", ["not readable yaml", "line 1"]),
        ("a: 2023-99-99", ["not readable yaml", "month"]),
        ("a: !!python/object/apply:os.getcwd []", ["not readable yaml", "os.getcwd"]),
    ],
)
def test_xp_cfg_that_is_none(tmp_path: Path, text: object, words: list[str]):
    assert_words(refused(save(tmp_path / "state_dict.bin", xp_cfg=text)), *words)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ({"pretrained": "facebook/encodec_32khz", "exported": True}, ["pointer to the codec", "encodec_32khz"]),
        ({"best_state": {}, "xp.cfg": "compression_model: encodec"}, ["codec checkpoint", "not a language model"]),
    ],
)
def test_codecs(tmp_path: Path, package: dict[str, Any], words: list[str]):
    path = tmp_path / "compression_state_dict.bin"
    torch.save(package, path)
    assert_words(refused(path), *words, "give the state_dict.bin beside it")


# What audiocraft's own configurations of these models set beside MusicGen's
MAGNET = {
    "lm_model": "transformer_lm_magnet",
    "solver": "magnet",
    "codebooks_pattern": {"modeling": "parallel", "parallel": {"empty_initial": -1}},
    "masking": {"span_len": 3},
}
JASCO = {
    "lm_model": "flow_matching",
    "solver": "jasco",
    "compression_model_latent_dim": 128,
    "compression_model_framerate": 50,
    "fuser": {"cross": ["description"], "prepend": [], "sum": [], "ignore": ["chords"], "input_interpolate": []},
}
STEM = {
    "solver": "musicgen_sourcesep",
    "multistem_compression_model_checkpoints": {"sources": ["bass", "drums", "other"]},
}


@pytest.mark.parametrize("layout", [False, True])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (MAGNET, ["a MAGNeT model", "not autoregressive", "lm_model: 'transformer_lm_magnet'"]),
        (MAGNET | {"solver": "audio_magnet"}, ["a MAGNeT model", "lm_model: 'transformer_lm_magnet'"]),
        (JASCO, ["a JASCO model", "flow matching", "lm_model: 'flow_matching'"]),
        (STEM, ["a MusicGen-Stem model", "several codecs", "solver: 'musicgen_sourcesep'"]),
    ],
)
def test_other_models(tmp_path: Path, layout: bool, fields: dict[str, Any], words: list[str]):
    """Refused from the file and from its key list alone, before anything else of it is looked at."""
    text = yaml.safe_dump(yaml.safe_load((LAYOUTS / "musicgen-medium.cfg.yaml").read_text()) | fields)
    if layout:
        (tmp_path / "list.json").write_text("{}")
        (tmp_path / "cfg.yaml").write_text(text)
        with pytest.raises(CheckpointError) as error:
            open_layout(tmp_path / "list.json", tmp_path / "cfg.yaml")
        message = str(error.value)
    else:
        message = refused(save(tmp_path / "state_dict.bin", xp_cfg=text))
    assert_words(message, *words, "clean_lm takes MusicGen's")


def test_lm_model_of_another_type_is_left_to_the_configuration(tmp_path: Path):
    assert open_lm(save(tmp_path / "state_dict.bin", xp_cfg="lm_model: [flow_matching]")).layout == "audiocraft"


class Runs:
    """Unpickled without care, copies a file."""

    def __init__(self, source: Path, target: Path):
        self.files = str(source), str(target)

    def __reduce__(self):
        return shutil.copyfile, self.files


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_named_and_not_run(tmp_path: Path, legacy: bool):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("here")
    path = save(tmp_path / "state_dict.bin", legacy, history=Runs(source, target))
    torch.load(path, weights_only=False)
    assert target.exists(), "the trap works"
    target.unlink()
    assert_words(refused(path), "refused", "run code", "shutil.copyfile", "save it again")
    assert not target.exists()


def test_raw_training_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("omegaconf.dictconfig")
    DictConfig = type("DictConfig", (), {"__module__": module.__name__})
    module.__dict__["DictConfig"] = DictConfig
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
        patch.setitem(sys.modules, module.__name__, module)
        path = save(tmp_path / "checkpoint.th", best_state={"model": state()}, xp_cfg=DictConfig(), history=[{"a": 1}])
    message = refused(path)
    assert_words(message, "refused", "omegaconf.dictconfig.DictConfig", "raw training checkpoint", "export_lm")
    as_text: list[dict[str, Any]] = [  # its configuration as text: no code is needed to read it
        {"best_state": {"model": state()}},
        {"best_state": {}, "fsdp_best_state": {"model": state()}},
    ]
    for changes in as_text:
        assert set(open_lm(save(path, **changes)).specs) == set(open_lm(save(tmp_path / "exported.bin")).specs)
    save(path, best_state={"model": state(), "other": {}})
    assert_words(refused(path), "best_state holds model", "raw training checkpoint", "export_lm")
    save(path, best_state={})
    assert_words(refused(path), "its best_state is empty, as FSDP leaves it", "export_lm")


def huggingface(folder: Path, shards: int = 1) -> Path:
    """A folder as save_pretrained writes it."""
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.ones(1, dtype=torch.int32)}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "musicgen"}')
    (folder / "generation_config.json").write_text('{"max_length": 1500}')
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {name: f"model-{i % shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.mark.parametrize("shards", [1, 2])
def test_huggingface(tmp_path: Path, shards: int):
    checkpoint = open_lm(huggingface(tmp_path, shards))
    assert checkpoint.layout == "huggingface"
    assert checkpoint.config["generation_config"] == {"max_length": 1500}
    assert checkpoint.specs == {
        "a": Spec((2, 3), torch.float32),
        "b": Spec((4,), torch.bfloat16),
        "c": Spec((1,), torch.int32),
    }
    assert torch.equal(checkpoint.open()("a"), torch.ones(2, 3))
    assert torch.equal(checkpoint.open()("b"), torch.zeros(4, dtype=torch.bfloat16))


def test_huggingface_by_file(tmp_path: Path):
    huggingface(tmp_path)
    assert open_lm(tmp_path / "model.safetensors").layout == "huggingface"
    assert open_lm(tmp_path / "config.json").layout == "huggingface"
    save_file({"a": torch.ones(1)}, tmp_path / "finetune.safetensors")
    assert_words(refused(tmp_path / "finetune.safetensors"), "expected a folder with config.json")


def test_huggingface_without_its_files(tmp_path: Path):
    huggingface(tmp_path, shards=2)
    (tmp_path / "model-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00001\.safetensors not found; fetch or copy"):
        open_lm(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model found; expected .*config\.json"):
        open_lm(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.json", '{"model_type": "dac"}', ["'dac'", "expected 'musicgen'", "Descript's DAC, not EnCodec"]),
        ("config.json", '{"model_type": "encodec"}', ["'encodec'", "expected 'musicgen'", "export/codec.py takes"]),
        ("config.json", '{"model_type": "t5"}', ["'t5'", "expected 'musicgen'", "export/text.py takes"]),
        ("config.json", '{"model_type": ["t5"]}', ["model_type is ['t5'], expected 'musicgen'"]),
        ("config.json", '{"model_type"', ["not readable JSON"]),
        ("config.json", "[]", ["expected a JSON object"]),
        ("generation_config.json", "\x00", ["not readable JSON"]),
        ("model.safetensors.index.json", "{}", ["weight_map", "fetch or copy it again"]),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', ["weight_map", "fetch or copy it again"]),
        ("model.safetensors", "", ["truncated or damaged", "fetch or copy it again"]),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer", "git lfs pull"]),
    ],
)
def test_huggingface_damaged(tmp_path: Path, file: str, text: str, words: list[str]):
    huggingface(tmp_path)
    (tmp_path / file).write_text(text)
    message = refused(tmp_path)
    assert message.startswith(f"/{file}")
    assert_words(message, *words)


def test_lora_adapter(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "facebook/musicgen-small"}')
    assert_words(refused(tmp_path), "a LoRA adapter, not a model", "merge_and_unload")


def test_huggingface_truncated(tmp_path: Path):
    path = huggingface(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for length in range(1, len(whole), 17):
        path.write_bytes(whole[:length])
        assert_words(refused(tmp_path), "model.safetensors: truncated or damaged", "fetch or copy it again")


def test_layout_has_no_values(tmp_path: Path):
    layout, config = tmp_path / "list.json", tmp_path / "cfg.yaml"
    layout.write_text('{"layers.0.mha.out": [[2, 3], "torch.float16"]}')
    config.write_text(XP_CFG)
    checkpoint = open_layout(layout, config)
    assert checkpoint.specs == {"layers.0.out": Spec((2, 3), torch.float16)}
    with pytest.raises(CheckpointError, match=r"list\.json: a list of tensors, without their values"):
        checkpoint.open()("layers.0.out")


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": [[1]]}', '{"a": [[1], "float99"]}', '{"a": [2, "torch.float32"]}'])
def test_layout_malformed(tmp_path: Path, text: str):
    layout, config = tmp_path / "list.json", tmp_path / "cfg.yaml"
    layout.write_text(text)
    config.write_text(XP_CFG)
    with pytest.raises(CheckpointError, match=r"list\.json: expected \{name: \[shape, dtype\]\}"):
        open_layout(layout, config)
