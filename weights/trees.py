"""Configurations as text -> trees of dicts, lists and values, or a CheckpointError: JSON, and the yaml of xp.cfg.

Both are bounded before they are read: in size, in depth, and yaml in what one name of a part (an alias) repeats.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from weights.errors import CheckpointError, one_line
from weights.torch_files import first_bytes

LARGEST_JSON = 2**22  # bytes; the index of a model of 1500 tensors in shards has 150 thousand
LARGEST_YAML = 2**18  # characters; released xp.cfg have 6 thousand
DEEPEST, MOST_NODES, LONGEST_VALUE = 50, 10_000, 4096  # of yaml; released: 5, 500, 80


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError, CheckpointError."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    first_bytes(path)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise CheckpointError(f"{path}: {size} bytes, expected a JSON object of at most {LARGEST_JSON}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise CheckpointError(f"{path}: not readable JSON: nested too deep") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


def parse_yaml(path: Path, text: object) -> dict[str, Any]:
    """The mapping that xp.cfg is. Raises CheckpointError."""
    if not isinstance(text, str):
        raise CheckpointError(f"{path}: xp.cfg is a {type(text).__name__}, expected yaml text")
    if len(text) > LARGEST_YAML:
        raise CheckpointError(f"{path}: xp.cfg has {len(text)} characters, expected at most {LARGEST_YAML}")
    try:
        tree = yaml.load(text, Loader=_BoundedLoader)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        where = f" (line {at.line + 1}, column {at.column + 1})" if at else ""
        raise CheckpointError(f"{path}: xp.cfg is not readable yaml: {one_line(error.problem)}{where}") from None
    except Exception as error:  # a date, a number or a binary that is none fails in any way: ValueError, TypeError, ...
        raise CheckpointError(f"{path}: xp.cfg is not readable yaml: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: xp.cfg is yaml of a {type(tree).__name__}, expected a mapping")
    return tree


class _BoundedLoader(yaml.SafeLoader):
    """yaml without merge keys, of bounded depth and size."""

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = self.nodes = 0
        self.sizes: dict[int, int] = {}  # values of a node, itself among them, by its id

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark, alias, before = self.peek_event().start_mark, self.check_event(yaml.AliasEvent), self.nodes
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        if alias and id(node) not in self.sizes:
            raise yaml.MarkedYAMLError(problem="a value that is within itself", problem_mark=mark)
        self.nodes += self.sizes[id(node)] if alias else 0
        if self.nodes > MOST_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_NODES} values", problem_mark=mark)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST_VALUE:
            raise yaml.MarkedYAMLError(problem=f"a value of {len(node.value)} characters", problem_mark=mark)
        self.depth -= 1
        self.sizes.setdefault(id(node), self.nodes - before)
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Merge keys repeat a mapping's entries, doubly where they are nested; OmegaConf writes none."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem="a merge key (<<)", problem_mark=key.start_mark)
