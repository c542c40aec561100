"""The closed world that the demo agent acts in, and its tools.

A world is a file tree of two levels, some notes and a calculator. `call`
executes a tool call the way an agent's harness would: whatever the model asks
for, the answer is a text, and mistakes are answered with `error: ...`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SYSTEM_PROMPT: Final = (
    "You are an agent in a small file tree with notes. Use the tools, then answer in one sentence."
)


def _tool(name: str, description: str, *parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string"} for parameter in sorted(parameters)}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "properties": properties,
                "required": sorted(parameters),
                "type": "object",
            },
        },
    }


TOOLS: Final = (
    _tool("list_dir", "Names in a directory.", "path"),
    _tool("read_file", "Text of a file.", "path"),
    _tool("search", "Paths of the files that contain a text.", "query"),
    _tool("calc", "Value of an expression.", "expression"),
    _tool("read_note", "Text of a note.", "key"),
    _tool("write_note", "Save a note.", "key", "text"),
)
PARAMETERS: Final = {
    tool["function"]["name"]: tuple(tool["function"]["parameters"]["required"]) for tool in TOOLS
}
_OPERATORS: Final[dict[str, Callable[[int, int], int]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
_EXPRESSION = re.compile(r"(\d{1,9}) ([-+*]) (\d{1,9})")


def invalid_call(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Why a call does not fit the tools' schemas; None when it does."""
    if name not in PARAMETERS:
        return f"there is no tool {name}"
    if set(arguments) != set(PARAMETERS[name]):
        return f"{name} takes {', '.join(PARAMETERS[name])}"
    if not all(isinstance(value, str) for value in arguments.values()):
        return f"{name} takes strings"
    return None


@dataclass
class World:
    """Files by absolute path, notes by key. Only notes change."""

    files: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Executes a tool call. Never raises for what a model may ask."""
        problem = invalid_call(name, arguments)
        if problem is not None:
            return f"error: {problem}"
        first, *others = (str(arguments[key]) for key in PARAMETERS[name])
        match name:
            case "list_dir":
                return self._list_dir(first)
            case "read_file":
                return self.files.get(first, "error: no such file")
            case "search":
                return self._search(first)
            case "calc":
                return self._calc(first)
            case "read_note":
                return self.notes.get(first, "error: no such note")
            case _:
                (self.notes[first],) = others
                return "saved"

    def _list_dir(self, path: str) -> str:
        prefix = path.rstrip("/") + "/"
        inside = [file.removeprefix(prefix) for file in self.files if file.startswith(prefix)]
        names = dict.fromkeys(
            f"{rest.partition('/')[0]}/" if "/" in rest else rest for rest in inside
        )
        return "\n".join(names) if names else "error: no such directory"

    def _search(self, query: str) -> str:
        found = [path for path, text in self.files.items() if query in text]
        return "\n".join(found) if found else "error: nothing found"

    def _calc(self, expression: str) -> str:
        parts = _EXPRESSION.fullmatch(expression)
        if parts is None:
            return "error: cannot calculate that"
        left, sign, right = parts.groups()
        return str(_OPERATORS[sign](int(left), int(right)))
