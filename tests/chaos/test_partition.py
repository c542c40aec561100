"""A holder behind a cable: it is cut under a read, also briefly, between reads, and slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .network import why_not
from .partition_scenes import SKIPPED

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.mark.parametrize("scene", ["under", "briefly", "between", "slow"])
def test_a_cable(scene: str) -> None:
    """See partition_scenes."""
    if reason := why_not():
        pytest.skip(reason)
    script = Path(__file__).with_name("partition_scenes.py")
    ran = subprocess.run([sys.executable, script, scene], capture_output=True, text=True)
    if ran.returncode == SKIPPED:
        pytest.skip(ran.stdout.strip())
    assert ran.returncode == 0, ran.stdout + ran.stderr
