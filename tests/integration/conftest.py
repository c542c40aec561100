"""Clusters that tests share, and the reference they are compared with."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from .cluster import Cluster, Shape
from .oracle import Reference

StartCluster = Callable[..., AbstractContextManager[Cluster]]


@pytest.fixture(scope="session")
def reference(deepseek_checkpoint: Path) -> Reference:
    return Reference(deepseek_checkpoint)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The router's unit tests make it; test directories cannot import one another."""
    file = Path(__file__).parents[1] / "unit" / "router" / "small_files.py"
    directory = tmp_path_factory.mktemp("small")
    runpy.run_path(str(file))["write_small_checkpoint"](directory)
    return directory


@pytest.fixture(scope="module")
def start_cluster(
    deepseek_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> StartCluster:
    """Starts a cluster for a `with` block and ends every process after it."""

    @contextmanager
    def start(shape: Shape, checkpoint: Path = deepseek_checkpoint) -> Iterator[Cluster]:
        cluster = Cluster(checkpoint, tmp_path_factory.mktemp("cluster"), shape)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()

    return start
