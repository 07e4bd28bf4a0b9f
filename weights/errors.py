"""What is said of files that are refused: the error, and values of a file as text that is safe to print.

A checkpoint may come from anyone. Its names and values go into messages through `show` and `show_name` alone: one line,
of bounded length, without characters that steer a terminal.
"""

import reprlib
from typing import Any

LONGEST_NAME = 500  # characters of a tensor's name; the longest of released models has 104
INT_BITS = 64  # longer numbers are described, as Python refuses to print some of them


class CheckpointError(ValueError):
    """A file that is not the checkpoint that was asked for: says what it is and what to do."""


class _Shown(reprlib.Repr):
    """repr of plain values, cut; anything else by its type, as its own repr could print anything."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 120, 120
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 12

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= INT_BITS else f"a number of {x.bit_length()} bits"

    def repr_instance(self, x: Any, level: int) -> str:
        plain = x is None or isinstance(x, (bool, float, bytes))
        return repr(x)[: self.maxother] if plain else f"<{type(x).__name__}>"

    repr_bool = repr_instance  # reprlib chooses a method by the name of the type


_SHOWN = _Shown()


def show(value: object) -> str:
    """A value of a file as Python writes it, shortened, in printable characters."""
    return printable(_SHOWN.repr(value))


def show_name(name: object) -> str:
    """A name of a file as it stands where it is plain text, else as `show` does."""
    return name if isinstance(name, str) and is_plain(name, 200) else show(name)


def is_plain(text: str, longest: int) -> bool:
    """Whether a text is of printable characters, one line, and not longer than that."""
    return len(text) <= longest and text.isprintable()


def printable(text: str) -> str:
    """A text with what is not printable written as an escape: a tab as \\t, an escape character as \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(error: object) -> str:
    """What a library says of a file, in one printable line of at most 300 characters."""
    words = " ".join(str(error).split())
    return printable(words if len(words) <= 300 else f"{words[:300]} ...")
