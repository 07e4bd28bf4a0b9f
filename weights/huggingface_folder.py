"""Hugging Face's folders: config.json, and tensors as safetensors or .bin, whole or in shards; adapters on top of them.

Of a decoder saved alone and of a LoRA adapter, the rest is in another folder, `base`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from weights.containers import (
    Checkpoint,
    Read,
    Spec,
    has_safetensors,
    open_pytorch,
    open_safetensors,
    verify_pytorch,
)
from weights.errors import CheckpointError, show
from weights.lora import base_of, is_adapter, open_adapter, refuse_unmerged
from weights.trees import read_json
from weights.wrappers import renamed, unwrapped

ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")
# What other models are, by config.json's model_type.
OTHER_TYPES = {
    "encodec": ": a codec, which export/codec.py takes",
    "t5": ": a text encoder, which export/text.py takes",
    "dac": ": Descript's DAC, not EnCodec; MusicGen's codec is facebook/encodec_32khz",
    "xcodec": ": X-Codec, not EnCodec; MusicGen's codec is facebook/encodec_32khz",
    "mimi": ": Kyutai's Mimi, not EnCodec; MusicGen's codec is facebook/encodec_32khz",
}
DECODERS = {"musicgen_decoder": "musicgen", "musicgen_melody_decoder": "musicgen_melody"}
PROJECTION = "enc_to_dec_proj.weight"
# The codec of every MusicGen on the hub: only its rate and hop are used, and a bundle's codec must agree with them.
ENCODEC_32KHZ = {"sampling_rate": 32_000, "upsampling_ratios": [8, 5, 4, 4]}


@dataclass(frozen=True)
class FolderKind:
    """What Hugging Face's folder of one kind of model is recognised by."""

    layouts: Mapping[str, str]  # config.json's model_type: the layout of the tensors
    expected: str  # the model types, in words
    what: str  # "codec"
    files: str  # what its folder holds


MUSICGENS = {"musicgen": "huggingface", "musicgen_melody": "huggingface"}
FILES = "Hugging Face's config.json and model.safetensors"
LM = FolderKind(
    {**MUSICGENS, **dict.fromkeys(DECODERS, "decoder")},
    "'musicgen' or 'musicgen_melody'",
    "model",
    f"audiocraft's state_dict.bin, or {FILES}",
)
CODEC = FolderKind(
    {"encodec": "encodec", **MUSICGENS},
    "'encodec', or 'musicgen' with one in it",
    "codec",
    f"audiocraft's compression_state_dict.bin, or {FILES}",
)
TEXT = FolderKind(
    {"t5": "t5", **MUSICGENS},
    "'t5', or 'musicgen' with a T5 in it",
    "text encoder",
    f"{FILES} (or pytorch_model.bin) of a T5",
)
MERT = FolderKind(
    {"mert_model": "mert", "hubert": "mert"},
    "'mert_model' or 'hubert'",
    "MERT",
    f"{FILES} (or pytorch_model.bin) of a MERT",
)


def is_huggingface(path: Path) -> bool:
    """Whether a path is a folder, or a file of one."""
    inside = path.suffix == ".bin" and (path.name.startswith("pytorch_model") or path.name in ADAPTERS)
    return path.is_dir() or path.suffix in (".safetensors", ".json") or inside


def open_folder(path: Path, kind: FolderKind, base: Path | None = None) -> Checkpoint:
    """Open the folder of a model of some kind (or a file in it), or of an adapter of one, whose model is `base`.

    Raises CheckpointError where it is something else, FileNotFoundError where there is nothing.
    """
    folder = path if path.is_dir() else path.parent
    if is_adapter(folder):
        return _adapted(folder, open_folder(base_of(folder, base), kind))
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder}: no {kind.what} found; expected {kind.files}")
    layout, config = folder_config(folder / "config.json", kind)
    checkpoint = _open(folder, layout, config)
    if layout != "decoder":
        return checkpoint
    return _with_decoder(open_folder(base, LM), checkpoint) if base else _decoder_alone(checkpoint)


def folder_config(path: Path, kind: FolderKind) -> tuple[str, dict[str, Any]]:
    """The layout of a folder's tensors, and its config.json with what a MusicGen has beside it: generation_config.json
    and the feature extractor's settings, as the fields generation_config and feature_extractor."""
    config = read_json(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in kind.layouts:
        hint = OTHER_TYPES.get(model_type, "") if isinstance(model_type, str) else ""
        raise CheckpointError(f"{path}: model_type is {show(model_type)}, expected {kind.expected}{hint}")
    layout = kind.layouts[model_type]
    if layout in ("huggingface", "decoder"):
        config["generation_config"] = _beside(path, "generation_config.json")
        extractor = _beside(path, "preprocessor_config.json") or _beside(path, "processor_config.json")
        config["feature_extractor"] = extractor.get("feature_extractor", extractor)
    return layout, config


def _beside(path: Path, name: str) -> dict[str, Any]:
    beside = path.parent / name
    return read_json(beside) if beside.exists() else {}


def _open(folder: Path, layout: str, config: Mapping[str, Any]) -> Checkpoint:
    read = open_safetensors if has_safetensors(folder) else open_pytorch
    specs, _ = read(folder)
    names, notes = unwrapped(folder, specs)
    refuse_unmerged(folder, names)

    def mapped() -> Read:
        tensor = read(folder)[1]
        return lambda name: tensor(names[name])

    verify = (lambda: None) if read is open_safetensors else (lambda: verify_pytorch(folder))
    return Checkpoint(folder, layout, config, renamed(specs, names), mapped, notes, verify=verify)


def _adapted(folder: Path, base: Checkpoint) -> Checkpoint:
    """A base model with an adapter's changes."""
    adapter = open_adapter(folder)
    changes = adapter.changes(base.specs)

    def mapped() -> Read:
        tensor = base.open()
        return lambda name: adapter.merged(changes[name], tensor(name)) if name in changes else tensor(name)

    specs = {name: replace(spec, dtype=adapter.dtype) if name in changes else spec for name, spec in base.specs.items()}

    def verify() -> None:
        adapter.verify()
        base.verify()

    notes = (*base.notes, f"merged the LoRA adapter {folder} into {base.path}: {len(changes)} tensors")
    tokenizer = base.tokenizer or base.path
    return replace(base, path=folder, specs=specs, open=mapped, notes=notes, tokenizer=tokenizer, verify=verify)


# A decoder that was saved alone: MusicgenForCausalLM's names have no "decoder." in front.


def _decoder_alone(decoder: Checkpoint) -> Checkpoint:
    """As a whole model. The projection of the text must be among its tensors: it says how wide the states are."""
    melody = decoder.config["model_type"] == "musicgen_melody_decoder"
    projection = decoder.specs.get(PROJECTION)
    if projection is None or len(projection.shape) != 2 or melody:
        missing = "the projections of text and melody" if melody else "the projection of the text"
        raise CheckpointError(
            f"{decoder.path}: a decoder that was saved without {missing} ({PROJECTION.removesuffix('.weight')}); save "
            "the whole model (save_pretrained of the ForConditionalGeneration that it is the decoder of), or give the "
            "model that it is a fine-tune of with --base FOLDER"
        )
    whole = {"text_encoder": {"d_model": projection.shape[1]}, "audio_encoder": ENCODEC_32KHZ}
    note = f"{decoder.path}: a decoder alone, taken to be for codes of EnCodec's at 32 kHz"
    base = Checkpoint(decoder.path, "huggingface", whole, {}, lambda: {}.__getitem__, (note,))
    return _with_decoder(base, decoder)


def _with_decoder(base: Checkpoint, decoder: Checkpoint) -> Checkpoint:
    """A whole model whose decoder is another one's. Tensors of the decoder's folder go before those of the base."""
    model_type = DECODERS[decoder.config["model_type"]]
    if base.config.get("model_type", model_type) != model_type:
        raise CheckpointError(
            f"{decoder.path}: its model_type is {show(decoder.config['model_type'])}, that of --base "
            f"{show(base.config['model_type'])}; give the model that it is a fine-tune of"
        )
    names = {name if name.startswith("enc_to_dec_proj.") else f"decoder.{name}": name for name in decoder.specs}
    rest = {name: spec for name, spec in base.specs.items() if not name.startswith("decoder.") and name not in names}
    config = {
        **base.config,
        "model_type": model_type,
        "decoder": decoder.config,
        "generation_config": decoder.config["generation_config"],
    }

    def mapped() -> Read:
        ours, theirs = decoder.open(), base.open()

        def tensor(name: str) -> Tensor:
            return ours(names[name]) if name in names else theirs(name)

        return tensor

    def verify() -> None:
        decoder.verify()
        base.verify()

    specs: dict[str, Spec] = rest | renamed(decoder.specs, names)
    notes, tokenizer = base.notes + decoder.notes, base.tokenizer or base.path
    return Checkpoint(decoder.path, "huggingface", config, specs, mapped, notes, tokenizer, verify)
