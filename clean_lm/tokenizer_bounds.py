"""How much longer a tokenizer.json can make a text: a few hundred bytes of one can ask for more than memory holds."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST = 2**26  # bytes of a tokenizer.json; T5's has 1.4 MB
MOST_GROWTH = 64  # times; T5's is 1
LONGEST = 200_000  # characters of a text that is normalized, of the 10,000 that it may have
STEPS = ("normalizer", "pre_tokenizer", "post_processor")


def check_growth(path: Path) -> None:
    """Raise ValueError where a text could become more than MOST_GROWTH times as long, or the file is no tokenizer's."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.stat().st_size} bytes, expected at most {LARGEST}")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("lists and objects are nested too deep") from None
    if not isinstance(tree, dict):
        raise ValueError("expected an object")
    factor = math.prod(growth(tree.get(step)) for step in STEPS)
    if factor > MOST_GROWTH:
        raise ValueError(f"may make a text {factor:g} times as long, expected at most {MOST_GROWTH} times")


def growth(step: Any) -> float:
    """How many times as long a step makes a text, at most; of steps in a sequence, all together."""
    if isinstance(step, list):
        return math.prod(map(growth, step))
    if not isinstance(step, Mapping):
        return 1
    inner = math.prod(growth(part) for part in step.values() if isinstance(part, list))
    match step.get("type"):
        case "Replace":
            return inner * _replaced(step.get("pattern"), str(step.get("content") or ""))
        case "ByteLevel":
            return inner * 4
        case "TemplateProcessing":
            return max(1, str(step.get("single")).count("'Sequence'"))
    return inner


def _replaced(pattern: Any, content: str) -> float:
    """A regular expression may match between any two characters."""
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    return max(1, len(content) / len(text)) if isinstance(text, str) and text else 1 + len(content)
