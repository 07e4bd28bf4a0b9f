"""Write the demo's text encoder: T5's shape, one layer of random weights, and a tokenizer of the words that loops are
described with. MusicGen's text encoder is frozen too; its language model learns what the states mean."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import weights.text
from clean_lm.models.config import TextConfig
from clean_lm.models.t5 import T5Encoder
from demo.train import synth
from demo.train.upstream import theirs
from weights.checkpoint import Checkpoint
from weights.mapping import fill
from weights.tokenizer import SPACE, open_tokenizer

NAME = "t5-small"  # upstream knows a text encoder's width by its name: 512


def pieces() -> list[str]:
    """Every token: the special ones, the space and the comma, and whole words with the space before them."""
    phrases = [name for names in synth.NAMES.values() for name in names]
    phrases += [*synth.PACE, "bpm", *(str(synth.bpm(beat)) for tempi in synth.TEMPI.values() for beat in tempi)]
    words = sorted({SPACE + word for text in phrases for word in text.split()})
    return ["<pad>", "</s>", "<unk>", SPACE, ",", *words]


def config() -> TextConfig:
    return TextConfig(
        layers=1, heads=2, head_dim=32, dim=512, hidden=64, gated=False, vocab=len(pieces()), buckets=32,
        max_distance=128, eps=1e-6, pad_token=0, eos_token=1,
    )  # fmt: skip


def write(folder: Path, seed: int) -> None:
    """config.json, model.safetensors and tokenizer.json, as Hugging Face's T5 has them."""
    folder.mkdir(parents=True, exist_ok=True)
    c, generator = config(), torch.Generator().manual_seed(seed)
    tree = {
        "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": c.dim, "d_kv": c.head_dim, "d_ff": c.hidden,
        "num_layers": c.layers, "num_heads": c.heads, "vocab_size": c.vocab, "feed_forward_proj": "relu",
        "relative_attention_num_buckets": c.buckets, "relative_attention_max_distance": c.max_distance,
        "layer_norm_epsilon": c.eps, "pad_token_id": c.pad_token, "eos_token_id": c.eos_token,
        "is_encoder_decoder": False, "use_cache": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    rows = weights.text.table(Checkpoint(folder, "t5", tree, {}, lambda: {}.__getitem__), c)
    ours = {}
    for name, tensor in T5Encoder(c).state_dict().items():
        # inputs add up to the size of one; T5 does not scale its scores, so queries are that much smaller
        size = 1.0 if name == "embedding" else tensor.shape[0] ** -0.5
        drawn = torch.randn(tensor.shape, generator=generator) * size
        ours[f"text_encoder.{name}"] = torch.ones(tensor.shape) if "norm" in name else drawn
        if name.endswith("qkv"):
            drawn[:, : c.heads * c.head_dim] *= c.head_dim**-0.5
    save_file(theirs(rows, ours), folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    unigram = models.Unigram([(piece, -1.0) for piece in pieces()], unk_id=2, byte_fallback=False)
    tokenizer = Tokenizer(unigram)
    tokenizer.add_special_tokens(pieces()[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", c.eos_token)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"extra_ids": 0, "tokenizer_class": "T5Tokenizer"}\n', encoding="utf-8"
    )
    print(f"wrote {folder}")


@dataclass(frozen=True)
class Texts:
    """A text encoder that is there already, and its tokenizer."""

    encoder: T5Encoder
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path) -> "Texts":
        model = weights.text.load(folder)
        encoder = fill(T5Encoder(model.config), model.weights("text_encoder"))
        return cls(encoder, open_tokenizer(folder, model.config))

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts -> states float [X, N, E], mask int64 [X, N]: padded to the longest, as upstream does."""
        ids = [self.tokenizer.encode(text).ids for text in texts]
        mask = torch.tensor(np.arange(max(map(len, ids))) < np.array([[len(row)] for row in ids])).long()
        padded = torch.zeros(mask.shape, dtype=torch.int64)
        for row, found in enumerate(ids):
            padded[row, : len(found)] = torch.tensor(found)
        return self.encoder(padded, mask), mask
