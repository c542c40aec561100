"""What of JSON Schema a grammar cannot hold: refused here, where xgrammar would leave it out.

Tried keyword by keyword with xgrammar 0.2.8 (tests/unit/engine/test_grammar.py). `oneOf` whose
branches overlap is taken as `anyOf`; `format` that is not known is an annotation, as the
specification has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_NOT_ENFORCED: Final = frozenset(
    {"not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"}
)
_ALONE: Final = ("$ref", "allOf", "anyOf", "oneOf", "enum", "const")
_ANNOTATIONS: Final = frozenset(
    {
        "$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType",
        "contentSchema", "default", "definitions", "deprecated", "description", "discriminator",
        "examples", "format", "readOnly", "title", "writeOnly",
    }
)  # fmt: skip
_VALUES: Final = ("enum", "const", "default", "examples")  # hold values, not schemas
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}
_ONE: Final = ("additionalProperties", "contains", "items", "propertyNames")
_ONE_MORE: Final = ("unevaluatedItems", "unevaluatedProperties")
_SEVERAL: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED: Final = ("$defs", "definitions", "patternProperties", "properties")


def with_types_inside(schema: Any) -> Any:
    """The same schema with a `type` beside `anyOf` or `oneOf` moved into every branch that has
    none, where xgrammar reads it."""
    if isinstance(schema, list):
        return [with_types_inside(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {
        key: value if key in _VALUES else with_types_inside(value) for key, value in schema.items()
    }
    for key in ("anyOf", "oneOf"):
        branches = schema.get(key)
        if "type" in schema and isinstance(branches, list) and all(map(_typable, branches)):
            kind = schema.pop("type")
            schema[key] = [{"type": kind, **branch} for branch in branches]
            if any(branch["type"] != kind for branch in schema[key]):
                schema["type"] = kind  # a branch says otherwise: left as it was, and refused
    return schema


def _typable(branch: Any) -> bool:
    return isinstance(branch, dict) and not branch.keys() & set(_ALONE)


def not_enforced(schema: Any, where: str = "#") -> str | None:
    """The first thing in the schema that the output would not be held to; None when all is."""
    if not isinstance(schema, dict):
        return None
    return _here(schema, where) or next(
        (found for inner, at in _inside(schema, where) if (found := not_enforced(inner, at))), None
    )


def _here(schema: Mapping[str, Any], where: str) -> str | None:
    for key in schema.keys() & _NOT_ENFORCED:
        return f"{where}: {key!r} is not supported"
    if schema.get("uniqueItems"):
        return f"{where}: 'uniqueItems' is not supported"
    if "pattern" in schema and schema.keys() & {"minLength", "maxLength"}:
        return f"{where}: 'pattern' beside a length is not supported; put the length in the pattern"
    if len(schema.get("allOf", ())) > 1:
        return f"{where}: 'allOf' of several schemas is not supported; merge them"
    for key in _ALONE:
        beside = schema.keys() - _ANNOTATIONS - {key}
        if key in schema and beside and not _same_type(schema, key, beside):
            return f"{where}: {sorted(beside)[0]!r} beside {key!r} is not supported"
    return None


def _same_type(schema: Mapping[str, Any], key: str, beside: set[str]) -> bool:
    """`type` beside values that all have it says nothing new."""
    if beside != {"type"} or key not in ("enum", "const"):
        return False
    values = schema["enum"] if key == "enum" else [schema["const"]]
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return all(any(_is(value, name) for name in types) for value in values)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES.get(name, ()))


def _inside(schema: Mapping[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    for key in (*_ONE, *_ONE_MORE):
        yield schema.get(key), f"{where}/{key}"
    for key in _SEVERAL:
        values = schema.get(key)
        if isinstance(values, list):
            yield from ((inner, f"{where}/{key}/{i}") for i, inner in enumerate(values))
    for key in _NAMED:
        named = schema.get(key)
        if isinstance(named, dict):
            yield from ((inner, f"{where}/{key}/{name}") for name, inner in named.items())
