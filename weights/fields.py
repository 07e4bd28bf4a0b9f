"""A checkpoint's configuration, read by dotted field names: required values, their types, unsupported values."""

import re
from collections.abc import Mapping
from typing import Any

from clean_lm.models.config import ConfigError

ABSENT: Any = object()  # a field that is not there, where None is a value

# field: (the value these modules implement, the library's own default where the field is absent). An old file may
# leave a field out: its absence then means the library's default, not ours.
Supported = Mapping[str, tuple[Any, Any]]


class Fields:
    """A configuration by dotted names. xp.cfg is saved unresolved: `${a.b}` is followed, other resolvers are not."""

    def __init__(self, tree: Mapping[str, Any]):
        self.tree = tree

    def get(self, name: str, default: Any = None, via: tuple[str, ...] = ()) -> Any:
        """The value of `name` ("transformer_lm.dim"), or `default` where it is absent.

        `via` are the references that led here. Raises ConfigError where a reference leads nowhere.
        """
        value: Any = self.tree
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
            reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            value = self._follow(reference[1], (*via, name)) if reference else value
        return value

    def _follow(self, name: str, via: tuple[str, ...]) -> Any:
        chain = " -> ".join((*via, name))
        if name in via:
            raise ConfigError(f"configuration field {via[0]} refers to itself: {chain}")
        value = self.get(name, ABSENT, via)
        if value is ABSENT:
            raise ConfigError(f"configuration field {via[0]} refers to {name}, which is absent: {chain}")
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
                f"configuration field {name}: got {value!r}, which is known only where the model was trained; "
                "save the checkpoint again with its value"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise ConfigError(f"configuration field {name}: got {value!r}, expected {kind.__name__}")
        return kind(value)

    def require_list(self, name: str, kind: type) -> tuple[Any, ...]:
        """The items of `name`, all of them `kind`. Raises ConfigError as `require` does."""
        items = self.require(name, list)
        kinds = (int, float) if kind is float else kind
        odd = [item for item in items if isinstance(item, bool) or not isinstance(item, kinds)]
        if odd:
            raise ConfigError(f"configuration field {name}: got {odd[0]!r} in it, expected a list of {kind.__name__}")
        return tuple(items)


def unsupported(fields: Fields, supported: Supported, file: str, library: str, at: str = "") -> list[str]:
    """One line for every field of a table, found under `at`, that asks for something these modules do not do."""
    problems = []
    for name, (ours, default) in supported.items():
        value = fields.get(at + name, ABSENT)
        if (default if value is ABSENT else value) != ours:
            found = f"nothing ({library} then takes {default!r})" if value is ABSENT else repr(value)
            problems.append(f"{file} {at}{name}: found {found}, supported: {ours!r}")
    return problems


def require_supported(what: str, problems: list[str]) -> None:
    """Raise ConfigError with all problems, if there are any, of a "language model", a "codec", ..."""
    if problems:
        raise ConfigError(f"clean_lm does not support this {what}:\n  " + "\n  ".join(problems))
