"""Later turns of a session compute only what no page holds."""

from __future__ import annotations

import random

import pytest

from baton.v1 import inference_pb2

from .cluster import Shape
from .conftest import StartCluster
from .oracle import PageRadix, Reference

COMPUTED = "baton_prompt_tokens_computed_total"
TURNS = [(210, 40), (37, 50), (90, 33)]  # new prompt tokens, generated tokens


@pytest.mark.parametrize(
    ("local_suffix_tokens", "route"),
    [(4096, inference_pb2.ROUTE_LOCAL), (0, inference_pb2.ROUTE_REMOTE)],
    ids=["local", "remote"],
)
def test_reuse_equals_the_radix_oracle(
    start_cluster: StartCluster, reference: Reference, local_suffix_tokens: int, route: int
) -> None:
    """Generated tokens included. Remote: the prefill worker pulls them back from the decode
    worker, and only missing pages move in each direction."""
    shape = Shape(routing={"local_suffix_tokens": local_suffix_tokens})
    draw = random.Random(11)
    radix = PageRadix(shape.page_size)
    context: list[int] = []
    with start_cluster(shape) as cluster:
        for new_tokens, max_tokens in TURNS:
            context += [draw.randrange(100, reference.vocab_size) for _ in range(new_tokens)]
            answer = cluster.generate(context, max_tokens=max_tokens, session_id="session")
            reused = radix.reusable(context)

            assert answer.token_ids == reference.greedy(context, max_tokens)
            assert answer.usage.cached_tokens == reused
            assert answer.usage.route == route
            radix.served(context, answer.token_ids)
            context += answer.token_ids
            totals = [cluster.metrics(name)[COMPUTED] for name in cluster.workers]
            if local_suffix_tokens == 0:
                assert totals[1] == 0, "the decode worker ran prompt tokens"


def test_tenants_share_nothing(start_cluster: StartCluster, reference: Reference) -> None:
    prompt = [random.Random(5).randrange(100, reference.vocab_size) for _ in range(120)]
    with start_cluster(Shape()) as cluster:
        first = cluster.generate(prompt, tenant="a")
        again = cluster.generate(prompt, tenant="a")
        other = cluster.generate(prompt, tenant="b")
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens == 112
    assert other.usage.cached_tokens == 0
    assert first.token_ids == again.token_ids == other.token_ids
