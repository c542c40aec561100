"""JSON as the standard has it: no NaN, no infinities, no lone surrogates, no bottomless nesting."""

import json
import math
from typing import Any, Final

MAX_DEPTH: Final = 64


def parse(text: str) -> Any:
    """The value of `text`. Raises ValueError saying what is not JSON about it."""
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    _check(value)
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _check(value: Any) -> None:
    level = [value]
    depth = 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _encodable(item)
            elif isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = below


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a string holds half of a surrogate pair") from error
