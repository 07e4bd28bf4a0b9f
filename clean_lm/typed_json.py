"""JSON objects as frozen dataclasses: every field there and of its declared type, or an error that names it."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class FieldError(ValueError):
    """A field that is missing or of another type: where it stands, what was found, what was expected."""


def read_as(cls: type[T], value: Any, at: str) -> T:
    """A JSON object as the dataclass `cls`. Fields with a default may be absent; others in `value` are ignored.

    at: what the object is called in errors ("model"). Raises FieldError.
    """
    if not isinstance(value, Mapping):
        raise FieldError(f"{at} is {_short(value)}, expected an object")
    hints, found = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        if field.name in value:
            found[field.name] = convert(hints[field.name], value[field.name], f"{at}.{field.name}")
        elif field.default is dataclasses.MISSING:
            raise FieldError(f"{at} lacks {field.name}")
    return cls(**found)


def convert(kind: Any, value: Any, at: str) -> Any:
    """A JSON value as `kind`: int, float, str, X | None, Literal, tuple[X, ...], Mapping[str, X], a dataclass, or Any.

    Raises FieldError.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, at)
    if origin is Literal:
        if value not in arguments:
            raise FieldError(f"{at} is {_short(value)}, expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return tuple(convert(arguments[0], x, f"{at}[{i}]") for i, x in enumerate(_checked(list, value, at)))
    if origin is Mapping:
        return {key: convert(arguments[1], x, f"{at}.{key}") for key, x in _checked(dict, value, at).items()}
    if dataclasses.is_dataclass(kind):
        return read_as(kind, value, at)  # pyright: ignore[reportArgumentType]
    return kind(_checked((int, float) if kind is float else kind, value, at))


def _one_of(kinds: tuple[Any, ...], value: Any, at: str) -> Any:
    """The first of several types that the value has."""
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    for kind in rest[:-1]:
        if type(value) is kind:
            return value
    return convert(rest[-1], value, at)


def _checked(kinds: type | tuple[type, ...], value: Any, at: str) -> Any:
    """The value, if it is of one of these types; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        raise FieldError(f"{at} is {_short(value)}, expected {' or '.join(kind.__name__ for kind in wanted)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
