"""The file formats of checkpoints -> tensors by name and configuration trees, or a CheckpointError.

    torch.save       zip, or the pickle before it     load_package
    safetensors      one file, or shards              open_safetensors
    torch.save       one file of tensors, or shards   open_pytorch
    JSON, YAML                                        read_json, parse_yaml

Checkpoints are loaded with weights_only=True; files that need code to load are refused, with the names of what they
wanted to run. Tensors are memory-mapped.
"""

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

EXPORT_LM = "a raw training checkpoint: audiocraft.utils.export.export_lm makes a state_dict.bin of it"
CONTENTS = {
    "state_dict.bin": "a dict with best_state and xp.cfg",
    "compression_state_dict.bin": "a dict with best_state and xp.cfg",
    "pytorch_model.bin": "a dict of tensors",
}
# The dtypes of safetensors that models are made of.
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


class CheckpointError(ValueError):
    """A file that is not the checkpoint that was asked for: says what it is and what to do."""


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Read = Callable[[str], Tensor]  # a tensor by its name


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    layout: str  # "audiocraft", "huggingface" (MusicGen's), "encodec", "t5" or "mert": which names the tensors have
    config: Mapping[str, Any]  # audiocraft: xp.cfg, unresolved; Hugging Face: config.json
    specs: Mapping[str, Spec]
    open: Callable[[], Read]  # maps the file: tensors by name, as stored, while the result lives
    notes: tuple[str, ...] = ()  # what was done to read it that its reader should know, a line each
    tokenizer: Path | None = None  # the folder of its tokenizer, where that is not `path`


def load_package(path: Path, kind: str = "state_dict.bin") -> dict[str, Any]:
    """Read a file of torch.save without running code from it. Raises CheckpointError."""
    refuse_pointer(path)
    with path.open("rb") as file:
        head = file.read(8)
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        size = path.stat().st_size
        raise CheckpointError(f"{path}: not a file of torch.save ({size} bytes that begin {head!r}); expected {kind}")
    try:
        package = torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(b"PK"))
    except Exception as error:  # a damaged pickle fails in any way: OSError, KeyError, UnicodeDecodeError, ...
        raise CheckpointError(_refused(path, kind, error) or _damaged(path, error)) from None
    if not isinstance(package, dict):
        raise CheckpointError(f"{path}: holds a {type(package).__name__}, expected {CONTENTS[kind]}")
    return package


def _refused(path: Path, kind: str, error: Exception) -> str | None:
    """A message that names what the file would have run, read from its opcodes; None if it would run nothing."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the format before zip, or a pickle too odd to list: torch names the first one
        names = re.findall(r"GLOBAL (\S+)", str(error))
    if not names:
        return None
    if any(name.startswith(("omegaconf.", "dora.", "audiocraft.")) for name in names):
        hint = EXPORT_LM
    elif any(name.startswith(("pytorch_lightning.", "lightning.", "lightning_fabric.")) for name in names):
        hint = f"a checkpoint of PyTorch Lightning: save its state_dict's tensors again as {CONTENTS[kind]}"
    else:
        hint = f"save it again as {CONTENTS[kind]}, with nothing but tensors and text in it"
    return f"{path}: refused, because reading it would run code from the file: {', '.join(names)}; {hint}"


def _damaged(path: Path, error: Exception) -> str:
    lines = str(error).splitlines() or ["it ends too early"]
    # what the unpickler says is wrapped in advice to load the file unsafely
    reason = "not a pickle of tensors" if isinstance(error, pickle.UnpicklingError) else lines[0].split(". ")[0]
    return f"{path}: truncated or damaged ({path.stat().st_size} bytes; {reason}); fetch or copy it again"


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError where Git left a pointer in a file's place."""
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path}: a Git LFS pointer, not the file it stands for; run `git lfs pull`")


def plain_tensors(path: Path, state: object, where: str) -> dict[str, Tensor]:
    """`state`, which is a dict of names and tensors only. Raises CheckpointError."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: {where} is a {type(state).__name__}, expected a dict of tensors")
    odd = [str(name) for name, value in state.items() if not (isinstance(name, str) and _has_values(value))]
    if odd:
        hint = EXPORT_LM if "model" in odd else "expected names and tensors"
        raise CheckpointError(f"{path}: {where} holds {', '.join(odd[:5])}, which are not plain tensors; {hint}")
    return state


def _has_values(value: object) -> bool:
    """Whether it is a tensor with its numbers in place, neither sparse nor without storage."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def open_safetensors(folder: Path, whole: str = "model.safetensors") -> tuple[dict[str, Spec], Read]:
    """The tensors of the file `whole`, or of the shards that its index, `whole`.index.json, names."""
    files: dict[str, Any] = {}
    specs: dict[str, Spec] = {}
    for path in _shards(folder, whole):
        refuse_pointer(path)
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: truncated or damaged ({error}); fetch or copy it again") from None
        for key in file.keys():  # noqa: SIM118 (a handle, not a dict)
            part = file.get_slice(key)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(f"{path}: {key} is {part.get_dtype()}, which no model is made of")
            specs[key] = Spec(tuple(part.get_shape()), dtype)
            files[key] = file
    return specs, lambda key: files[key].get_tensor(key)


def open_pytorch(folder: Path, whole: str = "pytorch_model.bin") -> tuple[dict[str, Spec], Read]:
    """The tensors of the file `whole`, or of the shards that its index, `whole`.index.json, names."""
    tensors: dict[str, Tensor] = {}
    for path in _shards(folder, whole):
        tensors |= plain_tensors(path, load_package(path, "pytorch_model.bin"), "the file")
    return {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()}, tensors.__getitem__


def has_safetensors(folder: Path) -> bool:
    """Whether a folder holds safetensors. True also where it holds no tensors at all: that is the file to ask for."""
    safetensors, pytorch = ("model.safetensors", "model.safetensors.index.json"), "pytorch_model.bin"
    found = [name for name in (*safetensors, pytorch, f"{pytorch}.index.json") if (folder / name).exists()]
    return not found or found[0] in safetensors


def _shards(folder: Path, whole: str) -> list[Path]:
    """The files of a model: those that its index names, or the one that needs none."""
    index, names = folder / f"{whole}.index.json", [whole]
    if index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index}: its weight_map is not {{tensor: file}}; fetch or copy it again")
        names = sorted(set(shards.values()))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} not found; fetch or copy the whole folder")
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError, CheckpointError."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


def parse_yaml(path: Path, text: object) -> dict[str, Any]:
    if not isinstance(text, str):
        raise CheckpointError(f"{path}: xp.cfg is a {type(text).__name__}, expected yaml text")
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise CheckpointError(f"{path}: xp.cfg is not readable yaml: {error}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: xp.cfg is yaml of a {type(tree).__name__}, expected a mapping")
    return tree
