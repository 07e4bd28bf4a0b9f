"""The delay pattern: codebook k lags by delays[k] columns, so that it is drawn after the codebooks below it.

column s  0 1 2 3 4 5 6 7      codebook k at column s holds frame t = s - 1 - delays[k]
k=0       # 0 1 2 3 # # #      # = special token, where t < 0 or t >= T
k=1       # # 0 1 2 3 # #      T = 4 frames and delays 0..3 make T + 3 + 1 = 8 columns
k=2       # # # 0 1 2 3 #
k=3       # # # # 0 1 2 3
"""

from collections.abc import Sequence

import numpy as np

UNKNOWN = -1  # a code that is still to be generated


def delay(codes: np.ndarray, delays: Sequence[int], frames: int, special: int) -> np.ndarray:
    """Lay P known frames out in columns: int [B, K, P] -> int64 [B, K, T + max(delays) + 1].

    The T - P frames after them are UNKNOWN; places that hold no frame are `special`.
    """
    batch, codebooks, known = codes.shape
    columns = np.full((batch, codebooks, frames + max(delays) + 1), special, dtype=np.int64)
    for k, lag in enumerate(delays):
        columns[:, k, lag + 1 : lag + 1 + frames] = UNKNOWN
        columns[:, k, lag + 1 : lag + 1 + known] = codes[:, k]
    return columns


def undelay(columns: np.ndarray, delays: Sequence[int]) -> np.ndarray:
    """Read the frames back: int [B, K, T + max(delays) + 1] -> int64 [B, K, T]."""
    frames = columns.shape[2] - max(delays) - 1
    return np.stack([columns[:, k, lag + 1 : lag + 1 + frames] for k, lag in enumerate(delays)], axis=1)


def prefill_length(prompt_frames: int, delays: Sequence[int]) -> int:
    """How many columns a prompt of P frames makes known before the first that has a frame to generate."""
    return prompt_frames + min(delays) + 1
