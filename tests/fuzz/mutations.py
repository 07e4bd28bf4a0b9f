"""Seeded mutations of bytes and of trees of JSON: what a bad disk, a broken download or an enemy make of them."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

WRONG: list[Any] = [
    *(None, True, False, [], {}, "", " ", "x", "\x1b[31mred\x1b[0m\n", "\ud800", "../../../../etc/passwd", "/dev/zero"),
    *(
        "__proto__",
        "a" * 100_000,
        "NaN",
        "0",
        0,
        -1,
        1,
        2,
        3,
        0.5,
        -0.0,
        1e-45,
        1e39,
        1e300,
        -1e300,
        10**7,
        2**31,
        2**63,
    ),
    *(10**4000, [[]], [0] * 1000, [None], [-1], {"a": {"b": {}}}, ["x", 1], 512.0, 44_100, 1_000_000_007),
]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file with a few bits flipped, cut short, filled, repeated or exchanged."""
    return rng.choice((_flip, _flip, _flip, _cut, _fill, _repeat, _insert, _number))(bytearray(content), rng)


def _flip(content: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 8, 64))):
        content[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(content)


def _cut(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.choice((0, 1, 4, 100, rng.randrange(len(content)), len(content) - 1))])


def _fill(content: bytearray, rng: random.Random) -> bytes:
    start = _place(content, rng)
    size = min(rng.choice((1, 8, 512, 65536)), len(content) - start)
    content[start : start + size] = bytes([rng.choice((0, 255, 0x80, 0x41))]) * size
    return bytes(content)


def _repeat(content: bytearray, rng: random.Random) -> bytes:
    start = _place(content, rng)
    return bytes(content[:start] + content[start : start + 4096] + content[start:])


def _insert(content: bytearray, rng: random.Random) -> bytes:
    start = _place(content, rng)
    return bytes(content[:start] + rng.randbytes(rng.choice((1, 7, 300))) + content[start:])


def _number(content: bytearray, rng: random.Random) -> bytes:
    """A huge length where one may stand."""
    start = min(_place(content, rng), len(content) - 8) if len(content) >= 8 else 0
    content[start : start + 4] = rng.choice((b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0" * 4))
    return bytes(content)


def _place(content: bytearray, rng: random.Random) -> int:
    """Anywhere, and half of the time near the ends, where headers and directories are."""
    near = min(2048, len(content))
    at = rng.choice((rng.randrange(len(content)), rng.randrange(near), len(content) - 1 - rng.randrange(near)))
    return max(0, at)


def changed(tree: Any, rng: random.Random) -> Any:
    """A tree with one to three of its entries replaced, removed, renamed, added, exchanged or buried."""
    found = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(found))
        if not places:
            return rng.choice(WRONG)
        parent, key = rng.choice(places)
        rng.choice((_replace, _replace, _replace, _scale, _remove, _rename, _add, _exchange, _bury))(parent, key, rng)
    return found


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry of a tree, however deep: what it stands in, and its key or index there."""
    left = [tree]
    while left:
        parent = left.pop()
        entries = parent.items() if isinstance(parent, dict) else enumerate(parent) if isinstance(parent, list) else ()
        for key, value in list(entries):
            yield parent, key
            left.append(value)


def _replace(parent: Any, key: Any, rng: random.Random) -> None:
    parent[key] = copy.deepcopy(rng.choice(WRONG))


def _scale(parent: Any, key: Any, rng: random.Random) -> None:
    """A number somewhat or much other than it was."""
    value = parent[key]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        change: Callable[[Any], Any] = rng.choice(
            (lambda x: x + 1, lambda x: x - 1, lambda x: x * 2, lambda x: -x, lambda x: x * 1e9, lambda x: x / 3)
        )
        parent[key] = change(value)
    elif isinstance(value, str) and value:
        at = rng.randrange(len(value))
        parent[key] = value[:at] + rng.choice(("", "x", "/", "\0", "..")) + value[at + 1 :]
    else:
        _replace(parent, key, rng)


def _remove(parent: Any, key: Any, rng: random.Random) -> None:
    del parent[key]


def _rename(parent: Any, key: Any, rng: random.Random) -> None:
    if isinstance(parent, dict):
        parent[rng.choice(("", "x", "__proto__", f"{key}x", "\x1b[2J"))] = parent.pop(key)
    else:
        parent.reverse()


def _add(parent: Any, key: Any, rng: random.Random) -> None:
    value = copy.deepcopy(rng.choice(WRONG))
    if isinstance(parent, dict):
        parent[rng.choice(("x", "constructor", "data", "file", "self_wav", "files"))] = value
    else:
        parent.append(value)


def _exchange(parent: Any, key: Any, rng: random.Random) -> None:
    other = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    parent[key], parent[other] = parent[other], parent[key]


def _bury(parent: Any, key: Any, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 50, 3000))):
        parent[key] = [parent[key]] if rng.random() < 0.5 else {"x": parent[key]}
