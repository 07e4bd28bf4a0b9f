"""The delay pattern, beside upstream's and on its own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clean_lm.delay_pattern import UNKNOWN, delay, prefill_length, undelay
from tests.support import NAMES

pytestmark = [pytest.mark.runtime, pytest.mark.quick]

DELAYS = st.lists(st.integers(0, 5), min_size=1, max_size=8).map(sorted)


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_upstreams(golden, name):
    g = golden(name)
    codes, delays = g["pat.codes"], g["pat.delays"].tolist()
    columns = delay(codes, delays, codes.shape[2], special=64)
    np.testing.assert_array_equal(columns, g["pat.seq"])
    np.testing.assert_array_equal(undelay(columns, delays), codes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt", [0, 1, 9, 22])
def test_prefill_ends_where_upstream_begins_to_generate(golden, name, prompt):
    g = golden(name)
    assert prefill_length(prompt, g["pat.delays"].tolist()) == g["pat.first_step"][prompt]


def test_the_drawing():
    drawn = """
        # 0 1 2 3 # # #
        # # 0 1 2 3 # #
        # # # 0 1 2 3 #
        # # # # 0 1 2 3"""
    expected = [[9 if c == "#" else int(c) for c in line.split()] for line in drawn.strip().splitlines()]
    codes = np.tile(np.arange(4), (1, 4, 1))
    np.testing.assert_array_equal(delay(codes, (0, 1, 2, 3), 4, special=9)[0], expected)


@given(DELAYS, st.integers(1, 12), st.data())
def test_any_delays(delays, frames, data):
    known = data.draw(st.integers(0, frames - 1))
    codes = np.random.default_rng(0).integers(0, 50, (2, len(delays), known))
    columns = delay(codes, delays, frames, special=50)
    back = undelay(columns, delays)
    np.testing.assert_array_equal(back[:, :, :known], codes)
    assert (back[:, :, known:] == UNKNOWN).all()
    assert (columns == UNKNOWN).sum() == 2 * len(delays) * (frames - known)
    prefill = prefill_length(known, delays)
    assert (columns[:, :, :prefill] != UNKNOWN).all()
    assert (columns[:, :, prefill] == UNKNOWN).any()
