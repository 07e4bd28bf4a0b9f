"""audiocraft's files, and what trainers make of them: tensors by audiocraft's names, and xp.cfg.

    state_dict.bin, compression_state_dict.bin    {best_state, xp.cfg}
    checkpoint.th, its configuration as text      {best_state: {model}, fsdp_best_state: {model}, xp.cfg, ...}
    Lightning's last.ckpt                         {state_dict, pytorch-lightning_version, ...}, without xp.cfg
    bare tensors                                  {"emb.0.weight": ...}, without xp.cfg

Where xp.cfg is missing, it is that of `base`, the model that the file is a fine-tune of.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from weights.containers import Checkpoint, Read, Spec
from weights.errors import CheckpointError, is_plain, show, show_name
from weights.lora import refuse_unmerged
from weights.torch_files import EXPORT_LM, load_package, plain_tensors, verify_records
from weights.trees import parse_yaml
from weights.wrappers import unwrapped

LIGHTNING = "pytorch-lightning_version"
LONGEST_NAME = 200  # characters of a codec's name
# Codecs that audiocraft's files name and that are no EnCodec.
OTHER_CODECS = {
    "dac": "Descript's DAC, not EnCodec: clean_lm takes EnCodec, such as MusicGen's facebook/encodec_32khz",
    "debug": "audiocraft's random codec for tests, not a trained EnCodec",
}


def open_file(
    path: Path, kind: str, refuse: Callable[[Path, Mapping[str, Any]], None], base: Path | None = None
) -> Checkpoint:
    """Open a file of audiocraft's. `refuse` raises CheckpointError for configurations of other models."""
    package = load_package(path, kind)
    tree = xp_cfg(path, kind, package, base)
    refuse(path, tree)
    state = _state(path, package)
    names, notes = unwrapped(path, state)
    refuse_unmerged(path, names)
    names = {without_mha(name): theirs for name, theirs in names.items()}

    def mapped() -> Read:
        tensors = _state(path, load_package(path, kind))
        return lambda name: tensors[names[name]]

    specs = {name: Spec(tuple(state[theirs].shape), state[theirs].dtype) for name, theirs in names.items()}
    return Checkpoint(path, "audiocraft", tree, specs, mapped, notes, verify=lambda: verify_records(path))


def without_mha(name: str) -> str:
    """PyTorch's own attention module, which audiocraft can use in place of its own, adds ".mha" to the names."""
    return name.replace(".mha.", ".")


def _state(path: Path, package: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a package, wherever they are in it."""
    where = _where(package)
    state = package if where is None else package[where]
    if where is not None and isinstance(state, dict) and set(state) == {"model"} and isinstance(state["model"], dict):
        where, state = f"{where}'s model", state["model"]
    if where is not None and isinstance(state, dict) and not state:
        raise CheckpointError(f"{path}: its {where} is empty, as FSDP leaves it in some files; {EXPORT_LM}")
    return plain_tensors(path, state, where or "the file")


def _where(package: Mapping[str, Any]) -> str | None:
    """The entry that holds the tensors; None for bare tensors."""
    if package.get("fsdp_best_state"):
        return "fsdp_best_state"
    return next((name for name in ("best_state", "state_dict", "model") if name in package), None)


def xp_cfg(path: Path, kind: str, package: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    """The configuration of a package, or that of `base` where it has none."""
    if "pretrained" in package:
        raise CheckpointError(f"{path}: a pointer to the codec {_pretrained(package['pretrained'], kind)}")
    bare = isinstance(next(iter(package.values()), None), Tensor)
    holds = _where(package) is not None or bare
    if "xp.cfg" in package and holds:
        return parse_yaml(path, package["xp.cfg"])
    if base is not None and holds:
        return _base_cfg(base)
    missing = [] if "best_state" in package else ["best_state"]
    missing += [] if "xp.cfg" in package else ["xp.cfg"]
    found = ", ".join(map(show_name, list(package)[:6]))
    what, hint = _what(package, bare), _hint(package, bare)
    raise CheckpointError(f"{path}: {what}has no {' and no '.join(missing)}; it holds {found}{hint}")


def _base_cfg(base: Path) -> dict[str, Any]:
    path = base / "state_dict.bin" if base.is_dir() else base
    package = load_package(path)
    if "xp.cfg" not in package:
        raise CheckpointError(f"{path}: has no xp.cfg; give the state_dict.bin that the fine-tune began with as --base")
    return parse_yaml(path, package["xp.cfg"])


def _what(package: Mapping[str, Any], bare: bool) -> str:
    if LIGHTNING in package:
        return "a checkpoint of PyTorch Lightning: "
    return "bare tensors: " if bare else ""


def _hint(package: Mapping[str, Any], bare: bool) -> str:
    if LIGHTNING in package or "state_dict" in package or bare:
        return (
            "; give the state_dict.bin of the model that it is a fine-tune of with --base, or save them as best_state "
            "in that file"
        )
    return f"; {EXPORT_LM}" if {"history", "fsdp_best_state", "optimizer"} & set(package) else ""


def _pretrained(name: object, kind: str) -> str:
    """The codec that a file names in place of its tensors, and what to do."""
    if kind == "state_dict.bin":
        return f"{show(name)}, not a language model; give the state_dict.bin beside it"
    if not isinstance(name, str) or not is_plain(name, LONGEST_NAME) or name.startswith("-"):
        return f"{show(name)}, which is no name of a model; give the codec that it was trained with as --codec"
    short = name.rstrip("/").rpartition("/")[2]
    other = next((what for start, what in OTHER_CODECS.items() if short.startswith(start)), None)
    if other:
        return f"{show(name)}: {other}"
    if not re.fullmatch(r"(//pretrained/)?[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        return f"{show(name)}, which is no name of a model; give --codec a file or folder with weights"
    return (
        f"{show(name)}, without its weights; download config.json and model.safetensors of it from Hugging Face "
        f"(`hf download {shlex.quote(name)} --local-dir FOLDER`) and give --codec FOLDER"
    )
