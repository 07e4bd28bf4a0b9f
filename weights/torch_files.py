"""Files of torch.save -> what is in them, or a CheckpointError.

Checkpoints are loaded with weights_only=True; files that need code to load are refused, with the names of what they
wanted to run. Before that, the records of the zip and the instructions of the pickle are looked through: what they ask
for must be in the file. Tensors are memory-mapped.
"""

import io
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weights.errors import LONGEST_NAME, CheckpointError, is_plain, one_line, show, show_name
from weights.pickles import BadPickle, Contents, inspect
from weights.zip_records import BadZip, damaged_records, torch_records

EXPORT_LM = "a raw training checkpoint: audiocraft.utils.export.export_lm makes a state_dict.bin of it"
CONTENTS = {
    "state_dict.bin": "a dict with best_state and xp.cfg",
    "compression_state_dict.bin": "a dict with best_state and xp.cfg",
    "pytorch_model.bin": "a dict of tensors",
}
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how a file begins: torch.save's zip, or the pickles of torch before 1.6
LARGEST_PICKLE = 2**26  # bytes; a model's has 300 thousand
MOST_TENSORS = 100_000


def load_package(path: Path, kind: str = "state_dict.bin") -> dict[str, Any]:
    """Read a file of torch.save without running code from it. Raises CheckpointError."""
    head = first_bytes(path)
    if not head.startswith((ZIP, PICKLE)):
        size = path.stat().st_size
        raise CheckpointError(f"{path}: not a file of torch.save ({size} bytes that begin {head!r}); expected {kind}")
    contents = _inspected(path, head)
    if contents.foreign:
        raise CheckpointError(f"{path}: {_refused(contents.foreign, kind)}")
    try:
        package = torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(ZIP))
    except Exception as error:  # a damaged pickle fails in any way: OSError, KeyError, UnicodeDecodeError, ...
        raise _damaged(path, str(error).split(". ")[0] or "it ends too early") from None
    if not isinstance(package, dict):
        raise CheckpointError(f"{path}: holds a {type(package).__name__}, expected {CONTENTS[kind]}")
    return package


def verify_records(path: Path) -> None:
    """Read a file once and compare it with the checksums in it. Raises CheckpointError where bytes have changed.

    Files from before zip have no checksums.
    """
    if not first_bytes(path).startswith(ZIP):
        return
    records = _records(path)
    if damaged := next(damaged_records(path, records), None):
        names = {f"data/{array.storage.key}": array.name for array in _inspected(path, ZIP).arrays if array.name}
        what = f"{show_name(names[damaged])} ({damaged})" if damaged in names else show_name(damaged)
        raise CheckpointError(f"{path}: damaged: {what} is not what its CRC-32 says; fetch or copy it again")


def first_bytes(path: Path) -> bytes:
    """The first 8 bytes of a file. Raises CheckpointError where there is no file, or Git's pointer in its place."""
    if not path.is_file():
        raise CheckpointError(f"{path}: not a file; fetch or copy it again")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the file it stands for; run `git lfs pull`")
    return head[:8]


def plain_tensors(path: Path, state: object, where: str) -> dict[str, Tensor]:
    """`state`, which is a dict of names and tensors only. Raises CheckpointError."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: {where} is a {type(state).__name__}, expected a dict of tensors")
    odd = [name for name, value in state.items() if not (isinstance(name, str) and _has_values(value))]
    if odd:
        hint = EXPORT_LM if "model" in odd else "expected names and tensors"
        listed = ", ".join(map(show_name, odd[:5]))
        raise CheckpointError(f"{path}: {where} holds {listed}, which are not plain tensors; {hint}")
    check_names(path, state)
    return state


def check_names(path: Path, names: Mapping[str, object]) -> None:
    """Raise CheckpointError where a file has more tensors than any model, or one with a name that is no text."""
    if len(names) > MOST_TENSORS:
        raise CheckpointError(f"{path}: {len(names)} tensors, expected a model's: at most {MOST_TENSORS}")
    for name in names:
        if not is_plain(name, LONGEST_NAME):
            raise CheckpointError(
                f"{path}: a tensor's name is {show(name)}, expected printable text of at most {LONGEST_NAME} characters"
            )


def _has_values(value: object) -> bool:
    """Whether it is a tensor with its numbers in place, neither sparse nor without storage."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _inspected(path: Path, head: bytes) -> Contents:
    """What a file would make, from its instructions. Raises CheckpointError where that does not fit into it."""
    try:
        return _inspected_zip(path) if head.startswith(ZIP) else _inspected_pickles(path)
    except BadPickle as error:
        raise _damaged(path, str(error)) from None


def _inspected_zip(path: Path) -> Contents:
    records = _records(path)
    pickled = records.get("data.pkl")
    if pickled is None or pickled.size > LARGEST_PICKLE:
        raise BadPickle("no data.pkl in it" if pickled is None else f"a data.pkl of {pickled.size} bytes")
    with path.open("rb") as file:
        file.seek(pickled.offset)
        contents = inspect(io.BytesIO(file.read(pickled.size)), path.stat().st_size)
    for key, storage in contents.storages.items():
        record = records.get(f"data/{key}")
        if storage.size and (record is None or record.size < storage.size):
            found = 0 if record is None else record.size
            raise BadPickle(f"record data/{show_name(key)} has {found} bytes, expected {storage.size}")
    return contents


def _inspected_pickles(path: Path) -> Contents:
    """Of torch before 1.6: magic number, version, system, the object, its storages' keys; then lengths and bytes."""
    size = path.stat().st_size
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        for _ in range(3):
            inspect(file, size)
        contents = inspect(file, size)
        if contents.foreign:
            return contents
        keys = inspect(file, size).value
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(contents.storages):
            raise BadPickle("it lists other storages than it has")
        at = file.tell()
        for key in keys:
            storage = contents.storages[key]
            if at + 8 + storage.size > size or struct.unpack_from("<q", file, at)[0] != storage.items:
                raise BadPickle(f"storage {show_name(key)} of {storage.size} bytes is not in it")
            at += 8 + storage.size
    return contents


def _records(path: Path) -> Mapping[str, Any]:
    try:
        return torch_records(path)
    except BadZip as error:
        raise _damaged(path, str(error)) from None


def _refused(names: set[str], kind: str) -> str:
    """What to say of a file that names functions or classes other than those of tensors."""
    if any(name.startswith(("omegaconf.", "dora.", "audiocraft.")) for name in names):
        hint = EXPORT_LM
    elif any(name.startswith(("pytorch_lightning.", "lightning.", "lightning_fabric.")) for name in names):
        hint = f"a checkpoint of PyTorch Lightning: save its state_dict's tensors again as {CONTENTS[kind]}"
    else:
        hint = f"save it again as {CONTENTS[kind]}, with nothing but tensors and text in it"
    listed = ", ".join(map(show_name, sorted(names)[:12])) + (", ..." if len(names) > 12 else "")
    return f"refused, because reading it would run code from the file: {listed}; {hint}"


def _damaged(path: Path, reason: str) -> CheckpointError:
    size = path.stat().st_size
    return CheckpointError(f"{path}: truncated or damaged ({size} bytes; {one_line(reason)}); fetch or copy it again")
