"""One poisoned cluster for all faults of a module, repaired after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration.cluster import Cluster, Shape
from integration.oracle import Reference

from .traffic import Known, known

TOKENS = 20


# Few states, so that snapshots are evicted and prefixes found without one.
STATES = {"qwen3_next": {"snapshot_every": 32, "state_pages": 16, "max_running": 8}}


@pytest.fixture(scope="module")
def variant(request: pytest.FixtureRequest) -> str:
    """The checkpoint that the module's VARIANT names."""
    return str(getattr(request.module, "VARIANT", "deepseek_v3"))


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], variant: str) -> Path:
    return make_checkpoint(variant)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture(scope="module")
def requests(reference: Reference) -> list[Known]:
    return known(reference, 10, TOKENS)


def poisoned(transport: str, lists: bool, states: dict[str, int]) -> Shape:
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
            "list_sealed_pages": lists,
            **states,
        },
        kvstore={"transport": transport},
    )


@pytest.fixture(scope="module")
def shared_cluster(
    request: pytest.FixtureRequest,
    checkpoint: Path,
    variant: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """A poisoned cluster, of the transport that the module's TRANSPORT names; LISTS says whether
    pages are read without leases, too."""
    module = request.module
    shape = poisoned(module.TRANSPORT, module.LISTS, STATES.get(variant, {}))
    cluster = Cluster(checkpoint, tmp_path_factory.mktemp("chaos"), shape)
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
