"""Session leases over real processes: what a session has is kept, and given back at its end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import grpc
import pytest

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton_rpc import refusal_of

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import Reference

# Clusters of many processes: on a busy machine they need a minute to start and stop.
pytestmark = pytest.mark.timeout(240)

# Every gauge of a pool, of workers and of the kvstore, that a session's pages move.
POOL = ("free", "cached", "owned", "referenced", "leased", "quarantined")


def pools(cluster: Cluster) -> dict[str, float]:
    """All pool gauges of all holders."""
    found = {}
    for name in cluster.workers:
        totals = cluster.metrics(name)
        found |= {f"{name} {kind}": totals[f"baton_pool_pages:{kind}"] for kind in POOL}
    totals = cluster.metrics("kvstore")
    for metric in ("baton_tier_pages", "baton_session_leases", "baton_session_lease_pages"):
        found[f"kvstore {metric}"] = totals.get(metric, 0.0)
    return found


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "did not come true"
        time.sleep(0.05)


def tier_pages(cluster: Cluster) -> float:
    return cluster.metrics("kvstore").get("baton_tier_pages", 0.0)


def generated(cluster: Cluster) -> float:
    return cluster.metrics("decode-0")["baton_generation_tokens_total"]


def close(cluster: Cluster, session: str, **fields: str) -> pb.CloseSessionResponse:
    request = pb.CloseSessionRequest(session_id=session, **fields)
    answer: pb.CloseSessionResponse = cluster.stub.CloseSession(request, timeout=10)
    return answer


@pytest.mark.parametrize("local_suffix_tokens", [4096, 0], ids=["local", "remote"])
def test_the_end_of_a_session_frees_every_copy(
    start_cluster: StartCluster, reference: Reference, local_suffix_tokens: int
) -> None:
    draw = random.Random(3)
    shape = Shape(routing={"local_suffix_tokens": local_suffix_tokens})
    with start_cluster(shape) as cluster:
        before = pools(cluster)
        context: list[int] = []
        for _ in range(3):
            context += [draw.randrange(100, reference.vocab_size) for _ in range(70)]
            answer = cluster.generate(context, max_tokens=20, session_id="s", tenant="t")
            context += answer.token_ids
        full = (len(context) - 1) // shape.page_size
        # A session's pages are admitted to the tier at once.
        until(lambda: tier_pages(cluster) == full)
        until(lambda: pools(cluster)["kvstore baton_session_lease_pages"] == full)
        assert pools(cluster)["kvstore baton_session_leases"] == 1
        assert close(cluster, "s", tenant="another").freed_pages == 0
        closed = close(cluster, "s", tenant="t")
        assert (closed.freed_pages, closed.running_turns) == (full, 0)
        until(lambda: pools(cluster) == before)
        assert close(cluster, "s", tenant="t").freed_pages == 0
        # What is freed is gone: the same prompt is computed again, to the same tokens.
        again = cluster.generate(context[:-20], max_tokens=20, tenant="t")
        assert again.usage.cached_tokens == 0
        assert again.token_ids == context[-20:]


def test_a_fork_shares_pages_and_neither_end_takes_from_the_other(
    start_cluster: StartCluster, reference: Reference
) -> None:
    draw = random.Random(4)
    with start_cluster(Shape(decode=2, routing={"local_suffix_tokens": 4096})) as cluster:
        before = pools(cluster)
        context = [draw.randrange(100, reference.vocab_size) for _ in range(100)]
        context += cluster.generate(context, max_tokens=13, session_id="parent").token_ids
        fork = pb.ForkSessionRequest(session_id="parent", new_session_id="child")
        assert cluster.stub.ForkSession(fork, timeout=10).shared_pages == 7
        with pytest.raises(grpc.RpcError) as caught:
            cluster.stub.ForkSession(fork, timeout=10)
        refusal = refusal_of(caught.value)
        assert refusal is not None
        assert refusal.reason == errors.ERROR_REASON_DUPLICATE_REQUEST
        assert close(cluster, "parent").freed_pages == 0
        turn = [*context, *(draw.randrange(100, reference.vocab_size) for _ in range(20))]
        answer = cluster.generate(turn, max_tokens=10, session_id="child")
        # On the worker that the parent was on, without copying and without computing.
        assert answer.usage.cached_tokens == 112
        assert answer.usage.pages_moved == 0
        assert answer.token_ids == reference.greedy(turn, 10)
        assert close(cluster, "child").freed_pages == (len(turn) + 10 - 1) // 16
        until(lambda: pools(cluster) == before)


def test_a_session_without_turns_expires_and_a_running_one_ends_with_its_turn(
    start_cluster: StartCluster, reference: Reference
) -> None:
    draw = random.Random(5)
    prompts = [[draw.randrange(100, reference.vocab_size) for _ in range(60)] for _ in range(2)]
    with start_cluster(Shape(limits={"session_ttl_s": 2.0})) as cluster:
        before = pools(cluster)
        cluster.generate(prompts[0], max_tokens=10, session_id="idle")
        until(lambda: pools(cluster) != before)
        until(lambda: pools(cluster) == before)
        stream = cluster.stream(prompts[1], max_tokens=400, session_id="long")
        next(iter(stream))
        assert close(cluster, "long").running_turns == 1
        until(lambda: pools(cluster) != before)
        stream.cancel()  # type: ignore[attr-defined]
        until(lambda: pools(cluster) == before)


def test_nothing_stays_of_tokens_that_the_router_had_not_heard(
    start_cluster: StartCluster, reference: Reference
) -> None:
    """Its worker runs ahead of a router that stands still, and the turn is cancelled meanwhile."""
    draw = random.Random(6)
    prompt = [draw.randrange(100, reference.vocab_size) for _ in range(60)]
    with start_cluster(Shape()) as cluster:
        before = pools(cluster)
        stream = cluster.stream(prompt, max_tokens=900, session_id="s")
        next(iter(stream))
        assert close(cluster, "s").running_turns == 1
        cluster.pause("router")
        ahead = generated(cluster) + 40
        until(lambda: generated(cluster) >= ahead)
        stream.cancel()  # type: ignore[attr-defined]
        time.sleep(0.1)  # until it is on the wire
        cluster.resume("router")
        until(lambda: pools(cluster) == before)
