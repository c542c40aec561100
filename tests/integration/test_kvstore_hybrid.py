"""A kvstore of a model with recurrent states: what it kept outlives every worker."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import Reference
from .test_cluster_sessions import close, until

# Workers start twice: on a busy machine they need a minute for it.
pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

PAGE, EVERY = 16, 32
SHAPE = Shape(
    kvstore={"offload_delay_s": 0.0, "holder_timeout_s": 2.0},
    routing={"local_suffix_tokens": 0},
    worker={"snapshot_every": EVERY, "state_pages": 64},
)


def by_group(cluster: Cluster, metric: str) -> list[int]:
    """Of (token pages, states)."""
    found = cluster.metrics("kvstore")
    tiers = sorted(key for key in found if key.startswith(f"{metric}:dram"))
    return [int(found[key]) for key in tiers]


def test_a_turn_goes_on_from_the_kvstore_when_every_worker_is_new(
    make_checkpoint: Callable[..., Path], start_cluster: StartCluster
) -> None:
    checkpoint = make_checkpoint("qwen3_next")
    reference = Reference(checkpoint)
    draw = random.Random(11)
    context = [draw.randrange(100, reference.vocab_size) for _ in range(200)]
    with start_cluster(SHAPE, checkpoint) as cluster:
        first = cluster.generate(context, max_tokens=40, session_id="s").token_ids
        assert first == reference.greedy(context, 40)
        whole = len(context) + 40 - 1
        until(lambda: by_group(cluster, "baton_tier_pages")[:1] == [whole // PAGE])
        until(lambda: by_group(cluster, "baton_tier_pages")[1] > 0)
        for name in cluster.workers:
            cluster.kill(name)
        cluster.start(cluster.workers)
        context += [*first, *(draw.randrange(100, reference.vocab_size) for _ in range(30))]
        before = by_group(cluster, "baton_tier_hits_total") or [0, 0]
        answer = cluster.generate(context, max_tokens=8, session_id="s")
        assert answer.token_ids == reference.greedy(context, 8)
        # Every snapshot that decoding left was kept, and the turn begins at the last one.
        assert answer.usage.cached_tokens == whole // EVERY * EVERY
        tokens, states = by_group(cluster, "baton_tier_hits_total")
        assert tokens - before[0] >= whole // EVERY * EVERY // PAGE
        assert states - before[1] >= 1
        # The end of the session leaves nothing of either group.
        close(cluster, "s")
        until(lambda: by_group(cluster, "baton_tier_pages") == [0, 0])
