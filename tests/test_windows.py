"""Generations longer than the model was trained on, beside upstream's: the arithmetic, and the tokens."""

import json
from itertools import pairwise

import numpy as np
import pytest

from clean_lm.generation import Sampling
from clean_lm.musicgen import MusicGen
from clean_lm.windows import Window, plan, windows
from tests.support import GOLDEN, NAMES, GoldenTexts

pytestmark = [pytest.mark.parity, pytest.mark.runtime]

FRAME_RATE = 50.0
ROWS = json.loads((GOLDEN / "_windows" / "windows.json").read_text(encoding="utf-8"))
CASES = ("a", "b", "c", "d", "e", "f")


def cut(row):
    return list(windows(row["duration"], row["max_duration"], row["extend_stride"], FRAME_RATE, row["prompt_T"]))


def test_every_row_is_upstreams():
    """Where its float arithmetic loses a frame too: 17 rows are a frame short of duration x frame rate."""
    short = 0
    for row in (row for row in ROWS if "error" not in row):
        found = cut(row)
        assert [[w.known or -1, w.frames] for w in found] == row["windows"], row
        assert (found[-1].end if found else row["prompt_T"]) == row["out_T"], row
        short += row["out_T"] < row["total_gen_len"]
    assert short == 17
    assert len(ROWS) == 557


def test_what_upstream_asserts_is_refused():
    refused = [row for row in ROWS if "error" in row]
    assert len(refused) == 80
    for row in refused:
        if row["duration"] <= row["max_duration"]:  # a window that the model refuses, whose prompt is all of it
            [whole] = cut(row)
            assert whole.frames <= whole.known
            with pytest.raises(ValueError, match=r"requested .* s, but the prompt already has"):
                plan(row["duration"], row["max_duration"], row["extend_stride"], FRAME_RATE, row["prompt_T"])
        else:
            with pytest.raises(ValueError, match=r"the prompt fills a window.*expected a shorter prompt"):
                cut(row)


def test_windows_overlap_by_what_is_known():
    found = list(windows(75.0, 30.0, 18.0, FRAME_RATE, 300))
    assert found[0] == Window(0, 300, 1500)
    for before, after in pairwise(found):
        assert after.start == before.start + 900
        assert after.start + after.known == before.end
    assert found[-1].end == 3750


@pytest.mark.parametrize("stride", [0.0, -1.0, 30.0, 31.0, 0.01])
def test_a_stride_that_leads_nowhere(stride):
    with pytest.raises(ValueError, match=r"extend_stride.*a frame.*less than 30 s"):
        windows(40.0, 30.0, stride, FRAME_RATE, 0)
    assert list(windows(30.0, 30.0, stride, FRAME_RATE, 0)) == [Window(0, 0, 1500)]  # which needs none


@pytest.fixture(scope="module")
def model(music):
    opened = {}
    return lambda name: opened.setdefault(name, MusicGen.load(music(name)))


def length(said):
    return {name: said[name] for name in ("duration", "max_duration", "extend_stride")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_upstreams(golden, model, name, case):
    g = golden(name)
    said, seen = g.meta["win"][case], []
    sampling = Sampling(use_sampling=False, cfg_coef=said["cfg_coef"])
    codes = model(name).lm.generate_codes(
        g.get(f"win.{case}.prompt"),
        g.texts(said["descriptions"]),
        sampling=sampling,
        callback=lambda *done: seen.append(done),
        **length(said),
    )
    np.testing.assert_array_equal(codes, g[f"win.{case}.tokens"])
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]


def test_the_goldens_have_no_other_cases(golden):
    for name in NAMES:
        assert set(golden(name).meta["win"]) == set(CASES)


@pytest.fixture
def told(golden, model):
    """A model that is given upstream's text states, greedy, in windows of a second."""

    def load(name, **params):
        music = model(name)
        music.text = GoldenTexts(golden(name))
        music.max_duration = 1.0
        music.set_generation_params(use_sampling=False, **params)
        return music

    return load


@pytest.mark.parametrize("case", CASES)
def test_melodies_in_windows_are_upstreams(golden, told, case):
    """From the sound on: each window hears the melody further, from its start again where it has ended."""
    g = golden("melody")
    said = g.meta["win"][case]
    music = told("melody", duration=said["duration"], extend_stride=said["extend_stride"])
    wavs = said["wav"] and [g["chroma.wav"][0] if wav else None for wav in said["wav"]]
    heard = music._wavs(said["descriptions"], wavs, 32_000, None) if wavs else None
    generation = music._begin(said["descriptions"], None, 1, g.get(f"win.{case}.prompt"), heard)
    for _ in generation:
        pass
    np.testing.assert_array_equal(generation.codes(), g[f"win.{case}.tokens"])
    for i, window in enumerate(generation.windows):
        upstream = g.get(f"win.{case}.cond{i}.self_wav")
        if heard and upstream is not None:
            rows = heard(window.start / FRAME_RATE)
            for ours, theirs in zip(rows, upstream, strict=False):
                np.testing.assert_allclose(
                    music.lm.conditioner.null_wav if ours is None else ours, theirs, rtol=0, atol=1e-6
                )


@pytest.mark.parametrize("name", ["text", "stereo", "melody"])
def test_a_stream_of_windows(golden, told, name):
    """Heard as it goes, plain, continued and with a melody: the same sound, and nothing is held back at a seam."""
    g = golden(name)
    music = told(name, duration=2.3, extend_stride=0.6)
    prompt = 0.3 * np.random.default_rng(0).standard_normal((1, 2, 9000)).astype(np.float32)
    wavs = {"melody_wavs": [g["chroma.wav"][0]], "melody_sample_rate": 32_000} if name == "melody" else {}
    texts = [g.meta["D1"]]
    pairs = [
        (music.generate(texts), music.stream(texts, chunk_seconds=0.1)),
        (
            music.generate_continuation(prompt, 44_100, texts, **wavs),
            music.stream_continuation(prompt, 44_100, texts, chunk_seconds=0.1, **wavs),
        ),
    ]
    if wavs:
        whole = music.generate_with_chroma(texts, **wavs)
        pairs.append((whole, music.stream_with_chroma(texts, **wavs, chunk_seconds=0.1)))
        assert np.abs(whole - pairs[0][0]).max() > 1e-3 * np.abs(whole).max()
    for whole, stream in pairs:
        chunks = list(stream)
        assert {chunk.shape[2] for chunk in chunks[:-1]} == {3200}
        np.testing.assert_allclose(np.concatenate(chunks, axis=2), whole, atol=1e-4 * np.abs(whole).max())


def test_seeds_go_on_from_window_to_window(golden, model):
    """Takes in windows are what each is alone, and other draws are made in each window."""
    g, lm = golden("text"), model("text").lm
    said = g.meta["win"]["b"]
    how = {"sampling": Sampling(top_k=20), **length(said)}
    prompt = g["win.b.prompt"]
    together = lm.generate_codes(np.repeat(prompt, 2, axis=0), seed=7, **how)
    for row, seed in enumerate((7, 8)):
        np.testing.assert_array_equal(lm.generate_codes(prompt, seed=seed, **how)[0], together[row])
    assert (together[0] != together[1]).any()
    generation = lm.begin(prompt, seed=7, **how)
    assert len(generation.uniform) == generation.total == 93 + 3 * 3


def test_caches_are_a_windows_and_stay(model):
    """However long the sound: five minutes keep the memory of one window."""
    lm = model("text").lm
    generation = lm.begin(duration=300.0, max_duration=1.0, extend_stride=0.5, seed=0)
    caches = generation.decoder.caches
    assert {cache.shape[2] for cache in caches.values()} == {53}
    held = [id(cache) for cache in caches.values()]
    for done in generation:
        if done == 500:
            break
    assert [id(cache) for cache in generation.decoder.caches.values()] == held
    assert generation.frames > 200
