"""Faults in the tree's own words: the place, and the nearest known key."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from baton_cli.faults import faults_of, path_text


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    local_suffix_tokens: int | None = None
    weight: float = Field(default=1.0, gt=0)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    listen: str
    num_pages: int = 1
    routing: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    given: str = ""


def faults(section: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(section)
    return faults_of(caught.value, Outer, "prefill[1]", hidden=["given"])


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"num_page": 1}, "prefill[1].num_page: unknown key; did you mean 'num_pages'?"),
        (
            {"routing": {"local_sufix": 1}},
            "prefill[1].routing.local_sufix: unknown key; did you mean 'local_suffix_tokens'?",
        ),
        (
            {"maybe": {"wait": 1}},
            "prefill[1].maybe.wait: unknown key; did you mean 'weight'?",
        ),
        (
            {"many": [{}, {"weigth": 1}]},
            "prefill[1].many[1].weigth: unknown key; did you mean 'weight'?",
        ),
        (
            {"zzz": 1},
            "prefill[1].zzz: unknown key; known keys here: listen, many, maybe, num_pages, routing",
        ),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_known_one(
    section: dict[str, Any], line: str
) -> None:
    assert faults({"listen": "h:1", **section}) == [line]


def test_every_fault_is_reported_at_once() -> None:
    lines = faults({"num_pages": "many", "routing": {"weight": 0}, "x": 1})
    assert len(lines) == 4
    assert "prefill[1].listen: must be given" in lines
    assert any("num_pages" in line and "'many'" in line for line in lines)
    assert any("routing.weight" in line and "greater than 0" in line for line in lines)


def test_a_path_without_a_place() -> None:
    assert path_text("", ("decode", 0, "tp")) == "decode[0].tp"
