"""JSON as frozen dataclasses: every field there, of its declared type and within its bounds, or an error that names it.

Bounds stand in the annotations: `heads: Annotated[int, Range(1, 1024)]`.
"""

import dataclasses
import functools
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class FieldError(ValueError):
    """A field that is missing, unknown, of another type or out of bounds: where it stands, what was found, what was
    expected."""


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included."""

    low: float
    high: float

    def check(self, value: Any, at: str) -> None:
        if not self.low <= value <= self.high:  # NaN, too
            raise FieldError(f"{at} is {shown(value)}, expected {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class Pattern:
    """A text that matches a regular expression as a whole, and says what it is: "a file's name"."""

    expression: str
    what: str
    longest: int = 100

    def check(self, value: Any, at: str) -> None:
        if len(value) > self.longest or not re.fullmatch(self.expression, value):
            raise FieldError(f"{at} is {shown(value)}, expected {self.what} of at most {self.longest} characters")


@dataclass(frozen=True)
class Count:
    """So many items of a list, or entries of an object."""

    low: int
    high: int

    def check(self, value: Any, at: str) -> None:
        if not self.low <= len(value) <= self.high:
            raise FieldError(f"{at} has {len(value)} entries, expected {self.low} to {self.high}")


@dataclass(frozen=True)
class Fields:
    """An object with some of these fields, and no others."""

    kinds: Mapping[str, Any]

    def check(self, value: Any, at: str) -> None:
        known(self.kinds, value, at)
        for name, entry in value.items():
            convert(self.kinds[name], entry, f"{at}.{name}")


def read_as(cls: type[T], value: Any, at: str) -> T:
    """A JSON object as the dataclass `cls`. Fields with a default may be absent.

    at: what the object is called in errors ("model"), "" for the whole. Raises FieldError.
    """
    _object(value, at)
    hints, found = kinds_of(cls), {}
    known(hints, value, at)
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        if field.name in value:
            found[field.name] = convert(hints[field.name], value[field.name], _join(at, field.name))
        elif field.default is dataclasses.MISSING:
            raise FieldError(f"{at or 'it'} lacks {field.name}")
    return cls(**found)


def read_part(cls: type[T], value: Mapping[str, Any], at: str) -> T:
    """As read_as, from an object that has other fields, too."""
    return read_as(cls, {name: value[name] for name in kinds_of(cls) if name in value}, at)


@functools.cache
def kinds_of(cls: type[Any]) -> dict[str, Any]:
    """A dataclass's fields: the type of each by its name, with its bounds."""
    return get_type_hints(cls, include_extras=True)


def known(kinds: Mapping[str, Any], value: Mapping[str, Any], at: str) -> None:
    """Raise FieldError for a field that is none of `kinds`."""
    for name in value:
        if name not in kinds:
            raise FieldError(f"{at or 'it'} has the unknown field {shown(name)}")


def convert(kind: Any, value: Any, at: str) -> Any:
    """A JSON value as `kind`: int, float, str, bool, X | None, Literal, tuple[X, ...], Mapping[K, X], a dataclass, Any,
    or Annotated[one of these, Range, Pattern, Count or Fields].

    A whole number may be written as 512.0: JSON has one kind of number. Raises FieldError.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return read_as(kind, value, at)  # pyright: ignore[reportArgumentType]
    return CONVERTERS.get(origin or kind, _scalar)(kind, arguments, value, at)


def _annotated(_: Any, arguments: tuple[Any, ...], value: Any, at: str) -> Any:
    found = convert(arguments[0], value, at)
    for bound in arguments[1:]:
        bound.check(found, at)
    return found


def _one_of(_: Any, kinds: tuple[Any, ...], value: Any, at: str) -> Any:
    """The first of several types that the value fits; of X | None, the errors of X."""
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    for kind in rest[:-1]:
        try:
            return convert(kind, value, at)
        except FieldError:
            continue
    return convert(rest[-1], value, at)


def _literal(_: Any, choices: tuple[Any, ...], value: Any, at: str) -> Any:
    for choice in choices:
        kind = (int, float) if isinstance(choice, int) else type(choice)
        if isinstance(value, kind) and not isinstance(value, bool) and value == choice:
            return choice
    raise FieldError(f"{at} is {shown(value)}, expected {' or '.join(map(repr, choices))}")


def _tuple(_: Any, arguments: tuple[Any, ...], value: Any, at: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise FieldError(f"{at} is {shown(value)}, expected a list")
    return tuple(convert(arguments[0], entry, f"{at}[{i}]") for i, entry in enumerate(value))


def _mapping(_: Any, arguments: tuple[Any, ...], value: Any, at: str) -> dict[str, Any]:
    for key in _object(value, at):
        convert(arguments[0], key, f"a name in {at or 'it'}")
    return {key: convert(arguments[1], entry, _join(at, key)) for key, entry in value.items()}


def _integer(_: Any, __: Any, value: Any, at: str) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _plain(value, int, "a whole number", at)


def _scalar(kind: Any, _: Any, value: Any, at: str) -> Any:
    names = {float: "a number", str: "a text", bool: "true or false"}
    if kind is float and not isinstance(value, float):
        return _float(_plain(value, int, names[kind], at), at)
    return _plain(value, kind, names[kind], at)


def _float(value: int, at: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise FieldError(f"{at} is {shown(value)}, expected a number") from None


def _plain(value: Any, kind: type, what: str, at: str) -> Any:
    """The value, if it is of this type; true and false are no numbers."""
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise FieldError(f"{at} is {shown(value)}, expected {what}")
    return value


def _object(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FieldError(f"{at or 'it'} is {shown(value)}, expected an object")
    return value


CONVERTERS: dict[Any, Callable[[Any, tuple[Any, ...], Any, str], Any]] = {
    Annotated: _annotated,
    Union: _one_of,
    types.UnionType: _one_of,
    Literal: _literal,
    tuple: _tuple,
    Mapping: _mapping,
    int: _integer,
}


def _join(at: str, name: str) -> str:
    """Where a field stands; names that are no plain words in quotes, without control characters."""
    plain = name if re.fullmatch(r"[\w.\-/]{1,100}", name, re.ASCII) else shown(name)
    return f"{at}.{plain}" if at else plain


def shown(value: Any) -> str:
    """A JSON value in one line without control characters: long texts cut, objects and lists by their size alone."""
    if isinstance(value, Mapping):
        return f"an object of {len(value)}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    text = repr(value) if not isinstance(value, str) else repr(value[:61])
    return text if len(text) <= 60 else f"{text[:57]}..."
