"""Generations longer than the model was trained on, beside upstream's: the arithmetic, and the tokens."""

import json
from itertools import pairwise

import numpy as np
import pytest
from conftest import GOLDEN, NAMES

from clean_lm.musicgen import MusicGen
from clean_lm.runtime import Sampling
from clean_lm.windows import Window, windows

FRAME_RATE = 50.0
ROWS = json.loads((GOLDEN / "_windows" / "windows.json").read_text(encoding="utf-8"))
CASES = ("a", "b", "c", "d", "e", "f")


def cut(row):
    return windows(row["duration"], row["max_duration"], row["extend_stride"], FRAME_RATE, row["prompt_T"])


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
        else:
            with pytest.raises(ValueError, match=f"{row['prompt_T']} frames of a prompt.*expected more than"):
                cut(row)


def test_windows_overlap_by_what_is_known():
    found = windows(75.0, 30.0, 18.0, FRAME_RATE, 300)
    assert found[0] == Window(0, 300, 1500)
    for before, after in pairwise(found):
        assert after.start == before.start + 900
        assert after.start + after.known == before.end
    assert found[-1].end == 3750


@pytest.mark.parametrize("stride", [0.0, -1.0, 30.0, 31.0, 0.01])
def test_a_stride_that_leads_nowhere(stride):
    with pytest.raises(ValueError, match=r"extend_stride.*a frame.*less than 30 s"):
        windows(40.0, 30.0, stride, FRAME_RATE, 0)
    assert windows(30.0, 30.0, stride, FRAME_RATE, 0) == [Window(0, 0, 1500)]  # which needs none


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
