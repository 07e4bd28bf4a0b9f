"""A checkpoint on disk -> its configuration and its tensors, memory-mapped. Nothing in a file is ever run."""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor


class CheckpointError(ValueError):
    """A file that is not the checkpoint that was asked for: says what it is and what to do."""


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    layout: str  # "audiocraft" or "huggingface": which names the tensors have
    config: Mapping[str, Any]  # audiocraft: xp.cfg, unresolved; Hugging Face: config.json
    specs: Mapping[str, Spec]
    read: Callable[[str], Tensor]  # one tensor by name, as stored


def open_lm(path: Path) -> Checkpoint:
    """Open a language model: audiocraft's `state_dict.bin`, or Hugging Face's folder (or a .safetensors file in it).

    Raises CheckpointError where the file is something else, FileNotFoundError where there is none.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir() and (path / "state_dict.bin").exists():
        path = path / "state_dict.bin"
    if path.is_dir() or path.suffix in (".safetensors", ".json"):
        return _open_huggingface(path if path.is_dir() else path.parent)
    package = load_package(path)
    tree = _xp_cfg(path, package)
    _refuse_other_models(path, tree)
    tensors = package["best_state"]
    odd = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if odd:
        hint = (
            ": a raw training checkpoint; audiocraft.utils.export.export_lm makes a state_dict.bin of it"
            if "model" in odd
            else ""
        )
        raise CheckpointError(f"{path}: best_state holds {', '.join(odd[:5])}, which are not tensors{hint}")
    # PyTorch's own attention module, which audiocraft also takes, adds ".mha" to the names
    tensors = {name.replace(".mha.", "."): tensor for name, tensor in tensors.items()}
    specs = {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    return Checkpoint(path, "audiocraft", tree, specs, tensors.__getitem__)


def load_package(path: Path) -> dict[str, Any]:
    """Read a file of torch.save without running code from it. Raises CheckpointError."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the file it stands for; run `git lfs pull`")
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(f"{path}: not a file of torch.save (it begins {head[:8]!r}); expected state_dict.bin")
    try:
        package = torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(b"PK"))
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(path, error)) from None
    except (RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: truncated or damaged ({path.stat().st_size} bytes; torch says: {reason}); fetch or copy it again"
        ) from None
    if not isinstance(package, dict):
        raise CheckpointError(f"{path}: holds a {type(package).__name__}, expected a dict with best_state and xp.cfg")
    return package


def _refused(path: Path, error: Exception) -> str:
    """Name what the file would have run: read from its opcodes, not by running it."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a pickle too odd to list: the first refusal is all there is to say
        names = []
    if not names:
        return f"{path}: not loadable as plain tensors ({str(error).splitlines()[0]})"
    hint = ""
    if any(name.startswith("omegaconf.") for name in names):
        hint = "\nA raw training checkpoint (.th): audiocraft.utils.export.export_lm makes a state_dict.bin of it."
    return f"{path}: refused, because reading it would run code from the file: {', '.join(names)}{hint}"


def _xp_cfg(path: Path, package: Mapping[str, Any]) -> dict[str, Any]:
    if "pretrained" in package:
        raise CheckpointError(
            f"{path}: a pointer to the codec {package['pretrained']!r}, not a language model; "
            "give the state_dict.bin beside it"
        )
    missing = [key for key in ("best_state", "xp.cfg") if key not in package]
    if missing:
        found = ", ".join(map(str, list(package)[:6]))
        raise CheckpointError(f"{path}: has no {' and no '.join(missing)}; it holds {found}")
    text = package["xp.cfg"]
    try:
        tree = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: xp.cfg is not readable yaml: {error}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: xp.cfg is a {type(text).__name__}, expected yaml text of a mapping")
    return tree


def _refuse_other_models(path: Path, tree: Mapping[str, Any]) -> None:
    lm_model = tree.get("lm_model")
    if lm_model is None and ("compression_model" in tree or "encodec" in tree):
        raise CheckpointError(f"{path}: a codec checkpoint, not a language model; give the state_dict.bin beside it")
    others = {
        "transformer_lm_magnet": "a MAGNeT model: it fills masks and is not autoregressive",
        "flow_matching": "a JASCO model: flow matching, not a language model",
    }
    if lm_model in others:
        raise CheckpointError(f"{path}: {others[lm_model]} (xp.cfg lm_model: {lm_model!r}); clean_lm takes MusicGen's")


def _open_huggingface(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json")
    if config.get("model_type") != "musicgen":
        raise CheckpointError(f"{folder}/config.json: model_type is {config.get('model_type')!r}, expected 'musicgen'")
    generation = folder / "generation_config.json"
    config["generation_config"] = read_json(generation) if generation.exists() else {}
    specs, read = open_safetensors(folder)
    return Checkpoint(folder, "huggingface", config, specs, read)


def open_safetensors(folder: Path) -> tuple[dict[str, Spec], Callable[[str], Tensor]]:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} not found")
    files: dict[str, Any] = {}
    specs: dict[str, Spec] = {}
    for name in names:
        try:
            file = safe_open(folder / name, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / name}: truncated or damaged ({error}); fetch or copy it again") from None
        for key in file.keys():  # noqa: SIM118 (a handle, not a dict)
            part = file.get_slice(key)
            specs[key] = Spec(tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), torch.float32))
            files[key] = file
    return specs, lambda key: files[key].get_tensor(key)


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


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
