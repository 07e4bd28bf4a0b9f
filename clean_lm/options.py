"""Checks of options: each returns the value in its plain type, or raises a ValueError that says what was expected.

The bounds below are what no machine or model goes beyond. What a request needs of this machine's memory: memory.py.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

WHOLE = (int, np.integer)
REAL = (int, float, np.integer, np.floating)
INT64 = 2**63 - 1
MOST_FLOAT = 1.7976931348623157e308
LONGEST = 86400.0  # seconds of one generation: a day. Beyond it the codes and draws alone would fill memory
LONGEST_WINDOW = 3600.0  # seconds of one window: its caches are allocated at once, and a step reads all of them
MOST_FRAMES = 180_000  # of one window: LONGEST_WINDOW at 50 frames a second
MOST_WINDOWS = 100_000  # of one generation: a day in windows that begin every second has 86400
MOST_TAKES = 1000  # every take has caches of its own, about 0.3 GB of them in musicgen-small with 30 s
MOST_ROWS = 100_000  # of a batch: as a number of rows is all that is known before lists of that length are made
# Logits are divided by the temperature and multiplied by the coefficients in float32, which must not overflow.
LEAST_TEMPERATURE, LARGEST = 1e-6, 1e6
# A T5 was trained on 512 tokens. One of t5-base's size needs 0.07 GB beside its weights for those, 0.9 GB and 20 s of
# one CPU for 2048 and 3.7 GB for 4096: the attention's scores grow with the square. Characters are bounded too, so that
# a text is refused before anything is loaded.
MOST_TOKENS, MOST_CHARACTERS = 2048, 10_000
HIGHEST_RATE = 1_000_000  # samples a second: above any sound card; a resampler's kernels grow with the rate
LEAST_RATE = 1000  # of a file: below, it holds no sound, and resampling makes thousands of samples of each
THREADS_PER_CPU = 4  # more threads only wait for each other


def known(options: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Raise ValueError if an option is none of `names`."""
    names = sorted(names)
    if unknown := [name for name in options if name not in names]:
        raise ValueError(f"{where}: unknown option {', '.join(unknown)}, expected one of {', '.join(names)}")


def integer(name: str, value: Any, low: int = 0, high: int = INT64) -> int:
    """A whole number from low to high; numpy's are welcome, True, 5.0 and "5" are not."""
    if not isinstance(value, WHOLE) or isinstance(value, bool) or not low <= value <= high:
        bounds = f"from {low} up" if high == INT64 else f"from {low} to {high}"
        raise ValueError(f"{name}: got {shown(value)}, expected a whole number {bounds}")
    return int(value)


def number(name: str, value: Any, expected: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from low to high, which `expected` says in words; True and "5" are none."""
    low, high = max(low, -MOST_FLOAT), min(high, MOST_FLOAT)  # what is infinite, or a whole number beyond floats
    if not isinstance(value, REAL) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return float(value)


def seconds(name: str, value: Any, least: float, expected: str, most: float = LONGEST) -> float:
    """Seconds from `least`, a frame, to `most`, a day; `expected` says the least in words."""
    real = isinstance(value, REAL) and not isinstance(value, bool)
    huge = isinstance(value, int) and abs(value) > MOST_FLOAT  # of which there is no float
    words = f"{value:g} s" if real and not huge else shown(value)
    if not real or not least <= value < math.inf:
        raise ValueError(f"{name}: got {words}, expected {expected}")
    if value > most:
        raise ValueError(
            f"{name}: got {words}, expected {most:g} s ({'a day' if most == LONGEST else 'an hour'}) at most"
        )
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: got {shown(value)}, expected True or False")
    return bool(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {shown(value)}, expected one of {', '.join(choices)}")
    return value


def rate(name: str, value: Any) -> int:
    """Samples a second: a whole number, 44100.0 too."""
    expected = f"samples a second: a whole number, {HIGHEST_RATE} at most"
    if number(name, value, expected, 1, HIGHEST_RATE) != int(value):
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return int(value)


def threads(name: str, value: Any) -> int | None:
    """How many threads to compute with, None for ONNX Runtime's choice."""
    if value is None:
        return None
    most = most_threads()
    try:
        return integer(name, value, 1, most)
    except ValueError:
        raise ValueError(
            f"{name}: got {shown(value)}, expected 1 or more, {most} at most: {THREADS_PER_CPU} for each CPU"
        ) from None


def most_threads() -> int:
    """A small multiple of this machine's CPUs."""
    return THREADS_PER_CPU * (os.cpu_count() or 1)


def text(name: str, value: Any) -> str | None:
    """A text that is Unicode and not too long, or None; "" is one like None."""
    if not isinstance(value, (str, type(None))) or (value and any("\ud800" <= c <= "\udfff" for c in value)):
        raise ValueError(f"{name}: got {shown(value)}, expected Unicode text or None")
    if value and len(value) > MOST_CHARACTERS:
        raise ValueError(
            f"{name}: got a text of {len(value)} characters, expected {MOST_CHARACTERS} at most; the text encoder was "
            "trained on 512 tokens, about 2000 characters: shorten it"
        )
    return value


def texts(name: str, value: Any, rows: int | None = None) -> list[str | None]:
    """A list of texts, None or "" for none; with `rows`, so many."""
    if not is_list(value):
        raise ValueError(f"{name}: got {shown(value)}, expected a list, one text or None per row")
    rows_given(name, len(value), rows)
    return [text(name, one) for one in value]


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list of whatever kind, an array of one axis too; texts are none."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def rows_given(name: str, found: int, rows: int | None = None) -> None:
    """Raise ValueError unless a list has one entry for each of `rows` prompts; None: any number of them."""
    if rows is not None and found != rows:
        raise ValueError(f"{name}: got {found} for {rows} prompts, expected one each")
    if found > MOST_ROWS:
        raise ValueError(f"{name}: got {found}, expected {MOST_ROWS} at most")


def seeds(value: Any, rows: int) -> list[int]:
    """The seed of each row: seed, seed + 1, ... of a number, or the numbers of a list."""
    given: list[Any] = []
    if isinstance(value, WHOLE) and not isinstance(value, bool):
        given = [int(value) + row for row in range(rows)]
    elif is_list(value) and len(value) == rows:
        given = list(value)
    whole = all(isinstance(seed, WHOLE) and not isinstance(seed, bool) and 0 <= seed < 2**64 for seed in given)
    if not whole or len(given) != rows:
        several = f", or a list of {rows} of them" if rows > 1 else ""
        raise ValueError(f"seed: got {shown(value)}, expected a whole number from 0 to 2^64 - {rows}{several}")
    return [int(seed) for seed in given]


def shown(value: Any) -> str:
    """A value as an error message has it: numpy's numbers plain, long ones cut."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, int) and abs(plain) >= 10**60:
        return f"{'-' if plain < 0 else ''}a whole number of {plain.bit_length()} bits"
    found = repr(plain)
    return found if len(found) <= 60 else f"{found[:57]}..."
