"""docs/models.md says what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "models.md"


def family_table() -> ModuleType:
    # By path: tests are imported without putting the repository's root on sys.path.
    spec = importlib.util.spec_from_file_location(
        "family_table", ROOT / "tests" / "checkpoints" / "family_table.py"
    )
    if spec is None or spec.loader is None:
        raise ImportError("tests/checkpoints/family_table.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_families_is_what_the_code_gives() -> None:
    """If it is not: python tests/checkpoints/family_table.py --write"""
    module = family_table()
    assert module.documented() == module.table()
    assert len(module.table().splitlines()) == 2 + len(module.FAMILIES)


def test_the_code_shown_is_the_code() -> None:
    shown = re.findall(r"<!-- from: (\S+) -->\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(shown) == 2
    for path, code in shown:
        assert code.strip("\n") in (ROOT / path).read_text(), path
