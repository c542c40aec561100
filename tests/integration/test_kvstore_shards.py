"""Three kvstores share the pages of a cluster; one dies under load, and no request fails."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from .cluster import Answer, Cluster, Shape
from .conftest import StartCluster
from .oracle import Reference
from .test_cluster_sessions import close, until

SHAPE = Shape(
    prefill=0,
    decode=2,
    kvstores=3,
    kvstore={"offload_delay_s": 0.0, "holder_timeout_s": 2.0, "hot_uses": 4},
    routing={"local_suffix_tokens": 4096, "session_affinity_s": 0.0},
)


def figures(cluster: Cluster, names: list[str], metric: str) -> list[float]:
    return [cluster.metrics(name).get(metric, 0.0) for name in names]


def kept(cluster: Cluster, names: list[str]) -> list[float]:
    return figures(cluster, names, "baton_tier_pages")


def test_pages_are_shared_restored_from_all_and_lost_with_their_shard_alone(
    start_cluster: StartCluster, reference: Reference
) -> None:
    draw = random.Random(8)
    stores = [f"kvstore-{i}" for i in range(3)]
    with start_cluster(SHAPE) as cluster:
        context = [draw.randrange(100, reference.vocab_size) for _ in range(400)]
        tokens = cluster.generate(context, max_tokens=10, session_id="s").token_ids
        pages = (len(context) + 10 - 1) // 16
        until(lambda: sum(kept(cluster, stores)) == pages)
        assert all(0 < count < pages for count in kept(cluster, stores))
        # Without its worker the prefix comes from all three, for a router that has heard of it.
        before = figures(cluster, stores, "baton_tier_hits_total")
        served = cluster.generate([*context, 5], max_tokens=1, session_id="s").usage.decode_worker
        cluster.kill(served)
        answers: list[Answer] = []

        def restored() -> bool:
            answers.append(cluster.generate(context, max_tokens=10, session_id="s"))
            return answers[-1].usage.cached_tokens >= 384

        until(restored)
        assert all(answer.token_ids == tokens for answer in answers)
        assert sum(answer.usage.pages_moved for answer in answers) >= 24
        after = figures(cluster, stores, "baton_tier_hits_total")
        assert all(more > less for more, less in zip(after, before, strict=True))

        def copied() -> bool:
            cluster.generate(context, max_tokens=10, session_id="s")
            return sum(kept(cluster, stores)) == 2 * pages

        # Turns make them hot: each page gets a second copy.
        until(copied)
        assert close(cluster, "s").freed_pages > 0
        until(lambda: sum(kept(cluster, stores)) == 0)


def test_no_request_fails_when_a_kvstore_dies_under_load(
    start_cluster: StartCluster, reference: Reference
) -> None:
    draw = random.Random(9)
    prompts = [
        [draw.randrange(100, reference.vocab_size) for _ in range(60 + 9 * i)] for i in range(12)
    ]
    with start_cluster(SHAPE) as cluster:
        under_way = threading.Event()

        def talk(number: int) -> list[tuple[list[int], list[int]]]:
            """What was asked and answered in four turns. Raises what the cluster fails with."""
            context, heard = list(prompts[number]), []
            for _ in range(4):
                got = cluster.generate(context, max_tokens=6, session_id=f"s{number}").token_ids
                heard.append((list(context), got))
                context += [*got, *prompts[number][:10]]
                under_way.set()
            return heard

        with ThreadPoolExecutor(len(prompts)) as pool:
            talks = [pool.submit(talk, number) for number in range(len(prompts))]
            assert under_way.wait(timeout=60)
            cluster.kill("kvstore-0")
            turns = [turn for done in talks for turn in done.result()]
        assert len(turns) == 4 * len(prompts)
        for context, got in turns[:: len(prompts) // 3]:
            assert got == reference.greedy(context, 6)
