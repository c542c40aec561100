"""Tool definitions: names and JSON schemas, checked before a model sees them."""

import re
from collections.abc import Iterable
from typing import Any, Final

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton_router import strict_json
from baton_rpc import Refusal

_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_TYPES: Final = ("array", "boolean", "integer", "null", "number", "object", "string")
# Keywords of JSON schema whose value is a schema, a list of schemas, or an object of schemas.
_ONE: Final = ("additionalProperties", "contains", "else", "if", "items", "not", "then")
_SEVERAL: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED: Final = ("$defs", "definitions", "patternProperties", "properties")

CHOICES: Final = ("auto", "none")


def check_choice(choice: str) -> str:
    """The tool choice with its default. Raises Refusal (UNSUPPORTED_TOOL_CHOICE)."""
    if choice and choice not in CHOICES:
        raise Refusal(
            errors.ERROR_REASON_UNSUPPORTED_TOOL_CHOICE,
            f"tool_choice is {choice!r}; supported are {' and '.join(CHOICES)} (empty means auto)",
            {"field": "tool_choice", "value": choice, "allowed": ",".join(CHOICES)},
        )
    return choice or "auto"


def template_tools(tools: Iterable[pb.Tool]) -> list[dict[str, Any]]:
    """The tools as chat templates expect them. Raises Refusal (INVALID_TOOLS)."""
    rendered: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not _NAME.fullmatch(tool.name):
            raise _refusal(
                f"{where}.name",
                f"{tool.name!r} is not a tool's name: 1 to 64 letters, digits or any of _ . : -",
            )
        if tool.name in rendered:
            raise _refusal(f"{where}.name", f"there are two tools called {tool.name!r}")
        function = {
            "name": tool.name,
            "description": tool.description,
            "parameters": _parameters(tool.parameters_json, f"{where}.parameters_json"),
        }
        rendered[tool.name] = {"type": "function", "function": function}
    return list(rendered.values())


def _parameters(text: str, where: str) -> dict[str, Any]:
    if not text:
        return {"type": "object", "properties": {}}
    try:
        schema = strict_json.parse(text)
    except ValueError as error:
        raise _refusal(where, f"not JSON: {error}") from error
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise _refusal(where, 'must be the JSON schema of an object: {"type": "object", ...}')
    _check_schema(schema, where)
    return schema


def _check_schema(schema: Any, where: str) -> None:
    """The structure of a schema and of those inside it; unknown keywords are annotations."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise _refusal(where, "a schema must be an object or a boolean")
    _check_type(schema.get("type"), where)
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _refusal(f"{where}.required", "must be a list of property names")
    if not isinstance(schema.get("enum", []), list):
        raise _refusal(f"{where}.enum", "must be a list of values")
    for key in _ONE:
        if key in schema and not (key == "items" and isinstance(schema[key], list)):
            _check_schema(schema[key], f"{where}.{key}")
    for key in (*_SEVERAL, "items"):
        value = schema.get(key, [])
        if key in _SEVERAL and not isinstance(value, list):
            raise _refusal(f"{where}.{key}", "must be a list of schemas")
        for index, inner in enumerate(value if isinstance(value, list) else ()):
            _check_schema(inner, f"{where}.{key}[{index}]")
    for key in _NAMED:
        value = schema.get(key, {})
        if not isinstance(value, dict):
            raise _refusal(f"{where}.{key}", "must be an object of schemas")
        for name, inner in value.items():
            _check_schema(inner, f"{where}.{key}.{name}")


def _check_type(types: Any, where: str) -> None:
    for name in types if isinstance(types, list) else [types]:
        if name is not None and name not in _TYPES:
            raise _refusal(f"{where}.type", f"{name!r} is not a type; there are {list(_TYPES)}")


def _refusal(field: str, message: str) -> Refusal:
    return Refusal(errors.ERROR_REASON_INVALID_TOOLS, f"{field}: {message}", {"field": field})
