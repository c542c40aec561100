"""Clusters over models with recurrent states: handed over, returned, lost in the middle."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from baton.v1 import inference_pb2

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import Reference
from .test_cluster_failover import Streaming, assert_nothing_leaked
from .test_cluster_turns import COMPUTED

# Clusters of several processes: on a busy machine they need a minute to start and stop.
pytestmark = pytest.mark.timeout(240)

MAX_TOKENS = 8
LENGTHS = [1, 16, 33, 64, 200]
PAGE = 16
EVERY = 32
REMOTE = {"local_suffix_tokens": 0}
STATES = {"snapshot_every": EVERY, "state_pages": 64}
MOVED = "baton_pages_moved_total"


def count(cluster: Cluster, metric: str) -> list[int]:
    """Of (prefill, decode)."""
    return [int(cluster.metrics(name).get(metric, 0)) for name in cluster.workers]


def pages(tokens: int) -> int:
    return -(-tokens // PAGE)


@pytest.mark.parametrize("variant", ["qwen3_next", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_prompts_are_handed_over_and_turns_return(
    make_checkpoint: Callable[..., Path], start_cluster: StartCluster, variant: str
) -> None:
    """Only missing pages and one or two states move, in both directions; no token is computed by
    the decode worker, and by the prefill worker none before the last snapshot."""
    checkpoint = make_checkpoint(variant)
    reference = Reference(checkpoint)
    draw = random.Random(3)
    turns = [(210, 40), (37, 50), (90, 33)]
    context: list[int] = []
    known = 0  # tokens of the last snapshot
    held = 0  # of the session's whole pages
    with start_cluster(Shape(routing=REMOTE, worker=STATES), checkpoint) as cluster:
        prompts = [[draw.randrange(100, reference.vocab_size) for _ in range(n)] for n in LENGTHS]
        answers = cluster.generate_all(prompts, max_tokens=MAX_TOKENS)
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.token_ids == reference.greedy(prompt, MAX_TOKENS)
            assert answer.usage.route == inference_pb2.ROUTE_REMOTE
        for turn, (new, generated) in enumerate(turns):
            context += [draw.randrange(100, reference.vocab_size) for _ in range(new)]
            before, computed = count(cluster, MOVED), count(cluster, COMPUTED)
            answer = cluster.generate(context, max_tokens=generated, session_id="s")
            assert answer.token_ids == reference.greedy(context, generated)
            assert answer.usage.route == inference_pb2.ROUTE_REMOTE
            assert answer.usage.cached_tokens == known
            returned, handed = (
                now - then for now, then in zip(count(cluster, MOVED), before, strict=True)
            )
            keeps = EVERY * (len(context) // EVERY) > known
            assert handed == pages(len(context)) - held // PAGE + 1 + keeps
            # Back go the pages that were generated, as far as the last snapshot, and that one.
            assert (returned > 0) == (turn > 0)
            assert count(cluster, COMPUTED)[0] - computed[0] == len(context) - known
            context += answer.token_ids
            known = (len(context) - 1) // EVERY * EVERY
            held = (len(context) - 1) // PAGE * PAGE
        assert count(cluster, COMPUTED)[1] == 0, "the decode worker ran prompt tokens"
        assert_nothing_leaked(cluster, cluster.workers)


def test_a_prefill_worker_is_killed_under_its_hand_overs(
    make_checkpoint: Callable[..., Path], start_cluster: StartCluster
) -> None:
    """Wherever it was - computing, held for its reader, read from - the tokens are the same."""
    checkpoint = make_checkpoint("qwen3_next")
    reference = Reference(checkpoint)
    draw = random.Random(5)
    prompts = [[draw.randrange(100, reference.vocab_size) for _ in range(400)] for _ in range(4)]
    worker = {**STATES, "max_chunk_tokens": 32, "debug_poison_free_pages": True}
    with start_cluster(Shape(routing=REMOTE, worker=worker), checkpoint) as cluster:
        streams = [Streaming(cluster, prompt, 30) for prompt in prompts]
        streams[0].wait_for_tokens(1)
        cluster.kill("prefill-0")
        for prompt, stream in zip(prompts, streams, strict=True):
            assert stream.answer().token_ids == reference.greedy(prompt, 30)
        assert_nothing_leaked(cluster, ["decode-0"])
        # The same name in a new life: hand-overs go on.
        cluster.start(["prefill-0"])
        fresh = [draw.randrange(100, reference.vocab_size) for _ in range(100)]
        assert cluster.generate(fresh, max_tokens=5).token_ids == reference.greedy(fresh, 5)
        assert_nothing_leaked(cluster, cluster.workers)
