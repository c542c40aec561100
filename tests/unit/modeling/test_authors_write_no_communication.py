"""Rule four: families and layers state placements; only the compiler knows communicators."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import baton_modeling

PACKAGE = Path(baton_modeling.__file__).parent
FILES = sorted([*PACKAGE.glob("families/*.py"), *PACKAGE.glob("layers/*.py")])


def imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_no_file_of_models_communicates(file: Path) -> None:
    tree = ast.parse(file.read_text())
    banned = ("torch.distributed", "baton_modeling.communicators", "baton_modeling.lockstep")
    assert not [name for name in imports(tree) if name.startswith(banned)]
    calls = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not calls & {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"}


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("families/*.py")), ids=lambda f: f.stem)
def test_a_family_is_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 300
