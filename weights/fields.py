"""A checkpoint's configuration, read by dotted field names: required values, their types, unsupported values."""

import re
from collections.abc import Mapping
from typing import Any

from clean_lm.models.config import ConfigError
from weights.errors import show, show_name

LONGEST_LIST, LONGEST_TEXT = 64, 1000  # items, characters
LARGEST = 2**53  # of numbers: what a float tells from the next
MOST_REFERENCES, MOST_PARTS = 32, 16  # that one value may lead through; parts of a dotted name

ABSENT: Any = object()  # a field that is not there, where None is a value

# field: (the value these modules implement, the library's own default where the field is absent). An old file may
# leave a field out: its absence then means the library's default, not ours.
Supported = Mapping[str, tuple[Any, Any]]


def _check_size(name: str, value: Any) -> None:
    """Raise ConfigError for a number, a text or a list that is larger than any in a configuration."""
    if isinstance(value, int | float) and abs(value) > LARGEST:  # NaN, which is not, is left to the configuration
        raise ConfigError(f"configuration field {name}: got {show(value)}, expected a number below 2^53")
    longest = LONGEST_TEXT if isinstance(value, str) else LONGEST_LIST
    if isinstance(value, str | list) and len(value) > longest:
        what = "characters" if isinstance(value, str) else "items"
        raise ConfigError(f"configuration field {name}: got {len(value)} {what}, expected at most {longest}")
    if isinstance(value, str) and not value.isprintable():
        raise ConfigError(f"configuration field {name}: got {show(value)}, expected printable text")


class Fields:
    """A configuration by dotted names. xp.cfg is saved unresolved: `${a.b}` is followed, other resolvers are not."""

    def __init__(self, tree: Mapping[str, Any]):
        self.tree = tree
        self.followed = 0  # references, since a value was asked for

    def get(self, name: str, default: Any = None, via: tuple[str, ...] = ()) -> Any:
        """The value of `name` ("transformer_lm.dim"), or `default` where it is absent.

        `via` are the references that led here. Raises ConfigError where a reference leads nowhere.
        """
        self.followed = self.followed if via else 0
        value: Any = self.tree
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
            reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            value = self._follow(reference[1], (*via, name)) if reference else value
        return value

    def _follow(self, name: str, via: tuple[str, ...]) -> Any:
        self.followed += 1
        if self.followed > MOST_REFERENCES or name.count(".") >= MOST_PARTS:
            raise ConfigError(f"configuration field {via[0]} refers to more than {MOST_REFERENCES} others")
        chain = " -> ".join(map(show_name, (*via, name)))
        if name in via:
            raise ConfigError(f"configuration field {via[0]} refers to itself: {chain}")
        value = self.get(name, ABSENT, via)
        if value is ABSENT:
            raise ConfigError(f"configuration field {via[0]} refers to {show_name(name)}, which is absent: {chain}")
        return value

    def require(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of `name`, converted to `kind`; `default` where it is absent.

        Raises ConfigError where it is absent without a default, or of another kind.
        """
        value = self.get(name, default)
        if value is None:
            raise ConfigError(f"the configuration has no {name}: it is needed to build the model")
        if isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"configuration field {name}: got {show(value)}, which is known only where the model was trained; "
                "save the checkpoint again with its value"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise ConfigError(f"configuration field {name}: got {show(value)}, expected {kind.__name__}")
        _check_size(name, value)
        return kind(value)

    def require_list(self, name: str, kind: type) -> tuple[Any, ...]:
        """The items of `name`, all of them `kind`. Raises ConfigError as `require` does."""
        items = self.require(name, list)
        kinds = (int, float) if kind is float else kind
        odd = [item for item in items if isinstance(item, bool) or not isinstance(item, kinds)]
        if odd:
            found = show(odd[0])
            raise ConfigError(f"configuration field {name}: got {found} in it, expected a list of {kind.__name__}")
        for item in items:
            _check_size(name, item)
        return tuple(items)


def unsupported(fields: Fields, supported: Supported, file: str, library: str, at: str = "") -> list[str]:
    """One line for every field of a table, found under `at`, that asks for something these modules do not do."""
    problems = []
    for name, (ours, default) in supported.items():
        value = fields.get(at + name, ABSENT)
        if (default if value is ABSENT else value) != ours:
            found = f"nothing ({library} then takes {default!r})" if value is ABSENT else show(value)
            problems.append(f"{file} {at}{name}: found {found}, supported: {ours!r}")
    return problems


def require_supported(what: str, problems: list[str]) -> None:
    """Raise ConfigError with all problems, if there are any, of a "language model", a "codec", ..."""
    if problems:
        raise ConfigError(f"clean_lm does not support this {what}:\n  " + "\n  ".join(problems))
