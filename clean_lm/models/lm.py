"""MusicGen's language model, stateless: caches are arguments and results.

    Condition     text states, mask -> keys and values for the cross-attention of every layer, once a generation
    Description   text states, mask -> what stands before the first column, in models without cross-attention
    LM            delayed columns, their position, caches -> next codes, guided logits, caches, once a step

R rows = B for null text (one row is exact), 2B with guidance: texts first, then nulls. X <= R rows, the first, attend
to a text: B of them, or none. Melody and style models have no cross-attention: a prefix of M places is read before the
first column, [melody or style | text]; with double guidance they have 3B rows: both, melody or style alone, nulls.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from clean_lm.models.config import LMConfig
from clean_lm.models.transformer import Attention, Cache, Layer, Norm, periods, sinusoid, weight


class Projection(nn.Module):
    """What a text becomes in the model's own width."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.output_proj, self.output_bias = weight(config.text_dim, config.dim), weight(config.dim)

    def project(self, text_states: Tensor, text_mask: Tensor) -> Tensor:
        """text_states [X, N, E], text_mask int64 [X, N] (all zero for null text) -> [X, N, dim]."""
        # Zeroed after the projection, which has a bias: zeroing before it is another model.
        return (text_states @ self.output_proj + self.output_bias) * text_mask[:, :, None].to(text_states.dtype)


class Description(Projection):
    """The text's part of a prefix."""

    def forward(self, text_states: Tensor, text_mask: Tensor) -> Tensor:
        """text_states [X, N, E], text_mask int64 [X, N] (all zero for null text) -> [X, N, dim]."""
        return self.project(text_states, text_mask)


class Condition(Projection):
    """What every layer's cross-attention will read of a text."""

    def __init__(self, config: LMConfig):
        super().__init__(config)
        self.heads = config.heads
        self.key_values = nn.ParameterList(weight(config.dim, 2 * config.dim) for _ in range(config.layers))

    def forward(self, text_states: Tensor, text_mask: Tensor) -> list[Cache]:
        """text_states [X, N, E], text_mask int64 [X, N] (all zero for null text) -> L x 2 x [X, H, N, D]."""
        x = self.project(text_states, text_mask)
        split = "r n (two h d) -> two r h n d"
        caches = [rearrange(x @ w, split, two=2, h=self.heads) for w in self.key_values]
        return [(kv[0], kv[1]) for kv in caches]


class LM(nn.Module):
    """One graph for prefill (S columns) and step (one column)."""

    def __init__(self, config: LMConfig, attention: Attention):
        super().__init__()
        self.config = config
        self.attention = attention
        self.period = periods(config.dim)
        self.embedding = weight(config.codebooks * (config.card + 1), config.dim)  # one table after the other
        self.layers = nn.ModuleList(
            Layer(config.dim, config.heads, config.hidden, attention, bool(config.cross)) for _ in range(config.layers)
        )
        self.out_norm = Norm(config.dim)
        self.heads = weight(config.dim, config.codebooks * config.card)

    def forward(
        self,
        codes: Tensor,
        position: Tensor,
        past: list[Cache],
        cross: list[Cache],
        uniform: Tensor,
        cfg_coef: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        prefix: Tensor | None = None,
        cfg_coef_beta: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, list[Cache]]:
        """Read columns, and choose the codes of the one after the last.

        codes int64 [R, K, S], position int64 [1]: columns already in the cache, past L x 2 x [R, H, C, D],
        cross L x 2 x [X, H, N, D] (none: no layers), uniform float32 [B, K] in [0, 1), then guidance and sampling as
        float32 [] and top_k as int64 [] -> next codes int64 [B, K], guided logits float32 [B, K, card], present caches.
        prefix [R, M, dim] is read before the columns: in a generation's first call, later M = 0.
        """
        x, present = self.read(codes, position, past, cross, prefix)
        logits = guide(self.logits(x[:, -1]).float(), uniform.shape[0], cfg_coef, cfg_coef_beta)
        return sample(logits, uniform, temperature, top_k, top_p), logits, present

    def read(
        self, codes: Tensor, position: Tensor, past: list[Cache], cross: list[Cache], prefix: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """The last layer's output for the prefix and every column [R, M + S, dim], and the present caches."""
        x = self.embed(codes, position, prefix)
        columns = self.attention.columns(position, x.shape[0], x.shape[1], past[0][0].shape[2])
        present, texts = [], cross[0][0].shape[0] if cross else 0
        for i, layer in enumerate(self.layers):
            x, cache = layer(x, past[i], cross[i] if cross else None, columns, texts)
            present.append(cache)
        return x, present

    def embed(self, codes: Tensor, position: Tensor, prefix: Tensor | None = None) -> Tensor:
        """codes [R, K, S] -> the sum of their K embeddings and of their column's sinusoid [R, S, dim].

        A prefix [R, M, dim] stands before them and has positions like columns: [R, M + S, dim].
        """
        table = torch.arange(self.config.codebooks)[:, None] * (self.config.card + 1)
        x = reduce(F.embedding(codes + table, self.embedding), "r k s d -> r s d", "sum")
        x = x if prefix is None else torch.cat([prefix, x], dim=1)
        return x + sinusoid(position + torch.arange(x.shape[1]), self.period).to(x.dtype)

    def logits(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., K, card]."""
        return rearrange(self.out_norm(x) @ self.heads, "... (k c) -> ... k c", k=self.config.codebooks)


def guide(logits: Tensor, batch: int, coef: Tensor, beta: Tensor | None = None) -> Tensor:
    """Classifier-free guidance: [R, K, card] -> [B, K, card], conditioned rows first, unconditioned rows last.

    With R = B both are the same rows and the result is exactly theirs. beta: double guidance, which pushes the text
    more than the melody or style (Rouard et al. 2024, "Audio Conditioning for Music Generation via Discrete Bottleneck
    Features", 4.3); its rows in the middle have melody or style alone. Without them it changes nothing.
    """
    cond, uncond = logits[:batch], logits[-batch:]
    if beta is not None:
        # The B rows before the last B; where there are no more than 2B, the conditioned ones.
        wav = torch.cat([cond, logits[:-batch]])[-batch:]
        cond = wav + beta * (cond - wav)
    return uncond + (cond - uncond) * coef


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Draw one code per codebook: logits [B, K, card], uniform [B, K] in [0, 1) -> int64 [B, K].

    temperature 0 is argmax; top_p > 0 goes before top_k; top_k 0 keeps all.
    """
    weights = filtered(logits, temperature, top_k, top_p)
    total = weights.cumsum(dim=-1)
    # The first code whose cumulative weight is over uniform's share of the whole. Codes in their own order, not
    # sorted: a rounding that swaps two nearly equal weights must not change the draw.
    share = uniform.clamp(max=1 - 2**-24)[..., None] * total[..., -1:]
    drawn = (total <= share).sum(dim=-1)
    return torch.where(temperature > 0, drawn, logits.argmax(dim=-1))


def filtered(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Probabilities [B, K, card], zero where top-p or top-k removes them; not renormalised."""
    probs = (logits / torch.where(temperature > 0, temperature, 1)).softmax(dim=-1)
    ranked = probs.sort(dim=-1, descending=True).values
    # top-k keeps every probability >= the k-th largest: ties stay
    card = probs.shape[-1]
    kth = ranked.index_select(-1, torch.where(top_k > 0, top_k, card).clamp(1, card)[None] - 1)
    # top-p keeps a rank where what stands before it sums to at most p; the least that is kept is its threshold
    before = ranked.cumsum(dim=-1) - ranked
    nucleus = torch.where(before <= top_p, ranked, 1).amin(dim=-1, keepdim=True)
    return torch.where(probs >= torch.where(top_p > 0, nucleus, kth), probs, 0)
