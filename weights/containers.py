"""The file formats of tensors -> tensors by name, or a CheckpointError.

    safetensors      one file, or shards              open_safetensors
    torch.save       one file of tensors, or shards   open_pytorch

Tensors are memory-mapped.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weights.errors import CheckpointError, is_plain, one_line, show, show_name
from weights.torch_files import check_names, first_bytes, load_package, plain_tensors, verify_records
from weights.trees import read_json

LARGEST_HEADER = 2**24  # bytes; that of a model of 1500 tensors has 200 thousand
MOST_SHARDS = 1000

# The dtypes of safetensors that models are made of.
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


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
    verify: Callable[[], None] = lambda: None  # reads its files once, raises CheckpointError where a checksum is wrong


def open_safetensors(folder: Path, whole: str = "model.safetensors") -> tuple[dict[str, Spec], Read]:
    """The tensors of the file `whole`, or of the shards that its index, `whole`.index.json, names."""
    files: dict[str, Any] = {}
    specs: dict[str, Spec] = {}
    for path in _shards(folder, whole):
        file = _safetensors(path)
        for key in file.keys():  # noqa: SIM118 (a handle, not a dict)
            part = file.get_slice(key)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(f"{path}: {show_name(key)} is {part.get_dtype()}, which no model is made of")
            specs[key] = Spec(tuple(part.get_shape()), dtype)
            files[key] = file
        check_names(path, specs)
    return specs, lambda key: files[key].get_tensor(key)


def _safetensors(path: Path) -> Any:
    """A file's handle: its header is read, which says where tensors are. Raises CheckpointError."""
    head, size = first_bytes(path), path.stat().st_size
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
    if 8 + length > size or length > LARGEST_HEADER:
        reason = f"{size} bytes; a header of {length}"
        raise CheckpointError(f"{path}: truncated or damaged ({reason}); fetch or copy it again")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({one_line(error)}); fetch or copy it again") from None


def open_pytorch(folder: Path, whole: str = "pytorch_model.bin") -> tuple[dict[str, Spec], Read]:
    """The tensors of the file `whole`, or of the shards that its index, `whole`.index.json, names."""
    tensors: dict[str, Tensor] = {}
    for path in _shards(folder, whole):
        tensors |= plain_tensors(path, load_package(path, "pytorch_model.bin"), "the file")
    return {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()}, tensors.__getitem__


def verify_pytorch(folder: Path, whole: str = "pytorch_model.bin") -> None:
    """Compare the file `whole`, or its shards, with the checksums in them. Raises CheckpointError."""
    for path in _shards(folder, whole):
        verify_records(path)


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
        odd = next((name for name in names if not _is_file_name(name)), None)
        if odd is not None or len(names) > MOST_SHARDS:
            what = f"{len(names)} files" if odd is None else f"the file {show(odd)}"
            raise CheckpointError(f"{index}: its weight_map names {what}, expected names of files beside it")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} not found; fetch or copy the whole folder")
    return [folder / name for name in names]


def _is_file_name(name: str) -> bool:
    """Whether a name is that of a file in the same folder."""
    return is_plain(name, 200) and name not in ("", ".", "..") and not set(name) & set("/\\:")
