"""A kvstore of a model with recurrent states: what it kept outlives every worker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from baton_kvstore.groups import in_group

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .kvstore_process import until as heard
from .kvstore_process import watching
from .oracle import Reference
from .test_cluster_sessions import close, until

# Workers start twice: on a busy machine they need a minute for it.
pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

PAGE, EVERY, PROMPT = 16, 32, 200
SHAPE = Shape(
    kvstore={"offload_delay_s": 0.0, "holder_timeout_s": 2.0},
    routing={"local_suffix_tokens": 0},
    worker={"snapshot_every": EVERY, "state_pages": 64},
)


def living(cluster: Cluster) -> list[dict[str, float]]:
    """Metrics of each kvstore that was not killed."""
    return [cluster.metrics(name) for name in cluster.kvstores if name in cluster.processes]


def by_group(cluster: Cluster, metric: str, tier: str = "dram") -> list[int]:
    """Of (token pages, states), of all kvstores together."""
    found = living(cluster)
    names = f"{metric}:{tier}", f"{metric}:{tier}_state"
    return [int(sum(each.get(name, 0) for each in found)) for name in names]


def known(cluster: Cluster, pages: int) -> bool:
    """Whether every kvstore has heard of so many pages, and the router follows one of them."""
    found = living(cluster)
    all_know = all(each["baton_directory_pages"] == pages for each in found)
    return all_know and sum(each["baton_directory_watchers"] for each in found) >= 1


class Talk:
    """A session of two turns."""

    def __init__(self, checkpoint: Path) -> None:
        self.reference = Reference(checkpoint)
        self.draw = random.Random(11)
        self.context = self.tokens(PROMPT)
        self.computed = 0

    def tokens(self, count: int) -> list[int]:
        return [self.draw.randrange(100, self.reference.vocab_size) for _ in range(count)]

    @property
    def pages(self) -> list[int]:
        """Of (token pages, states), what the first turn leaves: the prompt's last snapshot, and
        those that decoding passed."""
        return [self.computed // PAGE, 1 + self.computed // EVERY - PROMPT // EVERY]

    def begin(self, cluster: Cluster) -> None:
        first = cluster.generate(self.context, max_tokens=40, session_id="s").token_ids
        assert first == self.reference.greedy(self.context, 40)
        self.computed = len(self.context) + 40 - 1
        self.context += [*first, *self.tokens(30)]

    def go_on(self, cluster: Cluster) -> None:
        """At the last snapshot, which nobody but a kvstore has."""
        before = by_group(cluster, "baton_tier_hits_total")
        answer = cluster.generate(self.context, max_tokens=8, session_id="s")
        assert answer.token_ids == self.reference.greedy(self.context, 8)
        reused = self.computed // EVERY * EVERY
        assert answer.usage.cached_tokens == reused
        tokens, states = by_group(cluster, "baton_tier_hits_total")
        assert tokens - before[0] >= reused // PAGE
        assert states - before[1] >= 1


@pytest.mark.parametrize("kvstores", [1, 3])
def test_a_turn_goes_on_from_the_kvstore_when_every_worker_is_new(
    make_checkpoint: Callable[..., Path], start_cluster: StartCluster, kvstores: int
) -> None:
    checkpoint = make_checkpoint("qwen3_next")
    talk = Talk(checkpoint)
    with start_cluster(replace(SHAPE, kvstores=kvstores), checkpoint) as cluster:
        talk.begin(cluster)
        until(lambda: by_group(cluster, "baton_tier_pages") == talk.pages)
        for name in cluster.workers:
            cluster.kill(name)
        cluster.start(cluster.workers)
        talk.go_on(cluster)
        # The end of the session leaves nothing of either group.
        close(cluster, "s")
        until(lambda: by_group(cluster, "baton_tier_pages") == [0, 0])


@pytest.mark.parametrize("kvstores", [1, 3])
def test_a_turn_goes_on_from_the_disk_when_every_memory_is_lost(
    make_checkpoint: Callable[..., Path], start_cluster: StartCluster, kvstores: int
) -> None:
    checkpoint = make_checkpoint("qwen3_next")
    talk = Talk(checkpoint)
    with start_cluster(replace(SHAPE, kvstores=kvstores, nvme_mb=32), checkpoint) as cluster:
        talk.begin(cluster)
        until(lambda: by_group(cluster, "baton_tier_pages", "nvme") == talk.pages)
        for name in (*cluster.workers, *cluster.kvstores):
            cluster.kill(name)
        cluster.start([*cluster.kvstores, *cluster.workers])
        until(lambda: known(cluster, sum(talk.pages)))
        assert by_group(cluster, "baton_tier_pages") == [0, 0]
        talk.go_on(cluster)
        restored = by_group(cluster, "baton_tier_restored_pages_total", "nvme")
        assert restored[0] >= talk.computed // EVERY * EVERY // PAGE
        assert restored[1] >= 1
        close(cluster, "s")
        for tier in ("dram", "nvme"):
            until(lambda tier=tier: by_group(cluster, "baton_tier_pages", tier) == [0, 0])


async def tiers_of(cluster: Cluster) -> dict[str, set[bytes]]:
    """Which pages each kvstore has."""
    async with watching(cluster.section(cluster.kvstores[0])["listen"]) as view:
        total = sum(by_group(cluster, "baton_tier_pages"))
        tiers = view.pages
        await heard(lambda: sum(len(tiers.get(name, ())) for name in cluster.kvstores) == total)
        return {name: set(tiers[name]) for name in cluster.kvstores}


def test_states_lie_with_their_token_pages_and_hot_ones_outlive_a_kvstore(
    make_checkpoint: Callable[..., Path], start_cluster: StartCluster
) -> None:
    checkpoint = make_checkpoint("qwen3_next")
    talk = Talk(checkpoint)
    shape = replace(SHAPE, prefill=0, kvstores=3, kvstore={**SHAPE.kvstore, "hot_uses": 4})
    with start_cluster(shape, checkpoint) as cluster:
        prompt = list(talk.context)
        talk.begin(cluster)
        for copies in (1, 2):
            wanted = [copies * count for count in talk.pages]
            until(lambda wanted=wanted: by_group(cluster, "baton_tier_pages") == wanted)
            tiers = asyncio.run(tiers_of(cluster))
            everything = set().union(*tiers.values())
            states = {page for page in everything if in_group(page, 1) in everything}
            assert len(states) == 2 * talk.pages[1]  # and the pages that they stand after
            for pages in tiers.values():
                assert all((page in pages) == (in_group(page, 1) in pages) for page in states)
            for _ in range(4):  # turns make them hot
                cluster.generate(prompt, max_tokens=40, session_id="s")
        cluster.kill("kvstore-0")
        cluster.kill("decode-0")
        cluster.start(["decode-0"])
        until(lambda: known(cluster, sum(talk.pages)))
        talk.go_on(cluster)


def test_a_kvstore_whose_death_nobody_has_noticed_costs_reuse_alone(
    make_checkpoint: Callable[..., Path], start_cluster: StartCluster
) -> None:
    checkpoint = make_checkpoint("qwen3_next")
    talk = Talk(checkpoint)
    patient = {**SHAPE.kvstore, "holder_timeout_s": 60.0}
    shape = replace(SHAPE, prefill=0, kvstores=3, kvstore=patient)
    with start_cluster(shape, checkpoint) as cluster:
        talk.begin(cluster)
        until(lambda: by_group(cluster, "baton_tier_pages") == talk.pages)
        cluster.kill("kvstore-1")
        cluster.kill("decode-0")
        cluster.start(["decode-0"])
        answer = cluster.generate(talk.context, max_tokens=8, session_id="s")
        assert answer.token_ids == talk.reference.greedy(talk.context, 8)
        assert answer.usage.cached_tokens % EVERY == 0
