"""Train the demo's language model on the codes of synthesised loops: MusicGen's modules as clean_lm has them, on whole
sequences instead of step by step. Every text is left out at times: guidance needs a model that also knows none."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from clean_lm.codec import Encoder
from clean_lm.config import LMConfig
from clean_lm.layers import Cache
from clean_lm.lm import LM, Condition
from clean_lm.pattern import delay
from demo.train import synth
from demo.train.text import Texts
from demo.train.trainer import Settings, initialise, train

CONFIG = LMConfig(
    solver="musicgen",
    layers=5, heads=6, dim=192, hidden_scale=4, codebooks=4, card=512, delays=(0, 1, 2, 3), text_dim=512,
    text_encoder="t5-small", max_duration=30.0, sample_rate=32_000, channels=1, cross=("description",), prepend=(),
    self_wav=None,
)  # fmt: skip
FRAMES = 500  # of a training sequence: 10 s
NO_TEXT = 0.3  # share of sequences without


class CausalAttention:
    """PyTorch's own kernel, for whole sequences: the cache before them is empty. Training only."""

    def columns(self, position: Tensor, rows: int, new: int, capacity: int) -> tuple[Tensor, ...]:
        return ()

    def __call__(self, qkv: Tensor, cache: Cache, columns: tuple[Tensor, ...], heads: int) -> tuple[Tensor, Cache]:
        q, k, v = rearrange(qkv, "r s (three h d) -> three r h s d", three=3, h=heads)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return rearrange(out, "r h s d -> r s (h d)"), cache

    def cross(self, q: Tensor, cross: Cache, heads: int) -> Tensor:
        out = F.scaled_dot_product_attention(rearrange(q, "x s (h d) -> x h s d", h=heads), *cross)
        return rearrange(out, "x h s d -> x s (h d)")


class Model(nn.Module):
    """The language model and what makes keys and values of a text."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.lm, self.condition = LM(config, CausalAttention()), Condition(config)
        initialise(self)
        with torch.no_grad():
            self.lm.embedding.normal_(std=0.5)  # K of them add up to the sinusoid's size
            for name, p in self.lm.named_parameters():
                if name.endswith((".out", "cross_out", "linear2", "heads")):
                    p.mul_(0.3)

    def forward(self, codes: Tensor, told: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """codes int64 [B, K, T], and text states and mask of the first X rows -> log-probabilities of the codes in
        every place [B, K, T, card]."""
        c = self.config
        columns = torch.from_numpy(delay(codes.numpy(), c.delays, codes.shape[2], c.special_token))
        empty = torch.zeros(len(codes), c.heads, 0, c.head_dim)
        cross = self.condition(*told) if told else []
        x, _ = self.lm.read(columns[:, :, :-1], torch.zeros(1, dtype=torch.int64), [(empty, empty)] * c.layers, cross)
        logits = self.lm.logits(x).float()  # of the column after each: frame t of codebook k stands in 1 + t + delay
        frames = codes.shape[2]
        found = [logits[:, lag : lag + frames, k] for k, lag in enumerate(c.delays)]
        return torch.stack(found, dim=1).log_softmax(dim=-1)


def cross_entropy(log_probabilities: Tensor, codes: Tensor) -> Tensor:
    """[B, K, T, card], [B, K, T] -> nats of every code [B, K, T]."""
    return -log_probabilities.gather(-1, codes[..., None])[..., 0]


@torch.no_grad()
def encode(encoder: Encoder, loops: np.ndarray, seed: int, path: Path) -> np.ndarray:
    """Loops int16 [N, samples] -> codes int16 [N, K, frames], made once. Half of the loops begin on a frame, as
    clips that are cut on a beat do; the others anywhere in one."""
    if not path.exists():
        rng, hop, codes = np.random.default_rng((seed, 3)), synth.HOP, []
        frames = loops.shape[1] // hop - 1
        for wave in tqdm(loops, "codes", disable=None):
            start = int(rng.integers(hop)) if rng.random() < 0.5 else 0
            audio = torch.from_numpy(wave[start : start + frames * hop].astype(np.float32) / 32768)
            codes.append(encoder(audio[None, None])[0].numpy().astype(np.int16))
        np.save(path, np.stack(codes))
    return np.load(path)


def fit(
    codes: np.ndarray, kinds: list[tuple[str, int]], texts: Texts, folder: Path, settings: Settings,
    config: LMConfig = CONFIG, frames: int = FRAMES,
) -> Model:  # fmt: skip
    """Train on stretches of codes [N, K, T] of loops whose style and pace are `kinds`; goes on where folder/lm.pt was
    left."""
    torch.manual_seed(settings.seed)
    model = Model(config)

    def loss(step: int) -> tuple[Tensor, str]:
        rng = np.random.default_rng((settings.seed, 4, step))
        rows, starts = (rng.integers(n, size=settings.batch) for n in (len(codes), codes.shape[2] - frames + 1))
        without = rng.random(settings.batch) < NO_TEXT
        rows = rows[np.argsort(without, kind="stable")]  # the first have a text
        told = [synth.describe(*kinds[int(row)], rng) for row in rows[: np.count_nonzero(~without)]]
        batch = np.stack([codes[row, :, start : start + frames] for row, start in zip(rows, starts, strict=True)])
        known = torch.from_numpy(batch).long()
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(known, texts(told) if told else None)
        nats = cross_entropy(predicted, known)
        by_codebook = nats.detach().mean(dim=(0, 2))
        return nats.mean(), "nats by codebook " + " ".join(f"{value:.2f}" for value in by_codebook)

    train(model, loss, folder / "lm.pt", settings)
    return model.eval()
