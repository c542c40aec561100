"""One poisoned cluster for all faults of a module, repaired after each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.cluster import Cluster, Shape
from integration.oracle import Reference

from .traffic import Known, known

TOKENS = 20


@pytest.fixture(scope="session")
def reference(deepseek_checkpoint: Path) -> Reference:
    return Reference(deepseek_checkpoint)


@pytest.fixture(scope="session")
def requests(reference: Reference) -> list[Known]:
    return known(reference, 10, TOKENS)


def poisoned(transport: str) -> Shape:
    """Two workers of each role; small pools, short leases, free pages poisoned."""
    return Shape(
        prefill=2,
        decode=2,
        num_pages=128,
        routing={"local_suffix_tokens": 0},
        worker={
            "debug_poison_free_pages": True,
            "max_chunk_tokens": 32,
            "max_context": 512,
            "hold_ms": 3_000,
            "await_ms": 4_000,
            "lease_ttl_ms": 1_500,
            "transport": transport,
        },
        kvstore={"transport": transport},
    )


@pytest.fixture(scope="module")
def shared_cluster(
    request: pytest.FixtureRequest,
    deepseek_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """A poisoned cluster, of the transport that the module's TRANSPORT names."""
    shape = poisoned(request.module.TRANSPORT)
    cluster = Cluster(deepseek_checkpoint, tmp_path_factory.mktemp("chaos"), shape)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The shared one; whoever a test left dead is started again."""
    yield shared_cluster
    for name in ("kvstore", *shared_cluster.workers):
        shared_cluster.revive(name)
