"""A checkpoint on disk -> its configuration and its tensors, memory-mapped. Nothing in a file is ever run."""

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

RAW = "a raw training checkpoint: audiocraft.utils.export.export_lm makes a state_dict.bin of it"
# What xp.cfg says of audiocraft's other models, by its field and value there.
OTHERS = {
    ("lm_model", "transformer_lm_magnet"): "a MAGNeT model: it fills masks and is not autoregressive",
    ("lm_model", "flow_matching"): "a JASCO model: flow matching, not a language model",
    ("solver", "musicgen_sourcesep"): "a MusicGen-Stem model: its codes are of several codecs, one for each stem",
}
# And what Hugging Face's config.json says, by its model_type.
OTHER_TYPES = {
    "encodec": ": a codec, which export/codec.py takes",
    "t5": ": a text encoder, which export/text.py takes",
    "musicgen_melody": ": of a melody model, give audiocraft's state_dict.bin",
}
CONTENTS = {
    "state_dict.bin": "a dict with best_state and xp.cfg",
    "compression_state_dict.bin": "a dict with best_state and xp.cfg",
    "pytorch_model.bin": "a dict of tensors",
}


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
    layout: str  # "audiocraft", "huggingface" (MusicGen's), "encodec", "t5" or "mert": which names the tensors have
    config: Mapping[str, Any]  # audiocraft: xp.cfg, unresolved; Hugging Face: config.json
    specs: Mapping[str, Spec]
    open: Callable[[], Callable[[str], Tensor]]  # maps the file: tensors by name, as stored, while the result lives


def open_lm(path: Path) -> Checkpoint:
    """Open a language model: audiocraft's `state_dict.bin`, or Hugging Face's folder (or a .safetensors file in it).

    Raises CheckpointError where the file is something else, FileNotFoundError where there is none.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir() and (path / "state_dict.bin").exists():
        path = path / "state_dict.bin"
    if path.suffix == ".safetensors" and not path.name.startswith("model"):
        raise CheckpointError(f"{path}: expected a folder with config.json and model.safetensors; rename the file")
    if path.is_dir() or path.suffix in (".safetensors", ".json"):
        return _open_huggingface(path if path.is_dir() else path.parent)
    return _open_audiocraft(path, "state_dict.bin", _refuse_other_models)


def open_codec(path: Path) -> Checkpoint:
    """Open a codec: audiocraft's `compression_state_dict.bin`, or Hugging Face's folder of an EnCodec or of a
    MusicGen, which has one in it (or a file in it).

    Raises CheckpointError where it is something else, FileNotFoundError where there is none.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir() and (path / "compression_state_dict.bin").exists():
        path = path / "compression_state_dict.bin"
    if not path.is_dir() and path.suffix not in (".safetensors", ".json"):
        return _open_audiocraft(path, "compression_state_dict.bin", _refuse_other_codecs)
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}: no codec found; expected audiocraft's compression_state_dict.bin, or Hugging Face's "
            "config.json and model.safetensors"
        )
    layout, config = _codec_config(folder / "config.json")
    specs, _ = open_safetensors(folder)
    return Checkpoint(folder, layout, config, specs, lambda: open_safetensors(folder)[1])


def _open_audiocraft(path: Path, kind: str, refuse: Callable[[Path, Mapping[str, Any]], None]) -> Checkpoint:
    package = load_package(path, kind)
    tree = _xp_cfg(path, kind, package)
    refuse(path, tree)
    tensors = _tensors(path, package["best_state"])
    specs = {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    return Checkpoint(
        path, "audiocraft", tree, specs, lambda: _tensors(path, load_package(path, kind)["best_state"]).__getitem__
    )


def open_text(path: Path) -> Checkpoint:
    """Open a text encoder: Hugging Face's folder of a T5, or of a MusicGen, which has one in it; or a file in it.

    Raises CheckpointError where it is something else, FileNotFoundError where there is none.
    """
    return _open_encoder(path, _text_config, "text encoder", "T5")


def open_mert(path: Path) -> Checkpoint:
    """Open what hears a style: Hugging Face's folder of a MERT, or of a HuBERT; or a file in it.

    Raises CheckpointError where it is something else, FileNotFoundError where there is none.
    """
    return _open_encoder(path, _mert_config, "MERT", "MERT")


def _open_encoder(path: Path, read: Callable[[Path], tuple[str, dict[str, Any]]], what: str, kind: str) -> Checkpoint:
    """Hugging Face's folder of an encoder, of which `read` takes its config.json."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}: no {what} found; expected Hugging Face's config.json and model.safetensors "
            f"(or pytorch_model.bin) of a {kind}"
        )
    layout, config = read(folder / "config.json")
    tensors = open_safetensors if _has_safetensors(folder) else _open_pytorch
    specs, _ = tensors(folder)
    return Checkpoint(folder, layout, config, specs, lambda: tensors(folder)[1])


def _text_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The layout of a folder's tensors, and its config.json."""
    config = read_json(path)
    layouts = {"t5": "t5", "musicgen": "huggingface"}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in layouts:
        raise CheckpointError(f"{path}: model_type is {kind!r}, expected 't5', or 'musicgen' with a T5 in it")
    return layouts[kind], config


def _mert_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The layout of a folder's tensors, and its config.json."""
    config = read_json(path)
    if config.get("model_type") not in ("mert_model", "hubert"):
        raise CheckpointError(f"{path}: model_type is {config.get('model_type')!r}, expected 'mert_model' or 'hubert'")
    return "mert", config


def _has_safetensors(folder: Path) -> bool:
    """Whether that is the format of a folder's tensors: also where it holds no tensors at all."""
    safetensors, pytorch = ("model.safetensors", "model.safetensors.index.json"), "pytorch_model.bin"
    found = [name for name in (*safetensors, pytorch, f"{pytorch}.index.json") if (folder / name).exists()]
    return not found or found[0] in safetensors


def _open_pytorch(folder: Path) -> tuple[dict[str, Spec], Callable[[str], Tensor]]:
    """The tensors of `pytorch_model.bin`, or of the shards that `pytorch_model.bin.index.json` names."""
    tensors: dict[str, Tensor] = {}
    for path in _shards(folder, "pytorch_model.bin"):
        tensors |= _plain_tensors(path, load_package(path, "pytorch_model.bin"), "the file")
    return {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()}, tensors.__getitem__


def open_layout(layout: Path, config: Path) -> Checkpoint:
    """A list of tensors without the tensors, as JSON {name: [shape, "torch.float32"]}: nothing can be read from it.

    `config` is the model's xp.cfg, or Hugging Face's config.json with generation_config.json beside it; what kind
    of model it is stands in it. Raises CheckpointError, FileNotFoundError.
    """

    def refuse() -> Callable[[str], Tensor]:
        raise CheckpointError(f"{layout}: a list of tensors, without their values")

    listed = read_json(layout)
    try:
        dtypes = {str(dtype): dtype for dtype in _DTYPES.values()}
        specs = {name: Spec(tuple(shape), dtypes[dtype]) for name, (shape, dtype) in listed.items()}
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{layout}: expected {{name: [shape, dtype]}} ({error})") from None
    if config.suffix == ".json" and read_json(config).get("model_type") == "encodec":
        return Checkpoint(layout, *_codec_config(config), specs, refuse)
    if config.suffix == ".json":
        return Checkpoint(layout, "huggingface", _huggingface_config(config), specs, refuse)
    tree = _yaml(config, config.read_text(encoding="utf-8", errors="replace"))
    if not _is_codec(tree):
        _refuse_other_models(config, tree)
    return Checkpoint(layout, "audiocraft", tree, {_plain(name): spec for name, spec in specs.items()}, refuse)


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


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError where Git left a pointer in a file's place."""
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path}: a Git LFS pointer, not the file it stands for; run `git lfs pull`")


def _refused(path: Path, kind: str, error: Exception) -> str | None:
    """Name what the file would have run: read from its opcodes, not by running it. None: it would run nothing."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the format before zip, or a pickle too odd to list: torch names the first one
        names = re.findall(r"GLOBAL (\S+)", str(error))
    if not names:
        return None
    if any(name.startswith("omegaconf.") for name in names):
        hint = RAW
    else:
        hint = f"save it again as {CONTENTS[kind]}, with nothing but tensors and text in it"
    return f"{path}: refused, because reading it would run code from the file: {', '.join(names)}; {hint}"


def _damaged(path: Path, error: Exception) -> str:
    lines = str(error).splitlines() or ["it ends too early"]
    # what the unpickler says is wrapped in advice to load the file unsafely
    reason = "not a pickle of tensors" if isinstance(error, pickle.UnpicklingError) else lines[0].split(". ")[0]
    return f"{path}: truncated or damaged ({path.stat().st_size} bytes; {reason}); fetch or copy it again"


def _xp_cfg(path: Path, kind: str, package: Mapping[str, Any]) -> dict[str, Any]:
    if "pretrained" in package:
        name = package["pretrained"]
        hints = {
            "state_dict.bin": "not a language model; give the state_dict.bin beside it",
            "compression_state_dict.bin": "without its weights; download config.json and model.safetensors of "
            f"{name} from Hugging Face (`hf download {name} --local-dir FOLDER`) and give --codec FOLDER",
        }
        raise CheckpointError(f"{path}: a pointer to the codec {name!r}, {hints[kind]}")
    missing = [key for key in ("best_state", "xp.cfg") if key not in package]
    if missing:
        found = ", ".join(map(str, list(package)[:6]))
        bare = "; bare tensors: save them as best_state in the state_dict.bin of the model that they are a fine-tune of"
        hint = bare if "emb.0.weight" in package else ""
        raise CheckpointError(f"{path}: has no {' and no '.join(missing)}; it holds {found}{hint}")
    return _yaml(path, package["xp.cfg"])


def _yaml(path: Path, text: object) -> dict[str, Any]:
    if not isinstance(text, str):
        raise CheckpointError(f"{path}: xp.cfg is a {type(text).__name__}, expected yaml text")
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise CheckpointError(f"{path}: xp.cfg is not readable yaml: {error}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: xp.cfg is yaml of a {type(tree).__name__}, expected a mapping")
    return tree


def _tensors(path: Path, state: object) -> dict[str, Tensor]:
    """best_state by plain names."""
    return {_plain(name): tensor for name, tensor in _plain_tensors(path, state, "best_state").items()}


def _plain_tensors(path: Path, state: object, where: str) -> dict[str, Tensor]:
    """A dict that is names and tensors only. Raises CheckpointError."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: {where} is a {type(state).__name__}, expected a dict of tensors")
    odd = [str(name) for name, value in state.items() if not (isinstance(name, str) and _has_values(value))]
    if odd:
        hint = RAW if "model" in odd else "expected names and tensors"
        raise CheckpointError(f"{path}: {where} holds {', '.join(odd[:5])}, which are not plain tensors; {hint}")
    return state


def _has_values(value: object) -> bool:
    """Whether it is a tensor with its numbers in place, neither sparse nor without storage."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _plain(name: str) -> str:
    """PyTorch's own attention module, which audiocraft also takes, adds ".mha" to the names."""
    return name.replace(".mha.", ".")


def is_codec(checkpoint: Checkpoint) -> bool:
    """Whether its configuration or its names are those of a codec alone."""
    named = any(name.startswith("quantizer.") for name in checkpoint.specs)
    return named or checkpoint.layout == "encodec" or _is_codec(checkpoint.config)


def _is_codec(tree: Mapping[str, Any]) -> bool:
    return tree.get("lm_model") is None and ("compression_model" in tree or "encodec" in tree)


def _refuse_other_codecs(path: Path, tree: Mapping[str, Any]) -> None:
    if not _is_codec(tree):
        raise CheckpointError(
            f"{path}: not a codec checkpoint (xp.cfg lm_model: {tree.get('lm_model')!r}, compression_model: "
            f"{tree.get('compression_model')!r}); give the compression_state_dict.bin beside it"
        )


def _refuse_other_models(path: Path, tree: Mapping[str, Any]) -> None:
    if _is_codec(tree):
        raise CheckpointError(f"{path}: a codec checkpoint, not a language model; give the state_dict.bin beside it")
    for (field, value), what in OTHERS.items():
        if tree.get(field) == value:
            raise CheckpointError(f"{path}: {what} (xp.cfg {field}: {value!r}); clean_lm takes MusicGen's")


def _open_huggingface(folder: Path) -> Checkpoint:
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder}: a LoRA adapter, not a model; merge it into its base model (peft's merge_and_unload), save that"
        )
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}: no model found; expected audiocraft's state_dict.bin, or Hugging Face's config.json "
            "and model.safetensors"
        )
    config = _huggingface_config(folder / "config.json")
    specs, _ = open_safetensors(folder)
    return Checkpoint(folder, "huggingface", config, specs, lambda: open_safetensors(folder)[1])


def _huggingface_config(path: Path) -> dict[str, Any]:
    """config.json, with generation_config.json under that name."""
    config = read_json(path)
    kind = config.get("model_type")
    if kind != "musicgen":
        hint = OTHER_TYPES.get(str(kind), "")
        raise CheckpointError(f"{path}: model_type is {kind!r}, expected 'musicgen'{hint}")
    generation = path.parent / "generation_config.json"
    config["generation_config"] = read_json(generation) if generation.exists() else {}
    return config


def _codec_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The layout of a folder's tensors, and its config.json."""
    config = read_json(path)
    layouts = {"encodec": "encodec", "musicgen": "huggingface"}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in layouts:
        raise CheckpointError(f"{path}: model_type is {kind!r}, expected 'encodec', or 'musicgen' with one in it")
    return layouts[kind], config


def open_safetensors(folder: Path) -> tuple[dict[str, Spec], Callable[[str], Tensor]]:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names."""
    files: dict[str, Any] = {}
    specs: dict[str, Spec] = {}
    for path in _shards(folder, "model.safetensors"):
        refuse_pointer(path)
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: truncated or damaged ({error}); fetch or copy it again") from None
        for key in file.keys():  # noqa: SIM118 (a handle, not a dict)
            part = file.get_slice(key)
            dtype = _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(f"{path}: {key} is {part.get_dtype()}, which no model is made of")
            specs[key] = Spec(tuple(part.get_shape()), dtype)
            files[key] = file
    return specs, lambda key: files[key].get_tensor(key)


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


_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


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
