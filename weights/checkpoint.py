"""A checkpoint on disk -> its configuration and its tensors, by the names that their library gives them.

    open_lm       audiocraft's state_dict.bin               or Hugging Face's MusicGen
    open_codec    audiocraft's compression_state_dict.bin   or Hugging Face's EnCodec, alone or in a MusicGen
    open_text                                                  Hugging Face's T5, alone or in a MusicGen
    open_mert                                                  Hugging Face's MERT or HuBERT
    open_layout   a list of names and shapes without values

Checkpoints are loaded with weights_only=True; files that need code to load are refused, with the names of what they
wanted to run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from weights.containers import (
    DTYPES,
    CheckpointError,
    Spec,
    has_safetensors,
    load_package,
    open_pytorch,
    open_safetensors,
    parse_yaml,
    plain_tensors,
    read_json,
)

# audiocraft's models that are not supported, by a field of xp.cfg and its value.
OTHER_MODELS = {
    ("lm_model", "transformer_lm_magnet"): "a MAGNeT model: it fills masks and is not autoregressive",
    ("lm_model", "flow_matching"): "a JASCO model: flow matching, not a language model",
    ("solver", "musicgen_sourcesep"): "a MusicGen-Stem model: its codes are of several codecs, one for each stem",
}
# The same for Hugging Face's, by config.json's model_type.
OTHER_TYPES = {
    "encodec": ": a codec, which export/codec.py takes",
    "t5": ": a text encoder, which export/text.py takes",
    "musicgen_melody": ": of a melody model, give audiocraft's state_dict.bin",
}


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    layout: str  # "audiocraft", "huggingface" (MusicGen's), "encodec", "t5" or "mert": which names the tensors have
    config: Mapping[str, Any]  # audiocraft: xp.cfg, unresolved; Hugging Face: config.json
    specs: Mapping[str, Spec]
    open: Callable[[], Callable[[str], Tensor]]  # maps the file: tensors by name, as stored, while the result lives


@dataclass(frozen=True)
class FolderKind:
    """What Hugging Face's folder of one kind of model is recognised by."""

    layouts: Mapping[str, str]  # config.json's model_type: the layout of the tensors
    expected: str  # the model types, in words


CODEC = FolderKind({"encodec": "encodec", "musicgen": "huggingface"}, "'encodec', or 'musicgen' with one in it")
TEXT = FolderKind({"t5": "t5", "musicgen": "huggingface"}, "'t5', or 'musicgen' with a T5 in it")
MERT = FolderKind({"mert_model": "mert", "hubert": "mert"}, "'mert_model' or 'hubert'")


def open_lm(path: Path) -> Checkpoint:
    """Open a language model: audiocraft's `state_dict.bin`, or Hugging Face's folder (or a .safetensors file in it).

    Raises CheckpointError where the file is something else, FileNotFoundError where there is none.
    """
    path = _file_of(path, "state_dict.bin")
    if path.suffix == ".safetensors" and not path.name.startswith("model"):
        raise CheckpointError(f"{path}: expected a folder with config.json and model.safetensors; rename the file")
    if _is_huggingface(path):
        return _open_musicgen(path if path.is_dir() else path.parent)
    return _open_audiocraft(path, "state_dict.bin", _refuse_other_models)


def open_codec(path: Path) -> Checkpoint:
    """Open a codec: audiocraft's `compression_state_dict.bin`, or Hugging Face's folder of an EnCodec or of a
    MusicGen, which contains one (or a file in it).

    Raises CheckpointError where it is something else, FileNotFoundError where there is none.
    """
    path = _file_of(path, "compression_state_dict.bin")
    if not _is_huggingface(path):
        return _open_audiocraft(path, "compression_state_dict.bin", _refuse_other_codecs)
    expected = "audiocraft's compression_state_dict.bin, or Hugging Face's config.json and model.safetensors"
    folder = _huggingface_folder(path, "codec", expected)
    layout, config = _folder_config(folder / "config.json", CODEC)
    return _open_folder(folder, layout, config)


def open_text(path: Path) -> Checkpoint:
    """Open a text encoder: Hugging Face's folder of a T5, or of a MusicGen, which contains one; or a file in it.

    Raises CheckpointError where it is something else, FileNotFoundError where there is none.
    """
    return _open_encoder(path, TEXT, "text encoder", "T5")


def open_mert(path: Path) -> Checkpoint:
    """Open the feature extractor of style models: Hugging Face's folder of a MERT, or of a HuBERT; or a file in it.

    Raises CheckpointError where it is something else, FileNotFoundError where there is none.
    """
    return _open_encoder(path, MERT, "MERT", "MERT")


def open_layout(layout: Path, config: Path) -> Checkpoint:
    """A list of tensors without the tensors, as JSON {name: [shape, "torch.float32"]}: nothing can be read from it.

    `config` is the model's xp.cfg, or Hugging Face's config.json with generation_config.json beside it: the kind of
    model is in there. Raises CheckpointError, FileNotFoundError.
    """

    def refuse() -> Callable[[str], Tensor]:
        raise CheckpointError(f"{layout}: a list of tensors, without their values")

    specs = _listed_specs(layout)
    if config.suffix == ".json" and read_json(config).get("model_type") == "encodec":
        return Checkpoint(layout, *_folder_config(config, CODEC), specs, refuse)
    if config.suffix == ".json":
        return Checkpoint(layout, "huggingface", _musicgen_config(config), specs, refuse)
    tree = parse_yaml(config, config.read_text(encoding="utf-8", errors="replace"))
    if not _is_codec_config(tree):
        _refuse_other_models(config, tree)
    return Checkpoint(layout, "audiocraft", tree, {_without_mha(name): spec for name, spec in specs.items()}, refuse)


def is_codec(checkpoint: Checkpoint) -> bool:
    """Whether its configuration or its names are those of a codec alone."""
    named = any(name.startswith("quantizer.") for name in checkpoint.specs)
    return named or checkpoint.layout == "encodec" or _is_codec_config(checkpoint.config)


def _existing(path: Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return path


def _file_of(path: Path, name: str) -> Path:
    """The file of that name where `path` is a folder that has one, else `path`. Raises FileNotFoundError."""
    path = _existing(path)
    return path / name if path.is_dir() and (path / name).exists() else path


def _listed_specs(path: Path) -> dict[str, Spec]:
    dtypes = {str(dtype): dtype for dtype in DTYPES.values()}
    listed = read_json(path)
    try:
        return {name: Spec(tuple(shape), dtypes[dtype]) for name, (shape, dtype) in listed.items()}
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: expected {{name: [shape, dtype]}} ({error})") from None


# audiocraft


def _open_audiocraft(path: Path, kind: str, refuse: Callable[[Path, Mapping[str, Any]], None]) -> Checkpoint:
    package = load_package(path, kind)
    tree = _xp_cfg(path, kind, package)
    refuse(path, tree)
    specs = {name: Spec(tuple(t.shape), t.dtype) for name, t in _best_state(path, package).items()}
    return Checkpoint(path, "audiocraft", tree, specs, lambda: _best_state(path, load_package(path, kind)).__getitem__)


def _best_state(path: Path, package: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = plain_tensors(path, package["best_state"], "best_state")
    return {_without_mha(name): tensor for name, tensor in tensors.items()}


def _without_mha(name: str) -> str:
    """PyTorch's own attention module, which audiocraft can use in place of its own, adds ".mha" to the names."""
    return name.replace(".mha.", ".")


def _xp_cfg(path: Path, kind: str, package: Mapping[str, Any]) -> dict[str, Any]:
    if "pretrained" in package:
        raise CheckpointError(f"{path}: a pointer to the codec {_pretrained(package['pretrained'], kind)}")
    missing = [key for key in ("best_state", "xp.cfg") if key not in package]
    if missing:
        found = ", ".join(map(str, list(package)[:6]))
        bare = "; bare tensors: save them as best_state in the state_dict.bin of the model that they are a fine-tune of"
        hint = bare if "emb.0.weight" in package else ""
        raise CheckpointError(f"{path}: has no {' and no '.join(missing)}; it holds {found}{hint}")
    return parse_yaml(path, package["xp.cfg"])


def _pretrained(name: object, kind: str) -> str:
    """The codec that a file names in place of its tensors, and what to do."""
    if kind == "state_dict.bin":
        return f"{name!r}, not a language model; give the state_dict.bin beside it"
    return (
        f"{name!r}, without its weights; download config.json and model.safetensors of {name} from Hugging Face "
        f"(`hf download {name} --local-dir FOLDER`) and give --codec FOLDER"
    )


def _is_codec_config(tree: Mapping[str, Any]) -> bool:
    return tree.get("lm_model") is None and ("compression_model" in tree or "encodec" in tree)


def _refuse_other_codecs(path: Path, tree: Mapping[str, Any]) -> None:
    if not _is_codec_config(tree):
        raise CheckpointError(
            f"{path}: not a codec checkpoint (xp.cfg lm_model: {tree.get('lm_model')!r}, compression_model: "
            f"{tree.get('compression_model')!r}); give the compression_state_dict.bin beside it"
        )


def _refuse_other_models(path: Path, tree: Mapping[str, Any]) -> None:
    if _is_codec_config(tree):
        raise CheckpointError(f"{path}: a codec checkpoint, not a language model; give the state_dict.bin beside it")
    for (field, value), what in OTHER_MODELS.items():
        if tree.get(field) == value:
            raise CheckpointError(f"{path}: {what} (xp.cfg {field}: {value!r}); clean_lm takes MusicGen's")


# Hugging Face


def _is_huggingface(path: Path) -> bool:
    return path.is_dir() or path.suffix in (".safetensors", ".json")


def _huggingface_folder(path: Path, what: str, expected: str) -> Path:
    """The folder of a path, in which there is a config.json. Raises FileNotFoundError."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder}: no {what} found; expected {expected}")
    return folder


def _open_musicgen(folder: Path) -> Checkpoint:
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder}: a LoRA adapter, not a model; merge it into its base model (peft's merge_and_unload), save that"
        )
    expected = "audiocraft's state_dict.bin, or Hugging Face's config.json and model.safetensors"
    folder = _huggingface_folder(folder, "model", expected)
    return _open_folder(folder, "huggingface", _musicgen_config(folder / "config.json"))


def _open_encoder(path: Path, kind: FolderKind, what: str, family: str) -> Checkpoint:
    expected = f"Hugging Face's config.json and model.safetensors (or pytorch_model.bin) of a {family}"
    folder = _huggingface_folder(_existing(path), what, expected)
    layout, config = _folder_config(folder / "config.json", kind)
    return _open_folder(folder, layout, config, open_safetensors if has_safetensors(folder) else open_pytorch)


def _open_folder(
    folder: Path,
    layout: str,
    config: Mapping[str, Any],
    read: Callable[[Path], tuple[dict[str, Spec], Callable[[str], Tensor]]] = open_safetensors,
) -> Checkpoint:
    specs, _ = read(folder)
    return Checkpoint(folder, layout, config, specs, lambda: read(folder)[1])


def _folder_config(path: Path, kind: FolderKind) -> tuple[str, dict[str, Any]]:
    """The layout of a folder's tensors, and its config.json."""
    config = read_json(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in kind.layouts:
        raise CheckpointError(f"{path}: model_type is {model_type!r}, expected {kind.expected}")
    return kind.layouts[model_type], config


def _musicgen_config(path: Path) -> dict[str, Any]:
    """config.json, with generation_config.json as the field of that name."""
    config = read_json(path)
    model_type = config.get("model_type")
    if model_type != "musicgen":
        hint = OTHER_TYPES.get(str(model_type), "")
        raise CheckpointError(f"{path}: model_type is {model_type!r}, expected 'musicgen'{hint}")
    generation = path.parent / "generation_config.json"
    config["generation_config"] = read_json(generation) if generation.exists() else {}
    return config
