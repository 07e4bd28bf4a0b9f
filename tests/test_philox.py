"""The generator beside the published test vectors, and what seeds mean."""

import numpy as np
import pytest

from clean_lm.philox import philox4x32, uniforms

pytestmark = [pytest.mark.runtime, pytest.mark.quick]

# Random123's known-answer vectors for philox4x32-10: counter, key, output.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_published_vectors(counter, key, output):
    k0, k1 = words(key)
    assert philox4x32(np.array([words(counter)], dtype=np.uint64), (k0, k1)).tolist() == [words(output)]


def test_draws_are_laid_out_as_documented():
    draws = uniforms(seed=7 + (5 << 32), steps=3, codebooks=6)
    block = philox4x32(np.array([[2, 1, 0, 0]], dtype=np.uint64), (7, 5))[0]
    assert draws[2, 4] == (int(block[0]) >> 8) * 2.0**-24
    assert draws[2, 5] == (int(block[1]) >> 8) * 2.0**-24


def test_draws_are_uniform_and_do_not_depend_on_their_number():
    draws = uniforms(seed=1, steps=20_000, codebooks=4)
    assert draws.dtype == np.float32
    assert 0 <= draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    counts = np.histogram(draws, bins=64, range=(0, 1))[0]
    assert ((counts - 1250) ** 2 / 1250).sum() < 120  # chi-square, 63 degrees of freedom
    np.testing.assert_array_equal(draws[:10], uniforms(seed=1, steps=10, codebooks=4))
    assert abs(np.corrcoef(draws.ravel(), uniforms(2, 20_000, 4).ravel())[0, 1]) < 0.02
