"""Live beside Hugging Face's MusicGen: random models of random sizes, greedy generation with guidance."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    T5Config,
)

from clean_lm.delay_pattern import UNKNOWN, delay, prefill_length, undelay
from clean_lm.generation import Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.models.config import LMConfig
from clean_lm.models.lm import LM, Condition
from clean_lm.models.transformer import StandardAttention
from export import verify
from export.bundle_writer import draft, write
from export.lm import CACHE_UPDATE, defaults, describe, export, write_graphs
from tests.support import ATTENTION, GOLDEN, NAMES
from tests.tiny_models import to_huggingface
from weights.checkpoint import Checkpoint, Spec
from weights.lm import load, read_config, table
from weights.mapping import Model, fill

pytestmark = pytest.mark.parity

TEXT_DIM = 10
COEF = 3.0


@dataclass(frozen=True)
class Case:
    """A random model on both sides, and what it is given."""

    theirs: MusicgenForCausalLM
    ours: Model
    projection: torch.nn.Linear
    texts: list[np.ndarray | None]
    prompt: np.ndarray
    frames: int
    negatives: list[np.ndarray | None] | None = None  # texts of the unconditional rows

    @property
    def batch(self) -> int:
        return len(self.texts)

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts, then negative texts or as many nulls, padded: [2B, N, E], [2B, N]."""
        texts = [*self.texts, *(self.negatives or [None] * self.batch)]
        longest = max((len(text) for text in texts if text is not None), default=1)
        states = torch.zeros(2 * self.batch, longest, self.ours.config.text_dim)
        mask = torch.zeros(states.shape[:2], dtype=torch.int64)
        for row, text in enumerate(texts):
            if text is not None:
                states[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text), 1
        return states, mask

    @torch.inference_mode()
    def generated(self) -> np.ndarray:
        """Their greedy generation, from projected states: they mask no padding either when they are given no mask."""
        states, mask = self.states()
        hidden = self.projection(states) * mask[:, :, None]
        start = torch.full((self.batch * self.ours.config.codebooks, 1), self.ours.config.card)
        ids = torch.cat([start, torch.from_numpy(self.prompt).flatten(0, 1)], dim=1)
        return self.theirs.generate(  # pyright: ignore[reportCallIssue, reportReturnType]
            ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=hidden,
            do_sample=False,
            guidance_scale=COEF,
            max_length=self.frames + max(self.ours.config.delays) + 1,
            decoder_start_token_id=self.ours.config.card,
            num_return_sequences=1,
            use_cache=False,  # every step reads all columns again: their cached steps differ from their own forward
        ).numpy()


@st.composite
def cases(draw: st.DrawFn, channels: int | None = None) -> Case:
    heads, head_dim = draw(st.integers(1, 4)), draw(st.sampled_from([4, 6, 8, 10, 16]))
    channels = channels or draw(st.sampled_from([1, 2]))
    codebooks = channels * draw(st.integers(1, 4))
    layers, card = draw(st.integers(1, 3)), draw(st.integers(8, 40))
    batch, lengths = draw(st.integers(1, 3)), st.one_of(st.none(), st.integers(1, 6))
    frames = draw(st.integers(2 * codebooks, 2 * codebooks + 8))
    known = draw(st.sampled_from([0, 1, frames // 2, frames - 1]))
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))

    config = MusicgenDecoderConfig(
        vocab_size=card, max_position_embeddings=64, num_hidden_layers=layers, num_attention_heads=heads,
        hidden_size=heads * head_dim, ffn_dim=2 * heads * head_dim, num_codebooks=codebooks, audio_channels=channels,
        activation_function="gelu", dropout=0.0, pad_token_id=card, bos_token_id=card, eos_token_id=None,
    )  # fmt: skip
    theirs = MusicgenForCausalLM(config).eval()
    projection = torch.nn.Linear(TEXT_DIM, config.hidden_size)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    texts = [draw(lengths) for _ in range(batch)]
    negatives = [draw(lengths) for _ in range(batch)] if draw(st.booleans()) else []
    states, negative = (
        [None if n is None else torch.randn(n, TEXT_DIM).numpy() for n in part] for part in (texts, negatives)
    )
    prompt = torch.randint(0, card, (batch, codebooks, known)).numpy()
    return Case(theirs, mapped(theirs, projection), projection, states, prompt, frames, negative or None)


def mapped(theirs: MusicgenForCausalLM, projection: torch.nn.Linear) -> Model:
    """Our model from their weights, by the table that their files go through."""
    tensors = {f"decoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    tensors |= {f"enc_to_dec_proj.{name}": tensor for name, tensor in projection.state_dict().items()}
    tree = {
        "decoder": theirs.config.to_dict(),
        "text_encoder": {"d_model": TEXT_DIM, "_name_or_path": "t5-tiny"},
        "audio_encoder": {"sampling_rate": 32_000, "upsampling_ratios": [8, 5, 4, 4]},
        "generation_config": {"max_length": 1500},
    }
    specs = {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    checkpoint = Checkpoint(Path("live"), "huggingface", tree, specs, lambda: tensors.__getitem__)
    config = read_config(checkpoint)
    return Model(checkpoint, config, table(checkpoint, config))


@torch.inference_mode()
def greedy(case: Case) -> np.ndarray:
    """Our modules in PyTorch. Cases in which two codes are as good as equal are left out."""
    c = case.ours.config
    lm, condition = LM(c, StandardAttention()), Condition(c)
    fill(lm, case.ours.weights("lm"))
    cross = fill(condition, case.ours.weights("condition"))(*case.states())
    empty = torch.zeros(2 * case.batch, c.heads, 0, c.head_dim)
    columns = delay(case.prompt, c.delays, case.frames, c.special_token)
    for s in range(prefill_length(case.prompt.shape[2], c.delays), columns.shape[2]):
        codes = torch.from_numpy(np.concatenate([columns[:, :, :s]] * 2))
        draws, zero = torch.zeros(case.batch, c.codebooks), torch.tensor(0.0)
        drawn, logits, _ = lm(
            codes,
            torch.tensor([0]),
            [(empty, empty)] * c.layers,
            cross,
            draws,
            torch.tensor(COEF),
            zero,
            zero.long(),
            zero,
        )
        best = logits.topk(2).values
        unknown = columns[:, :, s] == UNKNOWN
        assume(((best[..., 0] - best[..., 1]).numpy()[unknown] > 1e-4 * float(logits.abs().max())).all())
        columns[:, :, s] = np.where(unknown, drawn.numpy(), columns[:, :, s])
    return undelay(columns, c.delays)


LIVE = settings(
    deadline=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
    derandomize=True,
)


@settings(LIVE, max_examples=30)
@given(cases())
def test_pytorch(case):
    np.testing.assert_array_equal(greedy(case), case.generated())


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("attention", ATTENTION)
@settings(LIVE, max_examples=2)
@given(st.data())
def test_onnx_runtime(attention, channels, data):
    case = data.draw(cases(channels))
    tokens = greedy(case)
    np.testing.assert_array_equal(tokens, case.generated())
    folder = Path(tempfile.mkdtemp())
    try:
        write_graphs(case.ours, folder, attention, torch.float32)
        c = case.ours.config
        write(draft(folder, describe(c), defaults(c), CACHE_UPDATE[attention], ["lm_inference", "lm_condition"]))
        sampling = Sampling(use_sampling=False, cfg_coef=COEF)
        ours = LanguageModel.load(folder).generate_codes(
            case.prompt, case.texts, frames=case.frames, sampling=sampling, negative_states=case.negatives
        )
    finally:
        shutil.rmtree(folder)
    np.testing.assert_array_equal(ours, tokens)


def saved(name: str, c: LMConfig, folder: Path) -> MusicgenForConditionalGeneration:
    """A golden checkpoint as transformers' own model, and the folder that it saves."""
    decoder = MusicgenDecoderConfig(
        vocab_size=c.card, num_hidden_layers=c.layers, num_attention_heads=c.heads, hidden_size=c.dim,
        ffn_dim=c.hidden, num_codebooks=c.codebooks, audio_channels=c.channels, activation_function="gelu",
        dropout=0.0, pad_token_id=c.card, bos_token_id=c.card, eos_token_id=None,
    )  # fmt: skip
    text = T5Config(d_model=c.text_dim, num_layers=1, num_heads=1, d_kv=8, d_ff=8, vocab_size=8)
    sound = EncodecConfig(sampling_rate=c.sample_rate, num_filters=2, hidden_size=8, codebook_dim=8)
    model = MusicgenForConditionalGeneration(MusicgenConfig(text_encoder=text, audio_encoder=sound, decoder=decoder))
    state = torch.load(GOLDEN / name / "state_dict.bin", weights_only=True)["best_state"]
    left = model.load_state_dict(to_huggingface(state), strict=False, assign=True)
    assert not left.unexpected_keys
    assert not [key for key in left.missing_keys if not key.startswith(("text_encoder.", "audio_encoder."))]
    model.generation_config.max_length = round(c.max_duration * 50)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_tokens_from_both_files(name, golden, tmp_path):
    """audiocraft's file makes upstream's tokens, as others of these tests have it; transformers' file makes them too,
    in ONNX Runtime and in transformers."""
    theirs = saved(name, load(GOLDEN / name).config, tmp_path / "model")
    export(tmp_path / "model", tmp_path / "bundle", max_duration=load(GOLDEN / name).config.max_duration)
    assert verify.golden(tmp_path / "bundle", GOLDEN / name)[1] == []
    g, ours = golden(name), load(tmp_path / "model")
    assert ours.config.delays == load(GOLDEN / name).config.delays
    decoder, projection = theirs.decoder.float(), theirs.enc_to_dec_proj.float()
    compared = 0
    for case, said in g.meta["gen"].items():
        tokens, texts = g[f"gen.{case}.tokens"], g.texts(said["descriptions"])
        delayed = tokens.shape[2] > max(ours.config.delays)  # transformers lays no delays in what is shorter
        if delayed and said["kwargs"].get("cfg_coef", COEF) == COEF:
            prompt = g.arrays.get(f"gen.{case}.prompt", tokens[:, :, :0])
            made = Case(decoder, ours, projection, texts, prompt, tokens.shape[2]).generated()
            np.testing.assert_array_equal(made, tokens, case)
            compared += 1
    assert compared > 5
