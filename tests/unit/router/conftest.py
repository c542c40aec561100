"""Fixtures of the router's unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .small_files import write_small_checkpoint


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without weights: what the router reads, and nothing more."""
    directory = tmp_path_factory.mktemp("small")
    write_small_checkpoint(directory)
    return directory
