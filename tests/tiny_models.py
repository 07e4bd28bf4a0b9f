"""Tiny random models of transformers, and files as other libraries write them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import HubertConfig, HubertModel

TINY: dict[str, Any] = {
    "sample_rate": 24_000,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "conv_dim": [8, 7, 6, 8, 7, 6, 8],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
CONV = "encoder.pos_conv_embed.conv"
SPELLINGS = {"old": ("weight_g", "weight_v"), "new": [f"parametrizations.weight.original{i}" for i in (0, 1)]}


def hubert(seed: int = 0, kind: type[Any] = HubertModel, **config: Any) -> Any:
    """A random HuBERT of transformers, its biases and norms random too."""
    torch.manual_seed(seed)
    model = kind(HubertConfig(**TINY | config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.endswith("original0"):
                parameter.copy_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


def mert_tensors(model: Any, spelling: str = "old") -> dict[str, Tensor]:
    """A model's tensors as its file has them."""
    state = {name: t.clone() for name, t in model.state_dict().items()}
    at = next(name for name in state if name.endswith(f"{CONV}.bias")).removesuffix("bias")
    for ours, theirs in zip(SPELLINGS[spelling], SPELLINGS["new"], strict=True):
        state[at + ours] = state.pop(at + theirs)
    return state


def mert_folder(path: Path, model: Any, state: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """A model's folder, with other tensors or settings."""
    path.mkdir(exist_ok=True)
    save_file(mert_tensors(model) if state is None else state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(model.config.to_dict() | config))
    return path


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename as transformers' convert_musicgen_transformers.py does; q, k and v are split."""
    renames = {
        "condition_provider.conditioners.description.output_proj": "enc_to_dec_proj",
        "transformer.": "decoder.model.decoder.",
        "emb.": "decoder.model.decoder.embed_tokens.",
        "out_norm.": "decoder.model.decoder.layer_norm.",
        "linears.": "decoder.lm_heads.",
        ".cross_attention.": ".encoder_attn.",
        ".linear1.": ".fc1.",
        ".linear2.": ".fc2.",
        ".norm1.": ".self_attn_layer_norm.",
        ".norm_cross.": ".encoder_attn_layer_norm.",
        ".norm2.": ".final_layer_norm.",
    }
    renamed = {}
    for name, tensor in state.items():
        for theirs, other in renames.items():
            if name.startswith(theirs) or theirs.startswith("."):
                name = name.replace(theirs, other, 1)
        if name.endswith("in_proj_weight"):
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("in_proj_weight", f"{x}_proj.weight")] = part.clone()
        else:
            renamed[name] = tensor
    return renamed
