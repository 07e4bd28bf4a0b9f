"""The PyTorch modules beside upstream's arrays, layer by layer, and sampling beside upstream's probabilities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clean_lm.delay_pattern import UNKNOWN, delay, undelay
from clean_lm.models.lm import LM, Condition, Description, filtered, guide, sample
from clean_lm.models.transformer import Cache, StandardAttention
from tests.support import NAMES, PREFIXED, Golden
from weights.lm import load
from weights.mapping import fill

pytestmark = [pytest.mark.parity, pytest.mark.models, pytest.mark.quick]

SHARE = 1e-5  # of the largest value: what float32 differs from float64 by on these models


class Model:
    """Both modules of one golden checkpoint."""

    def __init__(self, golden: Golden):
        model = load(golden.checkpoint)
        self.config = model.config
        self.lm = LM(model.config, StandardAttention())
        self.condition = Condition(model.config) if model.config.cross else Description(model.config)
        fill(self.lm, model.weights("lm"))
        fill(self.condition, model.weights("condition"))

    def cross(self, states: np.ndarray, mask: np.ndarray) -> list[Cache]:
        return self.condition(torch.from_numpy(states), torch.from_numpy(mask))

    def prefix(self, wav: np.ndarray, states: np.ndarray, mask: np.ndarray) -> Tensor:
        return torch.cat(
            [torch.from_numpy(wav), self.condition(torch.from_numpy(states), torch.from_numpy(mask))], dim=1
        )

    def caches(self, rows: int, capacity: int, value: float = 0.0) -> list[Cache]:
        shape = (rows, self.config.heads, capacity, self.config.head_dim)
        return [(torch.full(shape, value), torch.full(shape, value)) for _ in range(self.config.layers)]


@pytest.fixture(scope="module")
def model(golden):
    opened = {}
    return lambda name: opened.setdefault(name, Model(golden(name)))


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def scalars(coef: float = 3.0, temperature: float = 0.0, top_k: int = 0, top_p: float = 0.0) -> tuple[Tensor, ...]:
    return torch.tensor(coef), torch.tensor(temperature), torch.tensor(top_k), torch.tensor(top_p)


def close(ours: Tensor, upstream: np.ndarray, share: float = SHARE) -> None:
    largest = np.abs(upstream).max()
    assert ours.shape == upstream.shape
    assert (ours - torch.from_numpy(upstream)).abs().max() <= share * largest


@pytest.mark.parametrize("name", NAMES)
def test_every_layer(golden, model, name):
    g, m = golden(name), model(name)
    seq, start = torch.from_numpy(g["fw.seq"]), torch.tensor([0])
    cross = m.cross(g["t5.desc.hidden"][:1], g["t5.desc.attention_mask"][:1])
    x = m.lm.embed(seq, start)
    close(x, g["fw.hidden.in"])
    shared = m.lm.attention.columns(start, 1, seq.shape[2], 0)
    for i, layer in enumerate(m.lm.layers):
        x, _ = layer(x, m.caches(1, 0)[i], cross[i], shared, 1)
        close(x, g[f"fw.hidden.l{i}"])
    close(m.lm.out_norm(x), g["fw.hidden.outnorm"])


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_sequence(golden, model, name):
    g, m = golden(name), model(name)
    seq = torch.from_numpy(g["fw.seq"]).repeat(2, 1, 1)
    for case, logits in (("desc", g["fw.logits"]), ("none", g["fw.none.logits"])):
        cross = m.cross(g[f"t5.{case}.hidden"], g[f"t5.{case}.attention_mask"])
        x, _ = m.lm.read(seq, torch.tensor([0]), m.caches(2, 0), cross)
        close(m.lm.logits(x), logits.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("name", PREFIXED)
def test_every_layer_behind_a_prefix(golden, model, name):
    g, m = golden(name), model(name)
    seq, start = torch.from_numpy(g["fw.seq"]), torch.tensor([0])
    prefix = m.prefix(g["cond.desc.self_wav"][:1], g["t5.desc.hidden"][:1], g["t5.desc.attention_mask"][:1])
    x = m.lm.embed(seq, start, prefix)
    close(x, g["fw.hidden.in"])
    shared = m.lm.attention.columns(start, 1, x.shape[1], 0)
    for i, layer in enumerate(m.lm.layers):
        x, _ = layer(x, m.caches(1, 0)[i], None, shared, 0)
        if i == 0:
            close(x, g["fw.hidden.l0"])
    close(m.lm.out_norm(x), g["fw.hidden.outnorm"])


@pytest.mark.parametrize("name", PREFIXED)
def test_logits_of_a_sequence_behind_a_prefix(golden, model, name):
    g, m = golden(name), model(name)
    cases = (
        ("desc", "fw.seq", "fw.logits"),
        ("none", "fw.seq", "fw.none.logits"),
        ("two", "fw.two.seq", "fw.two.logits"),
    )
    for case, seq, logits in cases:
        codes = torch.from_numpy(g[seq]).repeat(2, 1, 1)
        prefix = m.prefix(g[f"cond.{case}.self_wav"], g[f"t5.{case}.hidden"], g[f"t5.{case}.attention_mask"])
        x, _ = m.lm.read(codes, torch.tensor([0]), m.caches(len(codes), 0), [], prefix)
        close(m.lm.logits(x[:, prefix.shape[1] :]), g[logits].transpose(0, 2, 1, 3))


def test_two_texts_of_different_length(golden, model):
    g, m = golden("text"), model("text")
    cross = m.cross(g["t5.two.hidden"], g["t5.two.attention_mask"])
    seq = torch.from_numpy(g["fw.two.seq"]).repeat(2, 1, 1)
    x, _ = m.lm.read(seq, torch.tensor([0]), m.caches(4, 0), cross)
    close(m.lm.logits(x), g["fw.two.logits"].transpose(0, 2, 1, 3))


def test_padding_is_part_of_the_model(golden, model):
    """The shorter of two texts has other logits alone than padded to the longer: nothing masks the zero keys."""
    g, m = golden("text"), model("text")
    states, mask = g["t5.two.hidden"][1:2], g["t5.two.attention_mask"][1:2]
    length = int(mask.sum())
    assert length < mask.shape[1]
    seq = torch.from_numpy(g["fw.two.seq"][1:])
    padded, alone = (
        m.lm.logits(m.lm.read(seq, torch.tensor([0]), m.caches(1, 0), m.cross(states[:, :n], mask[:, :n]))[0])
        for n in (mask.shape[1], length)
    )
    assert (padded - alone).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_1503_columns(golden, model, name):
    g, m = golden(name), model(name)
    cross = m.cross(g["t5.desc.hidden"][:1], g["t5.desc.attention_mask"][:1])
    x, _ = m.lm.read(torch.from_numpy(g["long.seq"]).long(), torch.tensor([0]), m.caches(1, 0), cross)
    close(m.lm.logits(x[:, g["long.at"]]), g["long.logits"].transpose(0, 2, 1, 3))


def test_prefill_and_steps(golden, model):
    """A prefill of 6 columns and 12 steps in caches with room to spare, which holds old values."""
    g, m = golden("text"), model("text")
    cross = m.cross(g["t5.desc.hidden"], g["t5.desc.attention_mask"])
    seq, caches = torch.from_numpy(g["fw.seq"])[:, :, :18].repeat(2, 1, 1), m.caches(2, 25, value=7.0)
    for start, end in [(0, 6), *((s, s + 1) for s in range(6, 18))]:
        columns, position = seq[:, :, start:end], torch.tensor([start])
        x, present = m.lm.read(columns, position, caches, cross)
        _, guided, _ = m.lm(columns, position, caches, cross, torch.zeros(1, 4), *scalars())
        for cache, fresh in zip(caches, present, strict=True):
            cache[0][:, :, start:end], cache[1][:, :, start:end] = fresh
        close(m.lm.logits(x), g["st.logits"][:, :, start:end].transpose(0, 2, 1, 3), share=2e-5)
        close(guided, g["st.logits_cfg3"][:, :, end - 1], share=2e-5)


@pytest.mark.parametrize("case", ["desc", "none_p17", "p29of30", "len1"])
def test_greedy_generation(golden, model, case):
    """The loop in PyTorch alone, without a cache: each step reads all columns again."""
    g, m = golden("text"), model("text")
    tokens, prompt = g[f"gen.{case}.tokens"], g.get(f"gen.{case}.prompt")
    prompt = tokens[:, :, :0] if prompt is None else prompt
    text = "none" if case.startswith("none") else "desc"
    cross = m.cross(g[f"t5.{text}.hidden"], g[f"t5.{text}.attention_mask"])
    columns = delay(prompt, m.config.delays, tokens.shape[2], m.config.special_token)
    for s in range(prompt.shape[2] + 1, columns.shape[2]):
        codes = torch.from_numpy(np.concatenate([columns[:, :, :s]] * 2))
        drawn, _, _ = m.lm(codes, torch.tensor([0]), m.caches(2, 0), cross, torch.zeros(1, 4), *scalars())
        columns[:, :, s] = np.where(columns[:, :, s] == UNKNOWN, drawn.numpy(), columns[:, :, s])
    np.testing.assert_array_equal(undelay(columns, m.config.delays), tokens)


def test_double_guidance():
    """The formula of its paper, and plain guidance where no rows stand in the middle."""
    both, wav, null = torch.randn(3, 2, 4, 9, generator=torch.Generator().manual_seed(0)).double()
    coef, beta = torch.tensor(3.0), torch.tensor(5.0)
    close_to = lambda x, y: torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)  # noqa: E731
    double = guide(torch.cat([both, wav, null]), 2, coef, beta)
    close_to(double, null + coef * (wav + beta * (both - wav) - null))
    assert torch.equal(guide(torch.cat([both, null]), 2, coef, beta), guide(torch.cat([both, null]), 2, coef))
    assert torch.equal(guide(both, 2, coef, beta), both)


def test_guidance_of_equal_rows_changes_nothing():
    logits = torch.randn(3, 4, 50)
    assert torch.equal(guide(logits, 3, torch.tensor(3.0)), logits)


def test_guidance_formula():
    logits = torch.randn(4, 2, 5)
    expected = logits[2:] + (logits[:2] - logits[2:]) * 2.5
    torch.testing.assert_close(guide(logits, 2, torch.tensor(2.5)), expected)


@pytest.mark.parametrize("case", range(5))
def test_probabilities_are_upstreams(golden, case):
    g = golden("text")
    temperature, top_k, top_p = g[f"samp.{case}.params"].tolist()
    _, *settings = scalars(3.0, temperature, int(top_k), top_p)
    kept = filtered(torch.from_numpy(g["samp.logits"]), *settings)
    ours = kept / kept.sum(dim=-1, keepdim=True)
    np.testing.assert_allclose(ours, g[f"samp.{case}.probs"], atol=2e-7)
    assert ((ours > 0).numpy() == (g[f"samp.{case}.probs"] > 0)).all()


def kept_codes(logits: list[float], top_k: int = 0, top_p: float = 0.0) -> list[int]:
    _, *settings = scalars(3.0, 1.0, top_k, top_p)
    return filtered(torch.tensor([[logits]]), *settings)[0, 0].nonzero()[:, 0].tolist()


def test_top_k_keeps_ties():
    assert kept_codes([1, 3, 2, 2, 2, 0], top_k=2) == [1, 2, 3, 4]
    assert kept_codes([1, 3, 2, 2, 2, 0], top_k=1) == [1]


@pytest.mark.parametrize("top_k", [0, 6, 7, 1000])
def test_top_k_beyond_the_card_keeps_all(top_k):
    assert kept_codes([1, 3, 2, 2, 2, 0], top_k=top_k) == [0, 1, 2, 3, 4, 5]


def test_top_p():
    logits = np.log([0.1, 0.4, 0.3, 0.2]).tolist()
    assert kept_codes(logits, top_p=0.35) == [1]
    assert kept_codes(logits, top_p=0.5) == [1, 2]  # a code stays where those before it sum to at most p
    assert kept_codes(logits, top_p=0.75) == [1, 2, 3]
    assert kept_codes(logits, top_p=1.0) == [0, 1, 2, 3]
    assert kept_codes(logits, top_k=1, top_p=0.5) == [1, 2]  # top_p goes before top_k


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    st.sampled_from([0, 1, 5, 250]),
    st.sampled_from([0.0, 0.2, 0.95]),
)
def test_draws_are_kept_codes(seed, temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 40, generator=generator) * 4
    uniform = torch.rand(3, 4, generator=generator)
    uniform[0] = torch.tensor([0.0, 1 - 2**-24, 1 - 2**-24, 0.0])
    _, *settings = scalars(3.0, temperature, top_k, top_p)
    drawn = sample(logits, uniform, *settings)
    if temperature == 0:
        assert torch.equal(drawn, logits.argmax(-1))
    else:
        assert (filtered(logits, *settings).gather(-1, drawn[..., None]) > 0).all()


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.1, 0.0, 0.5, 0.25, 0.15]).log().expand(1, 20_000, 5)
    uniform = (torch.arange(20_000)[None] + 0.5) / 20_000
    counts = torch.bincount(sample(logits, uniform, *scalars(3.0, 1.0)[1:]).flatten(), minlength=5)
    np.testing.assert_allclose(counts / 20_000, [0.1, 0.0, 0.5, 0.25, 0.15], atol=2e-4)
