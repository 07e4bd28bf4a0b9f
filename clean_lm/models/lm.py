"""MusicGen's language model, stateless: caches are arguments and results.

MusicGen is a transformer that writes audio as codes. A codec turns every frame of audio into K codes, one of each of
its codebooks; the model predicts frame after frame. Codebook k lags by its delay, so that a column of the model's input
holds codes of several frames (the delay pattern: clean_lm/delay_pattern.py), and one step predicts all K codes of the
next column at once:

    column        0  1  2  3  4          embedding of a column: the sum of its K codes' vectors and a sinusoid
    codebook 0    .  a0 a1 a2 a3         logits: K heads on the last layer
    codebook 1    .  .  b0 b1 b2         .: the special token, an empty place

Text conditions it. The text encoder's states go through a projection, then

    Condition     keys and values for the cross-attention of every layer: most models, computed once a generation
    Description   a prefix, prepended to the columns: melody and style models, which have no cross-attention. Theirs
                  has M places: [melody or style | text]
    LM            delayed columns, their position, caches (and a prefix) -> next codes, guided logits, caches

The cache holds each layer's keys and values of the columns (and prefix) so far. The first call reads the prefix and all
S columns of a prompt (prefill), each later one a single column (step): the same graph.

Classifier-free guidance runs the model with the text and without it and extrapolates from one result to the other, see
`guide`. Both passes are rows of one batch. For B takes there are R rows:

    no text             R = B     unconditional
    guidance            R = 2B    conditioned | unconditional
    double guidance     R = 3B    conditioned by both | by melody or style alone | unconditional

Cross-attention runs for the first X of them, those with a text: X = B, or 0. Reading no text adds exactly zero, so the
other rows skip it, and without a text the conditioned pass equals the unconditional one: R = B is enough.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from clean_lm.models.config import LMConfig
from clean_lm.models.transformer import Attention, Cache, Layer, Norm, periods, sinusoid, weight


class Projection(nn.Module):
    """The text projection: the text encoder's width -> the model's."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.output_proj, self.output_bias = weight(config.text_dim, config.dim), weight(config.dim)

    def project(self, text_states: Tensor, text_mask: Tensor) -> Tensor:
        """text_states [X, N, E], text_mask int64 [X, N] (all zero for null text) -> [X, N, dim]."""
        # The mask comes after the projection, which has a bias: before it, padding would not be zero.
        return (text_states @ self.output_proj + self.output_bias) * text_mask[:, :, None].to(text_states.dtype)


class Description(Projection):
    """The text as part of a prefix, in models without cross-attention."""

    def forward(self, text_states: Tensor, text_mask: Tensor) -> Tensor:
        """text_states [X, N, E], text_mask int64 [X, N] (all zero for null text) -> [X, N, dim]."""
        return self.project(text_states, text_mask)


class Condition(Projection):
    """The text as keys and values of every layer's cross-attention."""

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
    """One graph for prefill (S columns) and step (one column).

    The signature of `forward` is long because it is the graph's: its arguments are lm_inference.onnx's inputs.
    """

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
        """Read columns, and sample the codes of the next.

        codes int64 [R, K, S], position int64 [1]: columns already in the cache, past L x 2 x [R, H, C, D],
        cross L x 2 x [X, H, N, D] (empty without cross-attention), uniform float32 [B, K] in [0, 1), then guidance and
        sampling as float32 [] and top_k as int64 []; prefix [R, M, dim] comes before the columns: in a generation's
        first call, later M = 0.

        Returns the next codes int64 [B, K], guided logits float32 [B, K, card], present caches.
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

        A prefix [R, M, dim] is prepended and takes up positions like columns: [R, M + S, dim].
        """
        table = torch.arange(self.config.codebooks)[:, None] * (self.config.card + 1)
        x = reduce(F.embedding(codes + table, self.embedding), "r k s d -> r s d", "sum")
        x = x if prefix is None else torch.cat([prefix, x], dim=1)
        return x + sinusoid(position + torch.arange(x.shape[1]), self.period).to(x.dtype)

    def logits(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., K, card]."""
        return rearrange(self.out_norm(x) @ self.heads, "... (k c) -> ... k c", k=self.config.codebooks)


def guide(logits: Tensor, batch: int, coef: Tensor, beta: Tensor | None = None) -> Tensor:
    """Classifier-free guidance: [R, K, card] -> [B, K, card], conditioned rows first, unconditional rows last.

    With R = B both are the same rows, and the result is exactly theirs. beta: double guidance, which weighs the text
    more than the melody or style (Rouard et al. 2024, "Audio Conditioning for Music Generation via Discrete Bottleneck
    Features", 4.3); the rows in the middle have melody or style alone. Without such rows it changes nothing.
    """
    cond, uncond = logits[:batch], logits[-batch:]
    if beta is not None:
        # The B rows before the last B; with 2B rows or fewer, the conditioned ones: beta cancels out.
        wav = torch.cat([cond, logits[:-batch]])[-batch:]
        cond = wav + beta * (cond - wav)
    return uncond + (cond - uncond) * coef


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Draw one code per codebook: logits [B, K, card], uniform [B, K] in [0, 1) -> int64 [B, K].

    temperature 0 is argmax; top_p > 0 goes before top_k; top_k 0 keeps all.
    """
    weights = filtered(logits, temperature, top_k, top_p)
    total = weights.cumsum(dim=-1)
    # The first code whose cumulative weight exceeds uniform x total. Codes stay in their own order: if they were
    # sorted, rounding that swaps two nearly equal weights would change the draw.
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
    # top-p keeps a rank if the ranks before it sum to at most p; the smallest probability kept is the threshold
    before = ranked.cumsum(dim=-1) - ranked
    nucleus = torch.where(before <= top_p, ranked, 1).amin(dim=-1, keepdim=True)
    return torch.where(probs >= torch.where(top_p > 0, nucleus, kth), probs, 0)
