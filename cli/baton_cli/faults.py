"""Turns pydantic's errors into lines that name the place, the value and what is allowed."""

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

Model = type[BaseModel]


def faults_of(
    error: ValidationError, model: Model, place: str, *, hidden: Iterable[str] = ()
) -> list[str]:
    """One line for each fault of `error`, in the tree's own terms.

    `place` is where the section stands in the tree (`prefill[0]`); `hidden`
    are fields that the section does not spell out itself.
    """
    return [_line(dict(fault), model, place, frozenset(hidden)) for fault in error.errors()]


def _line(fault: dict[str, Any], model: Model, place: str, hidden: frozenset[str]) -> str:
    location = tuple(fault["loc"])
    where = path_text(place, location)
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{_suggestion(model, location, hidden)}"
    if fault["type"] == "missing":
        return f"{where}: must be given"
    message = str(fault["msg"]).removeprefix("Value error, ")
    value = fault.get("input")
    shown = f" (it is {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"


def path_text(place: str, location: Iterable[str | int]) -> str:
    """`prefill[0].tp` from its parts."""
    text = place
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say after `unknown key`: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known keys here: {', '.join(names)}"


def _suggestion(model: Model, location: tuple[str | int, ...], hidden: frozenset[str]) -> str:
    owner = _owner(model, location[:-1])
    if owner is None:
        return ""
    known = set(owner.model_fields)
    if owner is model:
        known -= hidden
    return unknown_key(str(location[-1]), known)


def _owner(model: Model, location: tuple[str | int, ...]) -> Model | None:
    """The model that a location inside `model` leads into."""
    at: Model | None = model
    for step in location:
        if isinstance(step, int) or at is None:
            continue  # an index: the annotation of the list has been looked through already
        field = at.model_fields.get(step)
        if field is None:
            continue  # a union's branch: pydantic puts its tag into the location
        at = _model_in(field.annotation)
    return at


def _model_in(annotation: Any) -> Model | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for argument in typing.get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
