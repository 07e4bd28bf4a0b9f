"""A checkpoint on disk -> its configuration and its tensors, by the names that their library gives them.

    open_lm       audiocraft's state_dict.bin               or Hugging Face's MusicGen
    open_codec    audiocraft's compression_state_dict.bin   or Hugging Face's EnCodec, alone or in a MusicGen
    open_text                                                  Hugging Face's T5, alone or in a MusicGen
    open_mert                                                  Hugging Face's MERT or HuBERT
    open_layout   a list of names and shapes without values

Checkpoints are loaded with weights_only=True; files that need code to load are refused, with the names of what they
wanted to run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weights.archives import refuse_archive
from weights.audiocraft_file import open_file, without_mha
from weights.containers import DTYPES, Checkpoint, Read, Spec
from weights.errors import CheckpointError, one_line, show
from weights.huggingface_folder import CODEC, LM, MERT, TEXT, folder_config, is_huggingface, open_folder
from weights.torch_files import check_names, first_bytes
from weights.trees import LARGEST_YAML, parse_yaml, read_json

__all__ = ["Checkpoint", "CheckpointError", "Spec", "is_codec", "open_codec", "open_layout", "open_lm", "open_mert",
           "open_text"]  # fmt: skip

# audiocraft's models that are not supported, by a field of xp.cfg and its value.
OTHER_MODELS = {
    ("lm_model", "transformer_lm_magnet"): "a MAGNeT model: it fills masks and is not autoregressive",
    ("lm_model", "flow_matching"): "a JASCO model: flow matching, not a language model",
    ("solver", "musicgen_sourcesep"): "a MusicGen-Stem model: its codes are of several codecs, one for each stem",
}


def open_lm(path: Path, base: Path | None = None) -> Checkpoint:
    """Open a language model: audiocraft's `state_dict.bin`, or Hugging Face's folder (or a file in it).

    `base`: the model that it is a fine-tune of, where the file or folder does not hold all of one: an adapter, a
    decoder, tensors without a configuration. Raises CheckpointError where it is something else, FileNotFoundError where
    there is none.
    """
    path = _file_of(path, "state_dict.bin", "checkpoint.th", "last.ckpt")
    if path.suffix == ".safetensors" and not path.name.startswith(("model", "adapter_model")):
        raise CheckpointError(f"{path}: expected a folder with config.json and model.safetensors; rename the file")
    if is_huggingface(path):
        return open_folder(path, LM, base)
    return open_file(path, "state_dict.bin", _refuse_other_models, base)


def open_codec(path: Path, base: Path | None = None) -> Checkpoint:
    """Open a codec: audiocraft's `compression_state_dict.bin`, or Hugging Face's folder of an EnCodec or of a
    MusicGen, which contains one (or a file in it).

    Raises CheckpointError where it is something else, FileNotFoundError where there is none.
    """
    path = _file_of(path, "compression_state_dict.bin")
    if is_huggingface(path):
        return open_folder(path, CODEC, base)
    return open_file(path, "compression_state_dict.bin", _refuse_other_codecs)


def open_text(path: Path, base: Path | None = None) -> Checkpoint:
    """Open a text encoder: Hugging Face's folder of a T5, or of a MusicGen, which contains one; or a file in it.

    Raises CheckpointError where it is something else, FileNotFoundError where there is none.
    """
    return open_folder(_existing(path), TEXT, base)


def open_mert(path: Path, base: Path | None = None) -> Checkpoint:
    """Open the feature extractor of style models: Hugging Face's folder of a MERT, or of a HuBERT; or a file in it.

    Raises CheckpointError where it is something else, FileNotFoundError where there is none.
    """
    return open_folder(_existing(path), MERT, base)


def open_layout(layout: Path, config: Path) -> Checkpoint:
    """A list of tensors without the tensors, as JSON {name: [shape, "torch.float32"]}: nothing can be read from it.

    `config` is the model's xp.cfg, or Hugging Face's config.json with generation_config.json beside it: the kind of
    model is in there. Raises CheckpointError, FileNotFoundError.
    """

    def refuse() -> Read:
        raise CheckpointError(f"{layout}: a list of tensors, without their values")

    specs = _listed_specs(layout)
    if config.suffix == ".json" and read_json(config).get("model_type") == "encodec":
        return Checkpoint(layout, *folder_config(config, CODEC), specs, refuse)
    if config.suffix == ".json":
        return Checkpoint(layout, *folder_config(config, LM), specs, refuse)
    tree = parse_yaml(config, _text(config))
    if not _is_codec_config(tree):
        _refuse_other_models(config, tree)
    return Checkpoint(layout, "audiocraft", tree, {without_mha(name): spec for name, spec in specs.items()}, refuse)


def _text(path: Path) -> str:
    """The text of a file, as much as a configuration may have and a little more."""
    first_bytes(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(LARGEST_YAML + 1)


def is_codec(checkpoint: Checkpoint) -> bool:
    """Whether its configuration or its names are those of a codec alone."""
    named = any(name.startswith("quantizer.") for name in checkpoint.specs)
    return named or checkpoint.layout == "encodec" or _is_codec_config(checkpoint.config)


def _existing(path: Path) -> Path:
    """The path, at which there is something that is not an archive. Raises FileNotFoundError, CheckpointError."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir():
        first_bytes(path)
    refuse_archive(path)
    return path


def _file_of(path: Path, *names: str) -> Path:
    """The first of these files that is there where `path` is a folder without a config.json, else `path`.

    Raises FileNotFoundError, CheckpointError.
    """
    path = _existing(path)
    if not path.is_dir():
        return path
    own = names[:1] if (path / "config.json").exists() else names
    return _existing(next((path / name for name in own if (path / name).exists()), path))


def _listed_specs(path: Path) -> dict[str, Spec]:
    dtypes = {str(dtype): dtype for dtype in DTYPES.values()}
    listed = read_json(path)
    try:
        specs = {name: Spec(_shape(shape), dtypes[dtype]) for name, (shape, dtype) in listed.items()}
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: expected {{name: [shape, dtype]}} ({one_line(error)})") from None
    check_names(path, specs)
    return specs


def _shape(listed: list[Any]) -> tuple[int, ...]:
    """Raises ValueError, TypeError."""
    if not all(type(length) is int and 0 <= length < 2**48 for length in listed):
        raise ValueError(f"the shape {show(listed)}")
    return tuple(listed)


def _is_codec_config(tree: Mapping[str, Any]) -> bool:
    return tree.get("lm_model") is None and ("compression_model" in tree or "encodec" in tree)


def _refuse_other_codecs(path: Path, tree: Mapping[str, Any]) -> None:
    if not _is_codec_config(tree):
        raise CheckpointError(
            f"{path}: not a codec checkpoint (xp.cfg lm_model: {show(tree.get('lm_model'))}, compression_model: "
            f"{show(tree.get('compression_model'))}); give the compression_state_dict.bin beside it"
        )


def _refuse_other_models(path: Path, tree: Mapping[str, Any]) -> None:
    if _is_codec_config(tree):
        raise CheckpointError(f"{path}: a codec checkpoint, not a language model; give the state_dict.bin beside it")
    for (field, value), what in OTHER_MODELS.items():
        if tree.get(field) == value:
            raise CheckpointError(f"{path}: {what} (xp.cfg {field}: {show(value)}); clean_lm takes MusicGen's")
