# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""weights/lora.py beside PEFT itself: adapters of random models, merged by us and by merge_and_unload."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from export import bundle
from export.commands import ExportError
from tests.test_huggingface_melody import CODEC, melody_model
from weights import lm, text
from weights.checkpoint import CheckpointError, open_lm

pytestmark = [pytest.mark.parity, pytest.mark.weights]

# What the recipe of Hugging Face's fine-tunes trains, and more.
RECIPE = ["enc_to_dec_proj", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "lm_heads.0"]
CASES: dict[str, dict[str, Any]] = {
    "recipe": {"target_modules": RECIPE, "r": 3, "lora_alpha": 6},
    "regex": {"target_modules": r".*decoder.*\.(q|v)_proj", "lora_alpha": 5},
    "rslora": {"target_modules": RECIPE, "use_rslora": True, "lora_alpha": 5},
    "patterns": {
        "target_modules": ["q_proj", "fc1", "fc2"],
        "rank_pattern": {"fc1": 5, r".*layers\.1\.self_attn\.q_proj": 3},
        "alpha_pattern": {"fc1": 7, "layers.0.self_attn.q_proj": 1},
    },
    "rslora_patterns": {"target_modules": ["fc1"], "use_rslora": True, "rank_pattern": {"fc1": 5}},
    "dora": {"target_modules": [*RECIPE, "embed_tokens.1"], "use_dora": True, "lora_alpha": 3},
    "fan_in_fan_out": {"target_modules": ["fc1"], "fan_in_fan_out": True},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_heads.1", "enc_to_dec_proj"]},
    "bias_all": {"target_modules": ["q_proj", "enc_to_dec_proj"], "bias": "all"},
    "bias_lora_only": {"target_modules": ["q_proj", "enc_to_dec_proj"], "bias": "lora_only"},
    "lora_bias": {"target_modules": ["enc_to_dec_proj"], "lora_bias": True},
    "embeddings": {"target_modules": ["embed_tokens.0", "fc1"], "lora_alpha": 3},
    "text_encoder": {"target_modules": ["SelfAttention.q", "fc1"]},
    "gaussian": {"target_modules": ["fc1"], "init_lora_weights": "gaussian"},
}
MELODY = {"target_modules": ["audio_enc_to_dec_proj", *RECIPE], "lora_alpha": 4}


def musicgen() -> Any:
    torch.manual_seed(0)
    decoder = MusicgenDecoderConfig(
        vocab_size=32, num_hidden_layers=2, num_attention_heads=2, hidden_size=16, ffn_dim=32, num_codebooks=4,
        pad_token_id=32, bos_token_id=32,
    )  # fmt: skip
    t5 = T5Config(d_model=10, num_layers=1, num_heads=1, d_kv=8, d_ff=8, vocab_size=16)
    config = MusicgenConfig(text_encoder=t5, audio_encoder=EncodecConfig(**CODEC), decoder=decoder)
    return MusicgenForConditionalGeneration(config).eval()


def trained(model: Any, folder: Path, config: Any, base: Path | None = None) -> dict[str, torch.Tensor]:
    """Save the model and a random adapter of it -> the tensors of peft's own merge."""
    if base:
        model.save_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, mean=float("magnitude" in name), std=0.2)
        adapted.save_pretrained(folder)
        return adapted.merge_and_unload().state_dict()


def compare(ours: Any, merged: dict[str, torch.Tensor]) -> None:
    assert ours.specs.keys() <= merged.keys()
    read = ours.open()
    for name, spec in ours.specs.items():
        assert tuple(read(name).shape) == spec.shape
        torch.testing.assert_close(read(name), merged[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_lora_is_pefts_merge(tmp_path: Path, case: str):
    merged = trained(musicgen(), tmp_path / "adapter", LoraConfig(**{"r": 2} | CASES[case]), tmp_path / "base")
    before = open_lm(tmp_path / "base").open()
    ours = open_lm(tmp_path / "adapter", tmp_path / "base")
    compare(ours, merged)
    assert "merged the LoRA adapter" in ours.notes[-1]
    read = ours.open()
    changed = [name for name in ours.specs if not torch.equal(read(name), before(name))]
    assert f"{len(changed)} tensors" in ours.notes[-1] or case.startswith("bias")
    lm.load(tmp_path / "adapter", tmp_path / "base")
    text.load(tmp_path / "adapter", tmp_path / "base")


def test_lora_of_a_melody_model(tmp_path: Path):
    merged = trained(melody_model(), tmp_path / "adapter", LoraConfig(r=4, **MELODY), tmp_path / "base")
    compare(open_lm(tmp_path / "adapter", tmp_path / "base"), merged)
    assert lm.load(tmp_path / "adapter", tmp_path / "base").config.self_wav is not None


def test_lora_of_the_decoder_alone(tmp_path: Path):
    """An adapter that was trained on `model.decoder`: its names have no "decoder." in front."""
    model = musicgen()
    model.save_pretrained(tmp_path / "base")
    merged = trained(model.decoder, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj", "lm_heads.0"]))
    ours = open_lm(tmp_path / "adapter", tmp_path / "base")
    read = ours.open()
    for name, tensor in merged.items():
        if f"decoder.{name}" in ours.specs:
            torch.testing.assert_close(read(f"decoder.{name}"), tensor, atol=1e-6, rtol=1e-5)


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    def make(config: dict[str, Any] | None = None, **changes: Any) -> Path:
        folder = tmp_path / "adapter"
        trained(musicgen(), folder, LoraConfig(r=2, target_modules=["fc1"], **config or {}), tmp_path / "base")
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    return make


def test_lora_names_its_base(adapter: Callable[..., Path], tmp_path: Path):
    folder = adapter(base_model_name_or_path=str(tmp_path / "base"))
    assert open_lm(folder).specs == open_lm(folder, tmp_path / "base").specs
    assert open_lm(folder / "adapter_model.safetensors").specs == open_lm(folder).specs


def test_lora_as_bin_on_a_sharded_base(adapter: Callable[..., Path], tmp_path: Path):
    folder = adapter()
    before = open_lm(folder, tmp_path / "base")
    want = {name: before.open()(name) for name in before.specs}
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "model.safetensors").unlink()
    shards = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(tensors)}
    for shard in set(shards.values()):
        torch.save({n: t for n, t in tensors.items() if shards[n] == shard}, tmp_path / "base" / shard)
    index = tmp_path / "base" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    ours = open_lm(folder, tmp_path / "base")
    assert ours.specs == before.specs
    read = ours.open()
    assert all(torch.equal(read(name), want[name]) for name in want)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, ["a IA3 adapter, expected LoRA", "merge_and_unload"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights is 'pissa'", "base model's weights", "merge_and_unload"]),
        ({"init_lora_weights": "olora"}, ["init_lora_weights is 'olora'"]),
        ({"use_qalora": True}, ["uses use_qalora of LoRA", "merge_and_unload"]),
        ({"trainable_token_indices": [1]}, ["uses trainable_token_indices"]),
        ({"layer_replication": [[0, 2]]}, ["uses layer_replication"]),
        ({"something_new": {"a": 1}}, ["uses something_new"]),
        ({"lora_alpha": "8"}, ["lora_alpha is '8'"]),
        ({"base_model_name_or_path": "facebook/musicgen-small", "base": None},
         ["its base is 'facebook/musicgen-small'", "hf download facebook/musicgen-small", "--base FOLDER",
          "merge_and_unload"]),
    ],
)  # fmt: skip
def test_other_adapters_are_named(
    adapter: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], words: list[str]
):
    base = None if "base" in changes else tmp_path / "base"
    with pytest.raises(CheckpointError) as error:
        open_lm(adapter(**changes), base)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_ia3_of_peft_is_named(tmp_path: Path):
    config = IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"])
    trained(musicgen(), tmp_path / "adapter", config, tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"a IA3 adapter, expected LoRA; .*merge_and_unload"):
        open_lm(tmp_path / "adapter", tmp_path / "base")


def test_lora_on_another_base(adapter: Callable[..., Path], tmp_path: Path):
    folder = adapter()
    melody_model(dim=12).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"makes .*fc1\.weight \[32, 16\], which is \[24, 12\] in the base"):
        open_lm(folder, tmp_path / "other")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name.replace("fc1", "fc9"): t for name, t in tensors.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"4 of its tensors|2 of its tensors .*fc9.*--base"):
        open_lm(folder, tmp_path / "base")


def test_unmerged_lora_in_a_saved_model(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(musicgen(), LoraConfig(r=2, target_modules=RECIPE))
    inner = model.base_model.model
    inner.config.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in inner.state_dict().items() if "embed_positions" not in name}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensors of adapters that are not merged, such as .*merge_and_unload"):
        open_lm(tmp_path)


def test_lora_of_the_text_encoder_in_a_bundle(tmp_path: Path):
    """The text encoder that the adapter changes is not left out silently."""
    config = LoraConfig(r=2, target_modules=["SelfAttention.q"])
    trained(musicgen(), tmp_path / "adapter", config, tmp_path / "base")
    with pytest.raises(ExportError, match=r"changes the text encoder, too; give it as --text .*or --stock-text"):
        bundle.export(tmp_path / "adapter", None, tmp_path / "base", tmp_path / "out", base=tmp_path / "base")
    assert not (tmp_path / "out").exists()
