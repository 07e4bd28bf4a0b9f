"""Checks of options: each returns the value in its plain type, or raises a ValueError that says what was expected."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

WHOLE = (int, np.integer)
REAL = (int, float, np.integer, np.floating)
LONGEST = 86400.0  # seconds of one generation: a day. Beyond it the codes and draws alone would fill memory
MOST_TAKES = 1000  # every take has caches of its own, about 0.3 GB of them in musicgen-small with 30 s


def known(options: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Raise ValueError if an option is none of `names`."""
    names = sorted(names)
    if unknown := [name for name in options if name not in names]:
        raise ValueError(f"{where}: unknown option {', '.join(unknown)}, expected one of {', '.join(names)}")


def integer(name: str, value: Any, low: int = 0, high: int = 2**63 - 1) -> int:
    """A whole number from low to high; numpy's are welcome, True, 5.0 and "5" are not."""
    if not isinstance(value, WHOLE) or isinstance(value, bool) or not low <= value <= high:
        bounds = f"from {low} up" if high == 2**63 - 1 else f"from {low} to {high}"
        raise ValueError(f"{name}: got {shown(value)}, expected a whole number {bounds}")
    return int(value)


def number(name: str, value: Any, expected: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from low to high, which `expected` says in words; True and "5" are none."""
    if not isinstance(value, REAL) or isinstance(value, bool) or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return float(value)


def seconds(name: str, value: Any, least: float, expected: str) -> float:
    """Seconds from `least`, a frame, to a day; `expected` says the least in words."""
    real = isinstance(value, REAL) and not isinstance(value, bool)
    if not real or not least <= value < math.inf:
        raise ValueError(f"{name}: got {f'{value:g} s' if real else shown(value)}, expected {expected}")
    if value > LONGEST:
        raise ValueError(f"{name}: got {value:g} s, expected {LONGEST:g} s (a day) at most")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: got {shown(value)}, expected True or False")
    return bool(value)


def rate(name: str, value: Any) -> int:
    """Samples a second: a whole number, 44100.0 too."""
    whole = isinstance(value, REAL) and not isinstance(value, bool) and math.isfinite(value) and value == int(value)
    if not whole or value < 1:
        raise ValueError(f"{name}: got {shown(value)}, expected samples a second")
    return int(value)


def texts(name: str, value: Any, rows: int | None = None) -> list[str | None]:
    """A list of texts, None or "" for none; with `rows`, so many."""
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)):
        raise ValueError(f"{name}: got {shown(value)}, expected a list, one text or None per row")
    found = [None if text is None else text for text in value]
    if wrong := [text for text in found if not isinstance(text, (str, type(None)))]:
        raise ValueError(f"{name}: got {shown(wrong[0])}, expected Unicode text or None")
    if rows is not None and len(found) != rows:
        raise ValueError(f"{name}: got {len(found)} for {rows} prompts, expected one each")
    return found


def seeds(value: Any, rows: int) -> list[int]:
    """The seed of each row: seed, seed + 1, ... of a number, or the numbers of a list."""
    if isinstance(value, WHOLE) and not isinstance(value, bool):
        given: list[Any] = [int(value) + row for row in range(rows)]
    elif isinstance(value, (list, tuple, range, np.ndarray)):
        given = list(value)
    else:
        given = []
    whole = all(isinstance(seed, WHOLE) and not isinstance(seed, bool) and 0 <= seed < 2**64 for seed in given)
    if not whole or len(given) != rows:
        several = f", or a list of {rows} of them" if rows > 1 else ""
        raise ValueError(f"seed: got {shown(value)}, expected a whole number from 0 to 2^64 - {rows}{several}")
    return [int(seed) for seed in given]


def shown(value: Any) -> str:
    """A value as an error message has it: numpy's numbers plain, long ones cut."""
    plain = value.item() if isinstance(value, np.generic) else value
    text = repr(plain)
    return text if len(text) <= 60 else f"{text[:57]}..."
