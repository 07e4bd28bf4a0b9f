"""Write what clean_lm/manifest_fields.py declares as a JSON Schema: export/manifest.schema.json, and the same as a
module for JavaScript, js/src/manifest_schema.js.

  python -m export.manifest_schema
"""

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from clean_lm.manifest_fields import PARTS, Defaults, Document
from clean_lm.typed_json import Count, Fields, Pattern, Range, kinds_of

ROOT = Path(__file__).parents[1]
SCHEMA, MODULE = ROOT / "export/manifest.schema.json", ROOT / "js/src/manifest_schema.js"
Schema = dict[str, Any]
SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def main() -> None:
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


def files() -> dict[Path, str]:
    """What both files have to contain."""
    schema = document_schema()
    written = json.dumps(schema, indent=1) + "\n"
    note = "// Written by python -m export.manifest_schema: what a manifest.json may hold, as a JSON Schema."
    return {SCHEMA: written, MODULE: f"{note}\nexport const SCHEMA = {json.dumps(schema, separators=(',', ':'))}\n"}


def document_schema() -> Schema:
    """The schema of a manifest.json; which fields of `model` and `defaults` it needs follows from its graphs."""
    definitions: dict[str, Schema] = {}
    reference = schema_of(Document, definitions)
    needs = [(graph, "model", required(part)) for graph, part in PARTS.items()]
    needs.append(("lm_inference", "defaults", required(Defaults)))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "manifest.json of a clean_lm bundle",
        **reference,
        "allOf": [_if_graph(*need) for need in needs],
        "$defs": definitions,
    }


def schema_of(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """One type as a schema; those of dataclasses are added to `definitions`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # before its fields, which may name it
            definitions[kind.__name__] = _object(kinds_of(kind), required(kind), definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin is Annotated:
        return _bounded(schema_of(arguments[0], definitions), arguments[1:], definitions)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(argument, definitions) for argument in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": schema_of(arguments[0], definitions)}
    if origin is Mapping:
        names, entries = (schema_of(argument, definitions) for argument in arguments)
        return {"type": "object", "propertyNames": names, "additionalProperties": entries}
    return {} if kind is Any else {"type": SCALARS[kind]}


def required(kind: type[Any]) -> list[str]:
    """The fields of a dataclass that have no default."""
    return [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]


def _object(kinds: Mapping[str, Any], needed: list[str], definitions: dict[str, Schema]) -> Schema:
    properties = {name: schema_of(kind, definitions) for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _bounded(schema: Schema, bounds: tuple[Any, ...], definitions: dict[str, Schema]) -> Schema:
    ends = ("minItems", "maxItems") if schema.get("type") == "array" else ("minProperties", "maxProperties")
    for bound in bounds:
        match bound:
            case Range():
                schema = schema | {"minimum": bound.low, "maximum": bound.high}
            case Pattern():
                pattern = f"^(?:{bound.expression})$"
                schema = schema | {"pattern": pattern, "maxLength": bound.longest, "description": bound.what}
            case Count():
                schema = schema | dict(zip(ends, (bound.low, bound.high), strict=True))
            case Fields():
                schema = _object(bound.kinds, [], definitions)
    return schema


def _if_graph(graph: str, field: str, needed: list[str]) -> Schema:
    """Where a bundle has this graph, `field` has these entries."""
    return {
        "if": {"properties": {"graphs": {"required": [graph]}}},
        "then": {"properties": {field: {"required": needed}}},
    }


if __name__ == "__main__":
    main()
