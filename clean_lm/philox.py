"""Uniform draws that every language can repeat: Philox4x32-10, a counter-based generator of 32-bit integers.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Draw number n needs no draw before it.
"""

import numpy as np

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds: counter uint64 [n, 4] of 32-bit words, key of two 32-bit words -> uint64 [n, 4] of 32-bit words."""
    c0, c1, c2, c3 = counter.astype(np.uint64).T
    k0, k1 = key
    for _ in range(10):
        product0, product1 = np.uint64(_MULTIPLIERS[0]) * c0, np.uint64(_MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


def uniforms(seed: int, steps: int, codebooks: int) -> np.ndarray:
    """The draws of one take: float32 [steps, K] in [0, 1), multiples of 2^-24.

    Draw k of step s is word k % 4 of the block with counter (s, k // 4, 0, 0) and key (seed's low, high 32 bits).
    """
    blocks = -(-codebooks // 4)
    counter = np.zeros((steps, blocks, 4), dtype=np.uint64)
    counter[:, :, 0] = np.arange(steps, dtype=np.uint64)[:, None]
    counter[:, :, 1] = np.arange(blocks, dtype=np.uint64)
    words = philox4x32(counter.reshape(-1, 4), (seed & 0xFFFFFFFF, seed >> 32))
    draws = (words >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)
    return draws.reshape(steps, blocks * 4)[:, :codebooks]
