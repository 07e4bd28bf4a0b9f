"""Checkpoints made to do harm: refused in one line that names the file and the field, in little time and memory."""

import contextlib
import gzip
import io
import json
import re
import resource
import shutil
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from clean_lm.models.config import ConfigError
from tests.support import GOLDEN
from weights import codec, lm, text
from weights.check import every_not_finite
from weights.checkpoint import CheckpointError, open_codec, open_lm, open_text
from weights.errors import one_line, show, show_name
from weights.lora import open_adapter
from weights.mapping import MappingError, require_finite
from weights.tokenizer import _readable, open_tokenizer
from weights.trees import parse_yaml, read_json

pytestmark = [pytest.mark.weights]

MEMORY = 2**28  # bytes beyond what the process has, address space included
SECONDS = 6.0  # each takes less than one on an idle machine
FILE = GOLDEN / "text" / "state_dict.bin"
CODEC = GOLDEN / "text" / "compression_state_dict.bin"


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Little time, and an allocation beyond MEMORY fails: MemoryError, which no test expects."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    start = time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.monotonic() - start < SECONDS


def refused(words: list[str], call: Callable[[], object], kind: type[Exception] = CheckpointError) -> str:
    with bounded(), pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert message.isprintable(), message
    assert len(message) < 2000
    assert [word for word in words if word not in message] == [], message
    return message


def package(path: Path = FILE) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def with_field(tree: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    *path, last = name.split(".")
    at = tree
    for part in path:
        at = at[part]
    at[last] = value
    return tree


# Sizes in configurations

HUGE = 10**7


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("transformer_lm.num_layers", HUGE, ["layers 10000000: expected at most 1000"]),
        ("transformer_lm.num_layers", 900, ["layers 900: the file has 48 tensors"]),
        ("transformer_lm.num_layers", 10**400, ["num_layers: got a number of 1329 bits", "2^53"]),
        ("transformer_lm.num_layers", float("nan"), ["num_layers: got nan, expected int"]),
        ("transformer_lm.num_heads", HUGE, ["heads 10000000"]),
        ("transformer_lm.num_heads", 3, ["dim 64", "3 heads"]),
        ("transformer_lm.dim", 2**40, ["dim 1099511627776"]),
        ("transformer_lm.hidden_scale", HUGE, ["hidden_scale 10000000"]),
        ("transformer_lm.n_q", 2**50, ["codebooks 1125899906842624"]),
        ("transformer_lm.n_q", 100, ["delays", "100 ascending"]),
        ("transformer_lm.card", 0, ["card 0"]),
        ("transformer_lm.card", 10**9, ["card 1000000000"]),
        ("codebooks_pattern.delay.delays", [0, 1, 2, 10**9], ["delays [0, 1, 2, 1000000000]: expected at most 10000"]),
        ("codebooks_pattern.delay.delays", [-1, 0, 1, 2], ["delays [-1, 0, 1, 2]"]),
        ("codebooks_pattern.delay.delays", [0] * 5000, ["delays: got 5000 items, expected at most 64"]),
        ("sample_rate", 0, ["sample_rate 0"]),
        ("sample_rate", float("nan"), ["sample_rate: got nan"]),
        ("sample_rate", 1e300, ["sample_rate: got 1e+300"]),
        ("sample_rate", 2**50, ["sample_rate 1125899906842624"]),
        ("dataset.segment_duration", float("inf"), ["segment_duration: got inf"]),
        ("dataset.segment_duration", 10**400, ["segment_duration: got a number of 1329 bits"]),
        ("dataset.segment_duration", 1e9, ["max_duration 1000000000.0: expected 0.001 to 86400"]),
        ("dataset.segment_duration", 1e-300, ["max_duration 1e-300"]),
        ("conditioners.description.t5.name", "t5\x1b[2J", [r"t5.name: got 't5\x1b[2J', expected printable"]),
        ("conditioners.description.t5.name", "t" * 2000, ["t5.name: got 2000 characters"]),
        ("sample_rate", "${a.b.c}", ["sample_rate refers to a.b.c"]),
    ],
)  # fmt: skip
def test_sizes_of_a_language_model(tmp_path: Path, field: str, value: Any, words: list[str]):
    made = package()
    made["xp.cfg"] = yaml.safe_dump(with_field(yaml.safe_load(made["xp.cfg"]), field, value))
    torch.save(made, tmp_path / "state_dict.bin")
    refused(["state_dict.bin: ", *words], lambda: lm.load(tmp_path), ConfigError)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("seanet.n_filters", HUGE, ["filters 10000000"]),
        ("seanet.ratios", [2] * 60, ["ratios [2, 2,", "at most 16 numbers"]),
        ("seanet.ratios", [2**30, 2**30], ["ratios [1073741824, 1073741824]", "product of at most"]),
        ("seanet.dimension", HUGE, ["dimension 10000000"]),
        ("seanet.kernel_size", HUGE, ["kernel_size 10000000"]),
        ("seanet.last_kernel_size", HUGE, ["last_kernel_size 10000000"]),
        ("seanet.residual_kernel_size", HUGE, ["residual_kernel_size 10000000"]),
        ("seanet.n_residual_layers", HUGE, ["residual_layers 10000000"]),
        ("seanet.n_residual_layers", 32, ["residual_layers 32"]),
        ("seanet.dilation_base", HUGE, ["dilation_base 10000000"]),
        ("seanet.compress", HUGE, ["compress 10000000"]),
        ("seanet.lstm", HUGE, ["lstm_layers 10000000"]),
        ("rvq.n_q", HUGE, ["codebooks 10000000"]),
        ("rvq.n_q", 200, ["codebooks 200: the file has"]),
        ("rvq.bins", HUGE, ["card 10000000"]),
        ("encodec.sample_rate", 2**52, ["sample_rate"]),
        ("seanet.encoder", 5, None),
        ("seanet.encoder", {"a\x1b": 4}, [r"xp.cfg seanet.encoder.'a\x1b': found 4"]),
    ],
)
def test_sizes_of_a_codec(tmp_path: Path, field: str, value: Any, words: list[str] | None):
    made = package(CODEC)
    made["xp.cfg"] = yaml.safe_dump(with_field(yaml.safe_load(made["xp.cfg"]), field, value))
    torch.save(made, tmp_path / "compression_state_dict.bin")
    if words is None:
        assert codec.load(tmp_path).parameters
    elif field == "seanet.encoder":
        with pytest.raises(ConfigError, match=re.escape(words[0])):
            codec.load(tmp_path)
    else:
        refused(["compression_state_dict.bin: ", *words], lambda: codec.load(tmp_path), ConfigError)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_layers", HUGE, ["layers 10000000"]),
        ("num_layers", 999, ["num_layers 999: the file has"]),
        ("num_heads", HUGE, ["heads 10000000"]),
        ("d_kv", HUGE, ["head_dim 10000000"]),
        ("d_model", HUGE, ["dim 10000000"]),
        ("d_ff", HUGE, ["hidden 10000000"]),
        ("vocab_size", 10**9, ["vocab 1000000000"]),
        ("relative_attention_num_buckets", 10**9, ["buckets 1000000000"]),
        ("relative_attention_max_distance", 10**9, ["max_distance 1000000000"]),
        ("layer_norm_epsilon", 1e10, ["layer_norm_epsilon"]),
        ("layer_norm_epsilon", 10**400, ["layer_norm_epsilon: got a number of"]),
        ("pad_token_id", 2**40, ["pad_token_id"]),
        ("num_layers", True, ["num_layers: got True, expected int"]),
    ],
)
def test_sizes_of_a_text_encoder(tmp_path: Path, field: str, value: Any, words: list[str]):
    folder = shutil.copytree(GOLDEN / "_t5" / "t5-base", tmp_path / "t5")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    refused([str(folder), *words], lambda: text.load(folder), ConfigError)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("target_bandwidths", [float("nan")], ["target_bandwidths: got [nan]"]),
        ("target_bandwidths", [10**400], ["target_bandwidths: got a number of"]),
        ("upsampling_ratios", [2**40] * 60, ["upsampling_ratios: got [1099511627776, "]),
        ("upsampling_ratios", [2] * 10**5, ["upsampling_ratios: got 100000 items"]),
        ("codebook_size", 10**400, ["codebook_size: got a number of"]),
        ("num_lstm_layers", HUGE, ["lstm_layers 10000000"]),
    ],
)
def test_sizes_of_hugging_faces_codec(tmp_path: Path, field: str, value: Any, words: list[str]):
    folder = shutil.copytree(GOLDEN / "finetune_fp16" / "hf_encodec_32khz", tmp_path / "codec")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    refused([str(folder), *words], lambda: codec.load(folder), ConfigError)


def test_many_differences_are_cut(tmp_path: Path):
    made = package()
    made["best_state"] |= {f"odd.{i}": torch.zeros(1) for i in range(300)}
    torch.save(made, tmp_path / "state_dict.bin")
    with bounded(), pytest.raises(MappingError) as error:
        lm.load(tmp_path)
    assert str(error.value).endswith("... and 200 more")


# Text


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels))])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (laughs(12), ["more than 10000 values", "line 5"]),
        ("a: &a {b: *a}", ["a value that is within itself (line 1"]),
        ("a: &a {x: 1}\nb: {<<: [*a, *a]}", ["a merge key (<<) (line 2"]),
        ("a: " + "[" * 5000, ["more than 50 levels (line 1"]),
        ("a: " + "{b: " * 5000, ["more than 50 levels (line 1"]),
        ("a:\n" + "".join(f"{' ' * i}-\n" for i in range(1, 300)), ["more than 50 levels (line 5"]),
        ("a: [" + "1," * 60_000 + "]", ["more than 10000 values"]),
        ("a: " + "x" * 5000, ["a value of 5000 characters"]),
        ("a" * 300_000, ["300000 characters, expected at most"]),
        ("a: !!timestamp x", ["not readable yaml"]),
        ("a: !!int ''", ["not readable yaml"]),
        ("a: !!bool maybe", ["not readable yaml"]),
        ("a: \x07", ["not readable yaml"]),
        ("a: !!python/name:os.system", ["not readable yaml", "os.system"]),
        ("? [1]\n: 2", ["not readable yaml", "unhashable"]),
    ],
)
def test_yaml(content: str, words: list[str]):
    refused(["file.bin: xp.cfg", *words], lambda: parse_yaml(Path("file.bin"), content))


def test_yaml_may_name_a_part_twice():
    assert parse_yaml(Path("x"), "a: &a [1, 2]\nb: *a\nc: *a") == {"a": [1, 2], "b": [1, 2], "c": [1, 2]}


def test_references_in_xp_cfg(tmp_path: Path):
    """Chains, and trees of them whose size doubles at every step."""
    made = package()
    tree = yaml.safe_load(made["xp.cfg"]) | {f"r{i}": f"${{r{i + 1}}}" for i in range(2000)}
    for start, more in (("${r0}", {}), ("${m0.p.p}", {f"m{i}": {"p": f"${{m{i + 1}.p.p}}"} for i in range(60)})):
        made["xp.cfg"] = yaml.safe_dump(tree | more | {"sample_rate": start})
        torch.save(made, tmp_path / "state_dict.bin")
        words = ["sample_rate refers to", "state_dict.bin"]
        refused(words, lambda: lm.load(tmp_path), ConfigError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 10**6, ["nested too deep"]),
        (b'{"a":' * 10**5, ["nested too deep"]),
        (b"[1, 2]", ["expected a JSON object"]),
        (b"NaN", ["expected a JSON object"]),
        (b'{"a": ' + b"9" * 5000 + b"}", ["not readable JSON"]),
        (b'{"a": "\xff"}', ["not readable JSON"]),
        (b" " * (2**22 + 1), ["4194305 bytes, expected a JSON object of at most"]),
    ],
)
def test_json(tmp_path: Path, content: bytes, words: list[str]):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    refused([str(path), *words], lambda: read_json(path))


def test_json_with_a_key_twice(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    assert read_json(tmp_path / "config.json") == {"a": 2}


# Files of torch.save


def zipped(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, **options: Any) -> Path:
    """A zip like torch.save's around a pickle."""
    records = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"} | (records or {})
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in records.items():
            file.writestr(f"a/{name}", data)
    return path


def called(name: str, arguments: bytes) -> bytes:
    module, _, last = name.rpartition(".")
    return b"\x80\x02}X\x01\x00\x00\x00ac" + f"{module}\n{last}\n".encode() + arguments + b"Rs."


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def storage(items: int, key: bytes = b"0") -> bytes:
    name = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + key + b"X\x03\x00\x00\x00cpu"
    return name + number(items) + b"tQ"


def tensor(items: int, shape: list[int], strides: list[int], offset: int = 0) -> bytes:
    lists = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides))
    made = b"(" + storage(items) + number(offset) + lists + b"\x89ccollections\nOrderedDict\n)Rt"
    return called("torch._utils._rebuild_tensor_v2", made)


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (tensor(10**12, [10**12], [1]), ["a storage of 4000000000000 bytes is not in it"]),
        (tensor(5, [5], [1]), ["record data/0 has 16 bytes, expected 20"]),
        (tensor(4, [10**10], [1]), ["a tensor [10000000000] goes beyond its storage of 16 bytes"]),
        (tensor(4, [2, 2], [10**9, 1]), ["a tensor [2, 2] goes beyond"]),
        (tensor(4, [2], [1], 3), ["a tensor [2] goes beyond"]),
        (tensor(4, [-2], [1]), ["a tensor (-2,) with strides (1,)"]),
        (tensor(4, [2], [-1]), ["with strides (-1,)"]),
        (tensor(4, [2], [1], -1), ["a tensor (2,)"]),
        (tensor(4, [2, 2], [1]), ["a tensor (2, 2) with strides (1,)"]),
        (tensor(-4, [1], [1]), ["a storage of -4 items"]),
        (tensor(4, [10**9], [0]), ["its tensors are more than", "many times"]),
        (called("torch.FloatTensor", number(10**11) + b"\x85"), ["it calls torch.FloatTensor"]),
        (called("torch.FloatStorage", number(10**11) + b"\x85"), ["it calls torch.FloatStorage"]),
        (called("torch.storage.UntypedStorage", number(10**11) + b"\x85"), ["it calls torch.storage.UntypedStorage"]),
        (called("torch.Tensor", number(10**11) + b"\x85"), ["it calls torch.Tensor"]),
        (called("__builtin__.bytearray", number(10**11) + b"\x85"), ["bytes that are not in the file"]),
        (called("torch._utils._rebuild_qtensor", b")"), ["it calls torch._utils._rebuild_qtensor"]),
        (called("_codecs.encode", b"X\x01\x00\x00\x00aX\x08\x00\x00\x00punycode\x86"), ["encoding 'punycode'"]),
        (b"\x80\x02}" + b")" + b"\x85" * 10**5 + b"K\x01s.", ["a dict's key that is neither"]),
        (b"\x80\x02}q\x00h\x00K\x01s.", ["a dict's key that is neither"]),
        (b"\x80\x02X\xff\xff\xff\xffabc.", ["truncated or damaged"]),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.", ["truncated or damaged"]),
        (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.", ["truncated or damaged"]),
        (b"\x80\x02" + b"K\x01" * 1_100_000 + b".", ["more than 1000000 instructions"]),
        (b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\x7f.", ["truncated or damaged"]),
        (b"\x80\x02}X\x05\x00\x00\x00itemsK\x01s}X\x05\x00\x00\x00itemsK\x01sb.", ["changes an object"]),
        (called("evil\x1b[2J.run", b")"), ["would run code", r"'evil\x1b[2J.run'"]),
        (b"\x80\x02" + b"(" * 10**5 + b".", ["truncated or damaged"]),
    ],
)  # fmt: skip
def test_pickles(tmp_path: Path, pickled: bytes, words: list[str]):
    path = zipped(tmp_path / "state_dict.bin", pickled, {"data/0": bytes(16)})
    message = refused([str(path), *words], lambda: open_lm(path))
    assert "refused, because" in message or "fetch or copy it again" in message


def test_a_pickle_made_by_hand_is_read(tmp_path: Path):
    """The files above are refused for what is wrong with them alone."""
    path = zipped(tmp_path / "state_dict.bin", tensor(4, [2, 2], [2, 1]), {"data/0": bytes(16)})
    refused(["bare tensors"], lambda: open_lm(path))


def legacy(path: Path) -> bytes:
    torch.save({"a": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


@pytest.mark.parametrize("items", [5, 10**6, 2**31 - 1])
def test_pickles_before_zip(tmp_path: Path, items: int):
    path = tmp_path / "state_dict.bin"
    whole = legacy(path)
    declared = b"cpuq\x06K\x04"
    at = next(i for i in range(len(whole)) if whole[i : i + 2] == b"K\x04" and b"storage" in whole[i - 80 : i])
    assert whole[at - 12 : at].find(b"cpu") >= 0, declared
    path.write_bytes(whole[:at] + b"J" + struct.pack("<i", items) + whole[at + 2 :])
    refused(["truncated or damaged", "storage", "is not in it"], lambda: open_lm(path))


def directory_changed(whole: bytes, offset: int, value: bytes, entry: int = 0) -> bytes:
    """A zip with bytes of its directory's n-th entry changed."""
    at = -1
    for _ in range(entry + 1):
        at = whole.index(b"PK\1\2", at + 1)
    return whole[: at + offset] + value + whole[at + offset + len(value) :]


def test_zips(tmp_path: Path):
    path = tmp_path / "state_dict.bin"
    zipped(path, b"\x80\x02" + b"N" * 10**6, compression=zipfile.ZIP_DEFLATED)
    refused(["is compressed"], lambda: open_lm(path))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(zipped(path, b"\x80\x02}."), "a") as file:
        file.writestr("a/data.pkl", b"\x80\x02].")
    refused(["a record is in it twice"], lambda: open_lm(path))
    whole = zipped(path, b"\x80\x02}.", {"data/0": bytes(16)}).read_bytes()
    for changed, words in (
        (directory_changed(whole, 20, struct.pack("<2I", 10**9, 10**9)), ["of 1000000000 bytes goes beyond"]),
        (directory_changed(whole, 20, struct.pack("<2I", 90, 90)), ["records 'a/data.pkl' and 'a/byteorder' overlap"]),
        (directory_changed(whole, 42, struct.pack("<I", 0), 1), ["'a/byteorder' has another name in its own header"]),
        (directory_changed(whole, 42, struct.pack("<I", 10**9), 1), ["'a/byteorder' is not where the directory says"]),
        (directory_changed(whole, 46, b"b"), ["has another name"]),
        (whole[:-12] + struct.pack("<H", 65535) + whole[-10:], ["fewer than 65535 entries"]),
        (whole + b"more", ["its directory is not at its end"]),
        (whole[:-22], ["it has no directory at its end"]),
    ):  # fmt: skip
        path.write_bytes(changed)
        refused([str(path), *words], lambda: open_lm(path))


def test_a_compressed_tar_that_unpacks_to_much(tmp_path: Path):
    """Its first header asks for 8 GB, in a file of kilobytes."""
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf() + bytes(2**22))
    refused([str(path)], lambda: open_lm(path))


# safetensors


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, length=2**63),
        safetensors({}, length=2**40),
        safetensors({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        safetensors({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)),
        safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors({"a": {"dtype": "F32", "shape": [2**62, 16], "data_offsets": [0, 0]}}),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        struct.pack("<Q", 10**5) + b"[" * 10**5,
        b"\x00" * 8,
    ],
)
def test_safetensors(tmp_path: Path, content: bytes):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused([str(path), "truncated or damaged", "fetch or copy it again"], lambda: open_text(tmp_path))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\\b", "", "..", "a\x00b", "x" * 300, "C:a"])
def test_shards_outside_the_folder(tmp_path: Path, name: str):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(["model.safetensors.index.json: its weight_map names the file"], lambda: open_text(tmp_path))


def test_names_that_are_no_text(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    for name, shown in (("a\x1b[31m", r"'a\x1b[31m'"), ("a\nb", r"'a\nb'"), ("x" * 600, "xxx")):
        save_file({name: torch.ones(1)}, tmp_path / "model.safetensors")
        refused(["a tensor's name is", shown], lambda: open_text(tmp_path))
        torch.save({name: torch.ones(1)}, tmp_path / "file.bin")
        made = package() | {"best_state": {name: torch.ones(1)}}
        torch.save(made, tmp_path / "state.bin")
        refused(["state.bin: a tensor's name is", shown], lambda: open_lm(tmp_path / "state.bin"))


def test_what_is_no_file(tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    refused(["config.json: not a file"], lambda: open_text(tmp_path))


# Checksums


@pytest.mark.parametrize("checksums", [True, False])
def test_a_flipped_bit(tmp_path: Path, checksums: bool):
    path = tmp_path / "state_dict.bin"
    made = package()
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save(made, path)
    finally:
        torch.serialization.set_crc32_options(True)
    model = lm.load(path)
    require_finite(model)
    whole = bytearray(path.read_bytes())
    name = "transformer.layers.1.linear1.weight"
    at = whole.index(made["best_state"][name].numpy().tobytes())
    whole[at] ^= 1
    path.write_bytes(whole)
    if checksums:
        refused([str(path), f"damaged: {name} (data/", "CRC-32"], lambda: require_finite(lm.load(path)))
    else:
        require_finite(lm.load(path))
        assert every_not_finite(open_lm(path)) == []


# Other files of a folder


def test_a_tokenizer_that_panics():
    class PanicException(BaseException):  # as pyo3's: no Exception
        pass

    words = r"tokenizer\.json: not a tokenizer that can be read \(index out of bounds\)"
    with pytest.raises(CheckpointError, match=words), _readable(Path("tokenizer.json")):
        raise PanicException("index out of\nbounds")
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), _readable(Path("tokenizer.json")):
            raise kind


def test_a_tokenizer_with_flipped_bits(t5: Path, tmp_path: Path):
    config = text.load(t5).config
    whole = (t5 / "tokenizer.json").read_bytes()
    outcomes = set()
    for at in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        (tmp_path / "tokenizer.json").write_bytes(changed)
        try:
            open_tokenizer(tmp_path, config)
            outcomes.add(True)
        except CheckpointError as error:
            outcomes.add(str(error).isprintable())
    assert outcomes == {True}


@pytest.mark.parametrize(
    ("name", "words", "without"),
    [
        ("facebook/encodec; rm -rf ~", ["which is no name of a model"], "hf download"),
        ("a`b`$(c)", ["which is no name of a model"], "hf download"),
        ("a\nb", [r"'a\nb', which is no name of a model"], "hf download"),
        ("a\x1b]0;b", [r"'a\x1b]0;b', which is no name of a model"], "hf download"),
        ("--local-dir=/", ["'--local-dir=/', which is no name of a model"], "hf download"),
        ("x" * 201, ["which is no name of a model"], "hf download"),
        (["a"], ["['a'], which is no name of a model"], "hf download"),
    ],
)
def test_pointers(tmp_path: Path, name: object, words: list[str], without: str):
    torch.save({"pretrained": name}, tmp_path / "compression_state_dict.bin")
    message = refused(["a pointer to the codec", *words], lambda: open_codec(tmp_path))
    assert without not in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"alpha_pattern": {"(a+)+$": 1}}, ["alpha_pattern '(a+)+$'"]),
        ({"alpha_pattern": {"(a|a)" * 30: 1}}, ["alpha_pattern '(a|a)"]),
        ({"alpha_pattern": {".*.*.*x": 1}}, ["alpha_pattern '.*.*.*x'"]),
        ({"alpha_pattern": {"a{1,99999}": 1}}, ["alpha_pattern 'a{1,99999}'"]),
        ({"alpha_pattern": {f".*{i}": 1 for i in range(99)}}, ["20 in all"]),
        ({"alpha_pattern": {"(": 1}}, ["alpha_pattern '('"]),
        ({"alpha_pattern": {"a": "b"}}, ["a is 'b', expected a number"]),
        ({"alpha_pattern": [1]}, ["alpha_pattern is [1]"]),
        ({"lora_alpha": float("inf")}, ["lora_alpha is inf"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha is nan"]),
        ({"lora_alpha": 10**400}, ["lora_alpha is a number of"]),
        ({"lora_alpha": True}, ["lora_alpha is True"]),
        ({"peft_type": "\x1b[2J"}, [r"a '\x1b[2J' adapter"]),
    ],
)
def test_adapters(tmp_path: Path, config: dict[str, Any], words: list[str]):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    refused([str(tmp_path), *words], lambda: open_adapter(tmp_path))


def test_an_adapter_of_itself(tmp_path: Path):
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "musicgen"}')
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    refused(["a LoRA adapter, not a model"], lambda: open_lm(tmp_path))


# Words


def test_show():
    deep: list[Any] = []
    for _ in range(10**4):
        deep = [deep]
    around: list[Any] = []
    around.append(around)
    for value in (
        deep,
        around,
        "a" * 10**6,
        10**10_000,
        "\x1b\u202e\ud800",
        b"\x00" * 1000,
        {1: torch.ones(1)},
        object(),
    ):
        assert show(value).isprintable()
        assert len(show(value)) < 300
    assert (show("a"), show([1, "b", None]), show(True), show(1.5)) == ("'a'", "[1, 'b', None]", "True", "1.5")
    assert (show_name("a.b"), show_name("a\n"), show_name(3)) == ("a.b", r"'a\n'", "3")
    assert one_line("a\n  b\x1bc") == r"a b\x1bc"


def test_golden_folders_are_read():
    """What is refused above is refused for what was changed."""
    assert load_file(GOLDEN / "_t5" / "t5-base" / "model.safetensors")
    assert text.load(GOLDEN / "_t5" / "t5-base").parameters
    assert codec.load(GOLDEN / "finetune_fp16" / "hf_encodec_32khz").parameters
    assert io.BytesIO(FILE.read_bytes()).read(2) == b"PK"
