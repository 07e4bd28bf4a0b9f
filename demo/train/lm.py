"""Train the demo's language model on the codes of synthesised loops: the modules of clean_lm/models on whole sequences
instead of step by step. Some sequences have no text, because guidance needs a model that can do without."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from clean_lm.delay_pattern import delay
from clean_lm.models.config import LMConfig
from clean_lm.models.encodec import Encoder
from clean_lm.models.lm import LM, Condition
from clean_lm.models.transformer import Cache, Layer
from demo.train import synth
from demo.train.text import Texts
from demo.train.trainer import Settings, initialise, train

CONFIG = LMConfig(
    solver="musicgen",
    layers=4, heads=6, dim=192, hidden_scale=4, codebooks=4, card=512, delays=(0, 1, 2, 3), text_dim=512,
    text_encoder="t5-small", max_duration=30.0, sample_rate=32_000, channels=1, cross=("description",), prepend=(),
    self_wav=None,
)  # fmt: skip
FRAMES = 500  # of the longest training sequences: 10 s
OFF_FRAME = 0.1  # share of the loops that begin somewhere in one
ON_BEAT = 0.75  # share of the sequences that begin on a beat
CLEAN = 0.2444  # share of the steps that learn to copy, from codes as they are; then there are mistakes in most
MISTAKES = 0.4  # the largest share of codes that are wrong in what a sequence is continued from
PADDED = 0.7333  # share of the steps in which texts are padded to the longest of them
FIRST = 10  # frames after which a stretch's codes count half
EDGE = (0.7, 0.4, 0.4, 0.2)  # share of the codes of a prompt's last frames, backwards, that its end changes
SLIP = 60  # frames from one slip to the next, about
END = (0.33, 0.73, 0.95, 0.9)  # share of a prompt's last codes in each codebook that are others in the whole loop
NO_TEXT = 0.25  # share of the sequences of a step


class CausalAttention:
    """PyTorch's own kernel, for whole sequences: the cache before them is empty. Training only."""

    padding = True  # whether the padding of texts is attended to, as upstream's models do

    def columns(self, position: Tensor, rows: int, new: int, capacity: int) -> tuple[Tensor, ...]:
        return ()

    def __call__(self, qkv: Tensor, cache: Cache, columns: tuple[Tensor, ...], heads: int) -> tuple[Tensor, Cache]:
        q, k, v = rearrange(qkv, "r s (three h d) -> three r h s d", three=3, h=heads)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return rearrange(out, "r h s d -> r s (h d)"), cache

    def cross(self, q: Tensor, cross: Cache, heads: int) -> Tensor:
        k, v = cross
        mask = None if self.padding else (k != 0).any(dim=-1)[:, :, None]  # the keys of padding are zeros
        out = F.scaled_dot_product_attention(rearrange(q, "x s (h d) -> x h s d", h=heads), k, v, mask)
        return rearrange(out, "x h s d -> x s (h d)")


def lay_copying(lm: LM) -> None:
    """Initialise with an induction head (Olsson et al. 2022, "In-context Learning and Induction Heads"), which finds
    an earlier column with the same codes and predicts what followed it. Continuing a loop depends on that, and from
    random weights it had not begun after 500 steps. All weights are trained from here.

    places of the width W, D of a head:
    0         D/2       W/2 - D      W/2        W/2 + D/2     W - D            W
    | fast cos | content | before     | fast sin | content     | content, key   |
    """
    d, half, width = lm.config.head_dim, lm.config.dim // 2, lm.config.dim
    fast = torch.cat([torch.arange(d // 2), half + torch.arange(d // 2)])  # where a column stands, alone
    before = torch.arange(half - d, half)  # slow cosines, about 1: here layer 0 writes the key of the column before
    key = torch.arange(width - d, width)  # slow sines, about 0: the content that columns are found by
    taken = torch.cat([fast, before])
    content = torch.tensor([i for i in range(width) if i not in set(taken.tolist())])
    lm.embedding[:, taken] = 0
    tables = rearrange(lm.embedding, "(k c) d -> k c d", k=lm.config.codebooks)[:, :-1]
    lm.heads.copy_(1.5 * rearrange(tables, "k c d -> d (k c)") / tables.norm(dim=-1).mean())

    first, second = lm.layers[0], lm.layers[1]
    assert isinstance(first, Layer)
    assert isinstance(second, Layer)
    for weights in (first.out, first.cross_out, first.linear2):
        weights[:, before] = 0
    q, k, v = (first.qkv[:, i * width : i * width + d] for i in range(3))
    cos, sin = (torch.diag(f(1 / lm.period[: d // 2])) for f in (torch.cos, torch.sin))  # of one column's turn
    q[:], k[:], v[:] = 0, 0, 0
    k[fast] = 3 * torch.eye(d)
    q[fast] = 3 * torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])
    v[key] = torch.eye(d)
    first.out[:d] = 0
    first.out[:d, before] = torch.eye(d)
    for head, part in enumerate(content.split(d)):
        columns = slice(head * d, (head + 1) * d)
        q, k, v = (second.qkv[:, i * width :][:, columns] for i in range(3))
        q[:], k[:], v[:] = 0, 0, 0
        q[key], k[before] = 1.7 * torch.eye(d), 1.7 * torch.eye(d)
        v[part] = torch.eye(d)[: len(part)]
        second.out[columns] = 0
        second.out[columns, part] = 3 * torch.eye(d)[: len(part), : len(part)]


class Model(nn.Module):
    """The language model, and the module that makes keys and values of a text."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.attention = CausalAttention()
        self.lm, self.condition = LM(config, self.attention), Condition(config)
        initialise(self)
        with torch.no_grad():
            self.lm.embedding.normal_(std=0.5)  # K of them add up to the sinusoid's size
            for name, p in self.lm.named_parameters():
                if name.endswith((".out", "cross_out", "linear2")):
                    p.mul_(0.3)
            lay_copying(self.lm)

    def forward(self, codes: Tensor, text: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """codes int64 [B, K, T], and states and mask of the first X rows' texts -> log-probabilities of the codes in
        every place [B, K, T, card]."""
        c = self.config
        columns = torch.from_numpy(delay(codes.numpy(), c.delays, codes.shape[2], c.special_token))
        empty = torch.zeros(len(codes), c.heads, 0, c.head_dim)
        cross = self.condition(*text) if text else []
        x, _ = self.lm.read(columns[:, :, :-1], torch.zeros(1, dtype=torch.int64), [(empty, empty)] * c.layers, cross)
        logits = self.lm.logits(x).float()  # of the column after each: frame t of codebook k stands in 1 + t + delay
        frames = codes.shape[2]
        found = [logits[:, lag : lag + frames, k] for k, lag in enumerate(c.delays)]
        return torch.stack(found, dim=1).log_softmax(dim=-1)


def cross_entropy(log_probabilities: Tensor, codes: Tensor) -> Tensor:
    """[B, K, T, card], [B, K, T] -> nats of every code [B, K, T]."""
    return -log_probabilities.gather(-1, codes[..., None])[..., 0]


def mistaken(codes: Tensor, rng: np.random.Generator, most: float = MISTAKES) -> Tensor:
    """Codes [B, K, T] with up to a share of `most` of each sequence replaced by others of that codebook: the model
    has to go on from its own mistakes."""
    others = codes[:, :, torch.from_numpy(rng.permutation(codes.shape[2]))]
    others = others[torch.from_numpy(rng.permutation(len(codes)))]
    share = most * rng.random((len(codes), 1, 1))
    return torch.where(torch.from_numpy(rng.random(codes.shape) < share), others, codes)


def stuck(codes: Tensor, rng: np.random.Generator) -> Tensor:
    """Codes [B, K, T] in some stretches of which one to four frames repeat: a model that copies may copy itself."""
    frames, rows = np.arange(codes.shape[2]), []
    for row in codes:
        read = frames.copy()
        for start in rng.integers(codes.shape[2], size=rng.integers(4)):
            end = start + rng.integers(2, 80)
            read[start:end] = start + np.arange(len(read[start:end])) % rng.integers(1, 5)
        rows.append(row[:, torch.from_numpy(np.minimum(read, frames[-1]))])
    return torch.stack(rows)


def cut_off(codes: Tensor, rng: np.random.Generator) -> Tensor:
    """Codes [B, K, T] as those of a prompt: where it is cut off, its last frames have other codes than the whole loop
    has there. With a few mistakes."""
    read, frames = codes.clone(), codes.shape[2]
    for row in read:
        end = int(rng.integers(frames // 5, frames - frames // 5))
        for back, share in enumerate(EDGE):
            wrong = torch.from_numpy(rng.random(codes.shape[1]) < share)
            row[wrong, end - 1 - back] = row[wrong, int(rng.integers(frames))]
    return mistaken(read, rng, 0.1)


def spoilt(codes: Tensor, rng: np.random.Generator) -> Tensor:
    """Codes [B, K, T], wrong in one of the ways in which a model's input may be, or right."""
    drawn = rng.random()
    if drawn < 0.25:
        return codes
    if drawn < 0.5:
        return mistaken(codes, rng)
    return cut_off(codes, rng) if drawn < 0.85 else mistaken(stuck(codes, rng), rng)


def slipped(codes: Tensor, rng: np.random.Generator) -> Tensor:
    """Codes [B, K, T] as read by a model that has lost its place for a moment, or whose prompt was cut off there: here
    and there some frames are replaced by others of the sequence. With a few mistakes."""
    read, frames = codes.clone(), codes.shape[2]
    for row, original in zip(read, codes, strict=True):
        for _ in range(frames // SLIP):
            length = int(rng.integers(1, 9))
            at, other = (int(start) for start in rng.integers(frames - length, size=2))
            wrong = torch.from_numpy(rng.random(len(row)) < (1.0 if rng.random() < 0.5 else np.array(END)))
            row[wrong, at : at + length] = original[wrong, other : other + length]
    return mistaken(read, rng, 0.1)


@torch.no_grad()
def encode(encoder: Encoder, loops: np.ndarray, seed: int, path: Path) -> np.ndarray:
    """Loops int16 [N, samples] -> codes int16 [N, K, frames], made once. Most of the loops begin on a frame, as
    clips that are cut on a beat do; the others anywhere in one."""
    if not path.exists():
        rng, frames, codes = np.random.default_rng((seed, 3)), loops.shape[1] // synth.HOP - 1, []
        starts = np.where(rng.random(len(loops)) < OFF_FRAME, rng.integers(synth.HOP, size=len(loops)), 0)
        for first in tqdm(range(0, len(loops), 8), "codes", disable=None):
            rows = range(first, min(first + 8, len(loops)))
            cut = np.stack([loops[row, starts[row] : starts[row] + frames * synth.HOP] for row in rows])
            codes.append(encoder(torch.from_numpy(cut).float()[:, None] / 32768).numpy().astype(np.int16))
        np.save(path, np.concatenate(codes))
    return np.load(path)


def fit(
    codes: np.ndarray, kinds: list[tuple[str, int]], texts: Texts, folder: Path, settings: Settings,
    config: LMConfig = CONFIG, frames: int = FRAMES, before: Model | None = None,
) -> Model:  # fmt: skip
    """Train on stretches of codes [N, K, T] of loops whose style and pace are `kinds`. Goes on where folder/lm.pt was
    left, or further with a model from `before` in folder/lm-further.pt.

    Every other step has sequences of `frames`, the others as many codes in shorter ones: late in a sequence a text
    adds little to the codes before. Once the model copies, short ones are a fifth as long and their first frames count
    most. In the last steps padding is not read, as if each text were alone, which most are when the model is used:
    otherwise the model learns to rely on it. A model `before` learns to keep its place, with every fourth step short.
    """
    torch.manual_seed(settings.seed)
    model = before or Model(config)
    beats = np.array([synth.TEMPI[style][pace] for style, pace in kinds])

    def loss(step: int) -> tuple[Tensor, str]:
        rng = np.random.default_rng((settings.seed, 4, step))
        clean, short = step < CLEAN * settings.steps and not before, step % (4 if before else 2) == 1
        model.attention.padding = step < PADDED * settings.steps and not before
        parts = (2 if clean else 5) if short else 1
        batch, length = settings.batch * parts, frames // parts
        rows, starts = (rng.integers(n, size=batch) for n in (len(codes), codes.shape[2] - length + 1))
        starts -= np.where(rng.random(batch) < ON_BEAT, starts % beats[rows], 0)
        known = np.stack([codes[row, :, start : start + length] for row, start in zip(rows, starts, strict=True)])
        known = torch.from_numpy(known).long()
        descriptions = [synth.describe(*kinds[int(row)], rng) for row in rows[: batch - round(NO_TEXT * batch)]]
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(known if clean else (slipped if before else spoilt)(known, rng), texts(descriptions))
        nats = cross_entropy(predicted, known)
        counts = torch.ones(length) if clean or not short else 1 / (1 + torch.arange(length) / FIRST)
        by_codebook = nats.detach().mean(dim=(0, 2))
        line = "nats by codebook " + " ".join(f"{value:.2f}" for value in by_codebook)
        return (nats * counts).mean() / counts.mean(), line

    train(model, loss, folder / ("lm-further.pt" if before else "lm.pt"), settings)
    return model.eval()
