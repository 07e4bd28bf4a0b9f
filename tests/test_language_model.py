"""Whole generations through ONNX Runtime beside upstream's, and what the runtime refuses."""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from clean_lm.conditioning import Conditioning
from clean_lm.delay_pattern import delay, prefill_length
from clean_lm.generation import Decoder, Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError
from clean_lm.manifest_checks import model_sha256
from clean_lm.philox import uniforms
from tests.support import ATTENTION, NAMES, PREFIXED, feed

pytestmark = [pytest.mark.parity, pytest.mark.runtime]

GREEDY = Sampling(use_sampling=False)
CASES = ("desc", "desc_p17", "none", "none_p17", "two", "mixed_p9", "twostep", "coef1", "p1", "p29of30", "len1")
PREFIX_CASES = (*CASES, "textonly", "wavonly", "dbl_beta5", "dbl_beta5_p17")
TOLERANCE = 5e-5  # of upstream's largest logit


def case_of(golden, name, case):
    """What a generation of upstream's was given: prompt, text states, sampling, and its tokens."""
    g = golden(name)
    said = g.meta["gen"][case]
    given = {key: value for key, value in said["kwargs"].items() if key != "max_gen_len"}
    sampling = Sampling(use_sampling=False, **given)
    return g.get(f"gen.{case}.prompt"), g.texts(said["descriptions"]), sampling, g[f"gen.{case}.tokens"]


def test_the_goldens_have_no_other_cases(golden):
    for name in NAMES:
        assert set(golden(name).meta["gen"]) == set(CASES)
    for name in PREFIXED:
        assert set(golden(name).meta["gen"]) == set(PREFIX_CASES)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_upstreams(golden, language_model, name, attention, case):
    prompt, texts, sampling, tokens = case_of(golden, name, case)
    lm = language_model(name, attention)
    ours = lm.generate_codes(prompt, texts, frames=tokens.shape[2], sampling=sampling)
    np.testing.assert_array_equal(ours, tokens)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["desc", "none_p17", "two"])
def test_logits_of_every_step_are_upstreams(golden, language_model, name, attention, case):
    prompt, texts, sampling, tokens = case_of(golden, name, case)
    lm, upstream = language_model(name, attention), golden(name)[f"gen.{case}.step_logits"]
    columns = delay(tokens, lm.delays, tokens.shape[2], lm.special_token)
    prefill = prefill_length(0 if prompt is None else prompt.shape[2], lm.delays)
    decoder = lm.decoder(len(tokens), columns.shape[2], texts, sampling)
    largest = np.abs(upstream).max()
    for i, end in enumerate(range(prefill, columns.shape[2])):
        feed(decoder, columns[:, :, decoder.columns : end], np.zeros(columns.shape[:2]))
        assert np.abs(decoder.logits - upstream[i]).max() <= TOLERANCE * largest, f"call {i}"


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", PREFIXED)
@pytest.mark.parametrize("case", PREFIX_CASES)
def test_greedy_tokens_behind_a_prefix_are_upstreams(golden, language_model, name, attention, case):
    """Of melody and style models, from what their conditioner gives on."""
    prompt, texts, sampling, tokens = case_of(golden, name, case)
    lm, wavs = language_model(name, attention), wavs_of(golden(name), case)
    codes = lm.generate_codes(prompt, texts, wavs and (lambda _: wavs), frames=tokens.shape[2], sampling=sampling)
    np.testing.assert_array_equal(codes, tokens)


def wavs_of(g, case):
    """What stands before the text in a case."""
    said = g.meta["gen"][case]["wav"]
    return said and [g["cond.desc.self_wav"][0] if wav else None for wav in said]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", PREFIXED)
@pytest.mark.parametrize("case", ["desc", "none_p17", "two", "dbl_beta5"])
def test_logits_behind_a_prefix_are_upstreams(golden, language_model, name, attention, case):
    prompt, texts, sampling, tokens = case_of(golden, name, case)
    lm, g = language_model(name, attention), golden(name)
    upstream = g[f"gen.{case}.step_logits"]
    columns = delay(tokens, lm.delays, tokens.shape[2], lm.special_token)
    prefill = prefill_length(0 if prompt is None else prompt.shape[2], lm.delays)
    decoder = lm.decoder(len(tokens), columns.shape[2], texts, sampling, wavs_of(g, case))
    for i, end in enumerate(range(prefill, columns.shape[2])):
        feed(decoder, columns[:, :, decoder.columns : end], np.zeros(columns.shape[:2]))
        assert np.abs(decoder.logits - upstream[i]).max() <= TOLERANCE * np.abs(upstream).max(), f"call {i}"


@pytest.mark.parametrize("name", PREFIXED)
def test_1503_columns_behind_a_prefix(golden, language_model, name):
    """Positions count it: the last column of a melody model's 30 s is at place 1745."""
    g, lm = golden(name), language_model(name)
    columns, at, upstream = g["long.seq"].astype(np.int64), g["long.at"].tolist(), g["long.logits"]
    sampling = Sampling(use_sampling=False, cfg_coef=1.0)
    decoder = lm.decoder(1, columns.shape[2], g.texts([g.meta["D1"]]), sampling, [g["cond.desc.self_wav"][0]])
    for start, end in [(0, 400), *((s, s + 1) for s in range(400, columns.shape[2]))]:
        feed(decoder, columns[:, :, start:end], np.zeros(columns.shape[:2]))
        if end - 1 in at:
            difference = np.abs(decoder.logits - upstream[:, :, at.index(end - 1)]).max()
            assert difference <= TOLERANCE * np.abs(upstream).max(), f"column {end - 1}"


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("case", ["desc", "desc_p17", "dbl_beta5_p17"])
def test_takes_share_what_stands_before_them(golden, language_model, monkeypatch, attention, case):
    """The prefix too is read once, and each take is what it is alone."""
    g, lm = golden("melody"), language_model("melody", attention)
    prompt, texts, sampling, _ = case_of(golden, "melody", case)
    sampling, wav = replace(sampling, use_sampling=True, top_k=20), wavs_of(g, case)
    alone = [
        lm.generate_codes(prompt, texts, lambda _: wav, frames=30, sampling=sampling, seed=seed) for seed in (7, 8, 9)
    ]
    reads: list[tuple[int, int]] = []
    bind = Decoder._bind
    monkeypatch.setattr(Decoder, "_bind", lambda d, feeds: reads.append(feeds["prefix"].shape[:2]) or bind(d, feeds))
    together = lm.generate_codes(prompt, texts, lambda _: wav, frames=30, sampling=sampling, seed=7, takes=3)
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert [rows for rows, places in reads if places] == [2 if sampling.cfg_coef_beta is None else 3]


def test_a_row_without_conditions_is_one_row(golden, language_model):
    """As upstream's two: silence is a melody, and a style is zeros, in both rows."""
    for name in PREFIXED:
        g, lm = golden(name), language_model(name)
        decoder = lm.decoder(1, 5, None, GREEDY)
        assert (decoder.batch, decoder.passes) == (1, 1)
        conditioning = lm.conditioner([None], None, GREEDY.guidance)
        np.testing.assert_allclose(conditioning.prefix[:, :-1], g["cond.none.self_wav"][:1], rtol=0, atol=1e-6)
        assert (conditioning.prefix[:, -1] == 0).all()


def test_two_step_sampling_is_the_graphs(language_model):
    """Where guidance does not matter, two calls and one draw the same."""
    lm = language_model("melody")
    settings = [Sampling(), Sampling(top_k=5), Sampling(top_k=0, top_p=0.8), Sampling(top_k=0, temperature=0.7)]
    for sampling in settings:
        drawn = [
            lm.generate_codes(None, None, frames=40, sampling=replace(sampling, two_step_cfg=two_step), seed=3)
            for two_step in (False, True)
        ]
        np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", NAMES)
def test_1503_columns(golden, language_model, name, attention):
    """Teacher-forced to the end of a 30 s window: at once up to 400, then a column at a time."""
    g, lm = golden(name), language_model(name, attention)
    columns, texts = g["long.seq"].astype(np.int64), g.texts([g.meta["D1"]])
    decoder = lm.decoder(1, columns.shape[2], texts, Sampling(use_sampling=False, cfg_coef=1.0))
    at, upstream = g["long.at"].tolist(), g["long.logits"]
    for start, end in [(0, 400), *((s, s + 1) for s in range(400, columns.shape[2]))]:
        feed(decoder, columns[:, :, start:end], np.zeros(columns.shape[:2]))
        if end - 1 in at:
            difference = np.abs(decoder.logits - upstream[:, :, at.index(end - 1)]).max()
            assert difference <= TOLERANCE * np.abs(upstream).max(), f"column {end - 1}"


@pytest.mark.parametrize("attention", ATTENTION)
def test_only_columns_before_position_are_read(golden, language_model, attention):
    """Whatever an earlier generation left in the caches, and however large they are, changes nothing."""
    _, texts, sampling, tokens = case_of(golden, "text", "two")
    lm = language_model("text", attention)
    logits = []
    for capacity, left in ((40, 0.0), (40, 1e4), (333, -1e4)):
        decoder = lm.decoder(2, capacity, texts, sampling)
        for cache in decoder.caches.values():
            cache[...] = left
        columns = delay(tokens, lm.delays, 30, lm.special_token)
        feed(decoder, columns[:, :, :7], np.zeros((2, 4)))
        feed(decoder, columns[:, :, 7:8], np.zeros((2, 4)))
        feed(decoder, columns[:, :, 8:9], np.zeros((2, 4)))
        logits.append(decoder.logits.copy())
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)
    np.testing.assert_allclose(logits[2], logits[0], atol=1e-4)


@pytest.mark.parametrize("attention", ATTENTION)
def test_caches_are_bound_once(golden, language_model, attention):
    _, texts, sampling, _ = case_of(golden, "text", "two")
    decoder = language_model("text", attention).decoder(2, 40, texts, sampling)
    feed(decoder, np.full((2, 4, 3), 5), np.zeros((2, 4)))
    filled = next(iter(decoder.caches.values()))
    assert (filled[:, :, :3] != 0).any()
    assert (filled[:, :, 3:] == 0).all()


@pytest.mark.parametrize("attention", ATTENTION)
def test_null_text_is_one_row(golden, language_model, attention):
    """As upstream's two rows, through the text graph, and without any text."""
    lm = language_model("text", attention)
    decoder = lm.decoder(1, 5, None, GREEDY)
    assert (decoder.batch, decoder.passes) == (1, 1)
    codes, draws = np.full((1, 4, 4), 64), np.zeros((1, 4))
    feed(decoder, codes, draws)
    null_texts = lm.conditioner.project([None, None])
    assert all((array == 0).all() for array in null_texts.values())
    np.testing.assert_array_equal(null_texts["cross_key_values.0.key"].shape, (2, 4, 1, 16))
    full = Decoder(lm.lm, lm.in_place, Conditioning(1, 2, null_texts, None), 5, GREEDY)
    feed(full, codes, draws)
    np.testing.assert_allclose(decoder.logits, full.logits, rtol=0, atol=1e-6 * np.abs(full.logits).max())


def test_sampling_repeats_and_does_not_depend_on_the_batch(golden, language_model):
    g, lm = golden("text"), language_model("text")
    texts = g.texts([g.meta["D1"], g.meta["D1"], g.meta["D1"]])
    sampling = Sampling(top_k=20, temperature=1.2)
    together = lm.generate_codes(None, texts, frames=25, sampling=sampling, seed=7)
    np.testing.assert_array_equal(together, lm.generate_codes(None, texts, frames=25, sampling=sampling, seed=7))
    for row, seed in enumerate((7, 8, 9)):
        alone = lm.generate_codes(None, texts[:1], frames=25, sampling=sampling, seed=seed)
        np.testing.assert_array_equal(alone[0], together[row])
    assert (together[0] != together[1]).any()
    draws = np.stack([uniforms(seed, 28, 4) for seed in (9, 7)], axis=1)
    split = lm.generate_codes(None, texts[:2], frames=25, sampling=sampling, uniform=draws)
    np.testing.assert_array_equal(split, together[[2, 0]])
    listed = lm.generate_codes(None, texts[:2], frames=25, sampling=sampling, seed=[9, 7])
    np.testing.assert_array_equal(split, listed)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=5), Sampling(top_k=0, top_p=0.8), Sampling(top_k=0)])
def test_both_lowerings_draw_the_same(golden, language_model, sampling):
    g = golden("text")
    drawn = [
        language_model("text", attention).generate_codes(
            g["gen.desc_p17.prompt"], g.texts([g.meta["D1"]]), frames=40, sampling=sampling, seed=3
        )
        for attention in ATTENTION
    ]
    np.testing.assert_array_equal(*drawn)
    assert ((drawn[0] >= 0) & (drawn[0] < 64)).all()


def test_top_p_goes_before_top_k(language_model):
    """And so needs all probabilities sorted, though top_k asks for few of them."""
    lm, few = language_model("text"), {"frames": 40, "seed": 3}
    nucleus = lm.generate_codes(**few, sampling=Sampling(top_k=0, top_p=0.9))
    np.testing.assert_array_equal(lm.generate_codes(**few, sampling=Sampling(top_k=2, top_p=0.9)), nucleus)
    assert (lm.generate_codes(**few, sampling=Sampling(top_k=2)) != nucleus).any()


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("text", [False, True])
def test_takes_of_one_prompt_read_it_once(golden, language_model, monkeypatch, attention, text):
    """And are what each of them is alone."""
    g, lm = golden("text"), language_model("text", attention)
    prompt, texts = g["gen.desc_p17.prompt"], g.texts([g.meta["D1"]]) if text else None
    sampling = Sampling(top_k=20)
    alone = [lm.generate_codes(prompt, texts, frames=40, sampling=sampling, seed=seed) for seed in (7, 8, 9)]
    prefills: list[tuple[int, ...]] = []
    bind = Decoder._bind
    monkeypatch.setattr(Decoder, "_bind", lambda d, feeds: prefills.append(feeds["codes"].shape) or bind(d, feeds))
    together = lm.generate_codes(prompt, texts, frames=40, sampling=sampling, seed=7, takes=3)
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert [shape for shape in prefills if shape[2] > 1] == [(1 + text, 4, 17)]
    many = np.repeat(prompt, 3, axis=0)
    many[1, 0, 0] ^= 1  # three prompts, one of them another: all are read
    prefills.clear()
    other = lm.generate_codes(many, texts and texts * 3, frames=40, sampling=sampling, seed=7)
    assert [shape for shape in prefills if shape[2] > 1] == [(3 + 3 * text, 4, 18)]
    np.testing.assert_array_equal(other[[0, 2]], together[[0, 2]])


@pytest.mark.parametrize("name", ["text", "melody"])
def test_takes_of_several_prompts(golden, language_model, name):
    """Each prompt's takes are rows one after the other, drawn with seed, seed + 1, ... as each of them alone."""
    g, lm = golden(name), language_model(name)
    prompts = np.random.default_rng(0).integers(0, lm.card, (2, 4, 9))
    texts, wavs = g.texts([g.meta["D1"], None]), [g["cond.desc.self_wav"][0], None] if name == "melody" else None
    how = {"frames": 25, "sampling": Sampling(top_k=20)}
    one = lambda rows: None if wavs is None else lambda _: rows  # noqa: E731
    together = lm.generate_codes(prompts, texts, one(wavs), seed=5, takes=2, **how)
    for b in range(4):  # with both prompts in a batch: a text's padding is part of the model
        alone = lm.generate_codes(prompts, texts, one(wavs), seed=[5 + b] * 2, **how)
        np.testing.assert_array_equal(alone[b // 2], together[b])


def test_without_a_seed_takes_differ(language_model):
    lm = language_model("text")
    assert (lm.generate_codes(frames=20) != lm.generate_codes(frames=20)).any()


def test_threads_on_one_session(golden, language_model):
    lm = language_model("text")
    cases = [case_of(golden, "text", case) for case in ("desc", "two", "none_p17", "mixed_p9")] * 2
    results: list[np.ndarray | None] = [None] * len(cases)

    def run(i):
        prompt, texts, sampling, tokens = cases[i]
        results[i] = lm.generate_codes(prompt, texts, frames=tokens.shape[2], sampling=sampling)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, (_, _, _, tokens) in zip(results, cases, strict=True):
        np.testing.assert_array_equal(result, tokens)


def test_progress_and_cancelling(language_model):
    lm, seen = language_model("text"), []
    lm.generate_codes(np.zeros((1, 4, 5), dtype=np.int32), frames=9, callback=lambda *done: seen.append(done))
    assert seen == [(i, 7) for i in range(1, 8)]  # 9 + 3 + 1 columns, 6 of them known

    class Cancelled(Exception):
        pass

    def cancel(done, total):
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        lm.generate_codes(frames=9, callback=cancel)
    assert lm.generate_codes(frames=9, sampling=GREEDY).shape == (1, 4, 9)


def test_the_prompt_is_never_overwritten(language_model):
    prompt = np.random.default_rng(0).integers(0, 64, (3, 4, 11))
    codes = language_model("text").generate_codes(prompt, frames=12, seed=1)
    np.testing.assert_array_equal(codes[:, :, :11], prompt)


PROMPT = np.zeros((1, 4, 5), dtype=np.int64)
STATES = np.zeros((6, 768), dtype=np.float32)
REFUSED = {
    "float codes": ({"prompt_codes": PROMPT.astype(np.float32)}, "float32.*integers"),
    "codebooks": ({"prompt_codes": PROMPT[:, :3]}, r"\[1, 3, 5\].*\[B, 4, P\]"),
    "two axes": ({"prompt_codes": PROMPT[0]}, r"\[4, 5\].*\[B, 4, P\]"),
    "special token": ({"prompt_codes": PROMPT + 64}, r"64 \.\. 64.*0 \.\. 63"),
    "negative": ({"prompt_codes": PROMPT - 1}, r"-1 \.\. -1.*0 \.\. 63"),
    "no rows": ({"prompt_codes": PROMPT[:0]}, "prompt_codes.*above 0"),
    "prompt fills all": ({"prompt_codes": PROMPT, "frames": 5}, "5 frames.*prompt already has 5"),
    "no frames": ({"frames": 0}, "0 frames"),
    "neither": ({"frames": None}, "frames or duration"),
    "both": ({"frames": 5, "duration": 1.0}, "frames or duration"),
    "unknown frame rate": ({"frames": None, "duration": 1.0}, "frame rate.*give frames"),
    "fractional frames": ({"frames": 5.5}, "frames.*5.5.*whole"),
    "text width": ({"text_states": [STATES[:, :3]]}, r"text_states\[0\].*\[6, 3\].*\[N, 768\]"),
    "empty text": ({"text_states": [STATES[:0]]}, r"text_states\[0\].*\[0, 768\]"),
    "text not finite": ({"text_states": [STATES + np.nan]}, r"text_states\[0\].*finite"),
    "rows": ({"prompt_codes": PROMPT, "text_states": [None, None]}, "prompt_codes.*1.*text_states.*2"),
    "batch": ({"batch": 0}, "batch.*0"),
    "temperature": ({"sampling": Sampling(temperature=-1)}, "temperature.*-1"),
    "nan": ({"sampling": Sampling(temperature=float("nan"))}, "temperature.*nan"),
    "top_k": ({"sampling": Sampling(top_k=-1)}, "top_k.*-1"),
    "top_p": ({"sampling": Sampling(top_p=1.5)}, r"top_p.*1\.5"),
    "cfg_coef": ({"sampling": Sampling(cfg_coef=float("inf"))}, "cfg_coef.*inf"),
    "draws' shape": ({"uniform": np.zeros((3, 1, 4), np.float32)}, r"\[3, 1, 4\].*\[12, 1, 4\]"),
    "draws of 1": ({"uniform": np.ones((12, 1, 4), np.float32)}, r"uniform.*1.*\[0, 1\)"),
    "seeds": ({"seed": [1, 2]}, "seed"),
    "negative seed": ({"seed": -1}, "seed.*-1"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_before_anything_is_generated(language_model, reason):
    arguments, message = REFUSED[reason]
    called = []
    with pytest.raises(ValueError, match=f"(?s){message}"):
        language_model("text").generate_codes(
            **{"frames": 9, "callback": lambda *done: called.append(done), **arguments}
        )
    assert not called


def test_the_caches_do_not_overflow(language_model):
    decoder = language_model("text").decoder(1, 5, None, GREEDY)
    with pytest.raises(ValueError, match="6 columns: expected 5 or fewer"):
        feed(decoder, np.full((1, 4, 6), 64), np.zeros((1, 4)))
    feed(decoder, np.full((1, 4, 4), 64), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="2 columns after the first 4: expected one at a time"):
        feed(decoder, np.full((1, 4, 2), 1), np.zeros((1, 4)))
    feed(decoder, np.full((1, 4, 1), 1), np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"5 \+ 1 columns: expected 5 or fewer"):
        feed(decoder, np.full((1, 4, 1), 1), np.zeros((1, 4)))


@pytest.fixture
def copied(bundle, tmp_path):
    return shutil.copytree(bundle("text"), tmp_path / "bundle")


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_without_a_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json.*export"):
        LanguageModel.load(tmp_path)


def test_a_manifest_that_is_not_json(copied):
    (copied / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json: not readable JSON"):
        LanguageModel.load(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version is 2.*reads 1"),
        ({"format": "other"}, "format is 'other'.*'clean_lm'"),
        ({"model": {}, "model_sha256": model_sha256({})}, "model lacks \\w+; export the bundle again"),
        ({"graphs": {}, "variants": {}, "variant": None, "backends": {}}, "contains no graph lm_inference"),
        ({"cache_update": "sideways"}, "cache_update is 'sideways', expected 'in_place' or 'new_columns'"),
    ],
)
def test_a_manifest_of_something_else(copied, changes, message):
    edit(copied, **changes)
    with pytest.raises(BundleError, match=message):
        LanguageModel.load(copied)


@pytest.mark.parametrize("name", ["lm_inference.onnx", "lm_inference.onnx.data", "lm_condition.onnx"])
def test_a_missing_file(copied, name):
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: listed in manifest.json"):
        LanguageModel.load(copied)


@pytest.mark.parametrize("name", ["lm_inference.onnx", "lm_inference.onnx.data", "lm_condition.onnx.data"])
def test_a_changed_file(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: sha256 is \w+, manifest\.json says"):
        LanguageModel.load(copied)
    (copied / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name}: {len(content) - 1} bytes, manifest.json says {len(content)}"):
        LanguageModel.load(copied, hashes=False)


def test_a_corrupted_graph(copied):
    path = copied / "lm_inference.onnx"
    path.write_bytes(b"\x00" * path.stat().st_size)
    with pytest.raises(BundleError, match=r"lm_inference\.onnx: ONNX Runtime does not load it"):
        LanguageModel.load(copied, hashes=False)


def test_never_torch(bundle):
    """A process in which importing torch fails generates all the same."""
    program = f"""
import sys
sys.modules["torch"] = None
from clean_lm.language_model import LanguageModel
codes = LanguageModel.load({str(bundle("text"))!r}).generate_codes(frames=4, seed=1)
assert codes.shape == (1, 4, 4)
heavy = {{"torch", "transformers", "onnx", "safetensors"}} & {{m for m, v in sys.modules.items() if v}}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)
