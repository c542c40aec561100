"""The demo model lies among the examples, which are not installed."""

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The checkpoint that ships."""
    return EXAMPLES / "demo_model" / "model"
