"""Workers of different tensor-parallel sizes exchange pages, in both directions."""

from __future__ import annotations

import random

import pytest

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import PageRadix, Reference

MOVED = "baton_pages_moved_total"


def moved(cluster: Cluster) -> list[int]:
    """Pages pulled by (prefill, decode) so far."""
    return [int(cluster.metrics(name).get(MOVED, 0)) for name in cluster.workers]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("prefill_tp", "decode_tp"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)]
)
def test_latent_pages_fit_every_size(
    start_cluster: StartCluster, reference: Reference, prefill_tp: int, decode_tp: int
) -> None:
    """MLA: latents are the same on every rank, so a page is read whole, once for each rank."""
    shape = Shape(
        tp=decode_tp, prefill_worker={"tp": prefill_tp}, routing={"local_suffix_tokens": 0}
    )
    draw = random.Random(8)
    radix = PageRadix(shape.page_size)
    context: list[int] = []
    with start_cluster(shape) as cluster:
        for turn in range(3):
            context += [draw.randrange(100, reference.vocab_size) for _ in range(70)]
            before = moved(cluster)
            answer = cluster.generate(context, max_tokens=40, session_id="s")
            assert answer.token_ids == reference.greedy(context, 40)
            assert answer.usage.cached_tokens == radix.reusable(context)
            returned, handed = (b - a for a, b in zip(before, moved(cluster), strict=True))
            assert handed > 0
            assert (returned > 0) == (turn > 0), "generated pages go back for the next turn"
            radix.served(context, answer.token_ids)
            context += answer.token_ids
