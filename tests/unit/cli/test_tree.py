"""The tree as written: YAML, duplicates, overrides."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_cli.tree import ConfigError, dump_tree, override, read_tree

KEYS = st.text("abcdefg_", min_size=1, max_size=5)
SCALARS = st.one_of(
    st.integers(-(10**6), 10**6), st.booleans(), st.text("xyz ü", max_size=6), st.none()
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.dictionaries(KEYS, SCALARS)))
def test_what_is_printed_is_read_back(tmp_path_factory: Any, tree: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("tree") / "c.yaml"
    path.write_text(dump_tree(tree))
    assert read_tree(path) == tree


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a: 1\na: 2\n", "line 2: 'a'"),
        ("x:\n  b: 1\n  b: 1\n", "line 3: 'b'"),
        ("- 1\n", "a list"),
        ("a: [", "not YAML"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        read_tree(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_tree(tmp_path / "nowhere.yaml")


def test_an_empty_file_is_an_empty_tree(tmp_path: Path) -> None:
    assert read_tree(written(tmp_path, "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("router.listen=h:1", {"router": {"listen": "h:1"}}),
        ("router.routing.tokens=0", {"router": {"routing": {"tokens": 0}}}),
        ("kvstore=null", {"kvstore": None}),
        ("decode.0.tp=2", {"decode": [{"tp": 2}, {"tp": 1}]}),
        ("decode.*.tp=4", {"decode": [{"tp": 4}, {"tp": 4}]}),
        ("decode.2.tp=3", {"decode": [{"tp": 1}, {"tp": 1}, {"tp": 3}]}),
        ("model.name='a=b'", {"model": {"name": "a=b"}}),
        ("x=[1, {y: true}]", {"x": [1, {"y": True}]}),
    ],
)  # fmt: skip
def test_set_reaches_every_place(assignment: str, expected: dict[str, Any]) -> None:
    tree: dict[str, Any] = {"decode": [{"tp": 1}, {"tp": 1}]}
    override(tree, assignment)
    assert {key: tree[key] for key in expected} == expected


@pytest.mark.parametrize(
    "assignment", ["", "a", "=1", "a..b=1", "decode.7.tp=1", "decode.x=1", "name.x=1", "a=[", ".=1"]
)
def test_set_that_reaches_nothing_is_refused_and_named(assignment: str) -> None:
    tree: dict[str, Any] = {"decode": [{}], "name": "text"}
    with pytest.raises(ConfigError, match="--set"):
        override(tree, assignment)
