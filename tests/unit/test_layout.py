"""The rooms: what can be imported, and by which name."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = [Path(p) for p in PROJECT["tool"]["scikit-build"]["wheel"]["packages"]]


@pytest.mark.parametrize("name", ["kernels", "proto", "engine", "transfer", "services", "cli"])
def test_a_folder_of_the_root_is_no_module(name: str) -> None:
    """From the root too: `kernels` is Hugging Face's name, `proto` Google's."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is not None)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        timeout=30,
        check=False,
    )
    assert found.returncode == 0, f"{name} is importable"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_is_importable_by_its_one_name_and_typed(room: Path) -> None:
    spec = importlib.util.find_spec(room.name)
    assert spec is not None, f"{room.name} is not installed: make build"
    assert spec.origin is not None
    assert Path(spec.origin).parent == ROOT / room
    assert (ROOT / room / "py.typed").exists()


def test_every_package_folder_is_packed_typed_and_linted() -> None:
    """A room that is left out of one of the lists would be left out silently."""
    on_disk = {
        path.parent.relative_to(ROOT)
        for pattern in ("*/baton_*/__init__.py", "services/*/baton_*/__init__.py")
        for path in ROOT.glob(pattern)
    }
    packed = set(ROOMS)
    assert on_disk == {room for room in packed if room.name != "baton"}
    tool = PROJECT["tool"]
    parents = {str(room.parent) for room in packed}
    assert parents == set(tool["mypy"]["mypy_path"]) == set(tool["ruff"]["src"])
    assert {room.name for room in packed} == set(tool["importlinter"]["root_packages"])
    assert {room.name for room in packed} - {"baton"} == set(tool["mypy"]["packages"])


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "misc"])
def test_no_module_is_named_after_nothing(name: str) -> None:
    found = [p for room in ROOMS for p in (ROOT / room).rglob(f"{name}*") if p.suffix != ".pyc"]
    assert found == []
