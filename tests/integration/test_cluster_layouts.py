"""Workers of different tensor-parallel sizes exchange pages, in both directions."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import Reference
from .test_cluster_sessions import until

# Clusters of several processes: on a busy machine they need a minute to start and stop.
pytestmark = pytest.mark.timeout(240)

MOVED, COMPUTED = "baton_pages_moved_total", "baton_prompt_tokens_computed_total"
EVERY = 32
STATES = {"snapshot_every": EVERY, "state_pages": 64}
# (prefill tp, decode tp). Back go the pages of every turn: both directions of both are shown.
SIZES = [(2, 1), pytest.param((1, 2), marks=pytest.mark.slow)]


def shape(sizes: tuple[int, int], worker: dict[str, object] | None = None) -> Shape:
    """Every prompt is computed by the prefill worker."""
    prefill_tp, decode_tp = sizes
    return Shape(
        tp=decode_tp,
        worker=worker or {},
        prefill_worker={"tp": prefill_tp},
        routing={"local_suffix_tokens": 0},
    )


def count(cluster: Cluster, metric: str) -> list[int]:
    """Of (prefill, decode) so far."""
    return [int(cluster.metrics(name).get(metric, 0)) for name in cluster.workers]


def talk(cluster: Cluster, reference: Reference, reused_by: int) -> None:
    """Three turns: every token as transformers', every page there and back over NIXL.

    reused_by: tokens of which a turn's context is reused in whole multiples.
    """
    draw = random.Random(8)
    context: list[int] = []
    known = 0
    for turn in range(3):
        context += [draw.randrange(100, reference.vocab_size) for _ in range(70)]
        before = count(cluster, MOVED)
        answer = cluster.generate(context, max_tokens=40, session_id="s")
        assert answer.token_ids == reference.greedy(context, 40)
        assert answer.usage.cached_tokens == known
        returned, handed = (b - a for a, b in zip(before, count(cluster, MOVED), strict=True))
        assert handed > 0
        assert (returned > 0) == (turn > 0), "generated pages go back for the next turn"
        context += answer.token_ids
        known = (len(context) - 1) // reused_by * reused_by
    assert count(cluster, COMPUTED)[1] == 0, "the decode worker ran prompt tokens"


@pytest.mark.parametrize("sizes", SIZES)
def test_latent_pages_fit_every_size(
    start_cluster: StartCluster, reference: Reference, sizes: tuple[int, int]
) -> None:
    """MLA: latents are the same on every rank, so a page is read whole, once for each rank."""
    with start_cluster(shape(sizes)) as cluster:
        talk(cluster, reference, cluster.shape.page_size)


@pytest.mark.parametrize("sizes", [*SIZES, pytest.param((2, 2), marks=pytest.mark.slow)])
def test_heads_are_cut_and_joined(
    start_cluster: StartCluster, make_checkpoint: Callable[..., Path], sizes: tuple[int, int]
) -> None:
    """GQA: each rank has its heads, so a page of one size is parts of pages of the other."""
    checkpoint = make_checkpoint("qwen3")
    with start_cluster(shape(sizes), checkpoint) as cluster:
        talk(cluster, Reference(checkpoint), cluster.shape.page_size)


@pytest.mark.parametrize("sizes", [*SIZES, pytest.param((2, 2), marks=pytest.mark.slow)])
def test_heads_of_states_are_cut_and_joined(
    start_cluster: StartCluster, make_checkpoint: Callable[..., Path], sizes: tuple[int, int]
) -> None:
    """Hybrid: attention's keys and values, and the four blocks of heads of a recurrent state."""
    checkpoint = make_checkpoint("qwen3_next")
    with start_cluster(shape(sizes, STATES), checkpoint) as cluster:
        talk(cluster, Reference(checkpoint), EVERY)


@pytest.mark.slow
def test_the_kvstore_keeps_pages_uncut(
    start_cluster: StartCluster, make_checkpoint: Callable[..., Path]
) -> None:
    """Saved from two ranks, restored to two ranks of a worker that has just started."""
    checkpoint = make_checkpoint("qwen3")
    reference = Reference(checkpoint)
    context = [random.Random(9).randrange(100, reference.vocab_size) for _ in range(200)]
    tokens = reference.greedy(context, 10)
    alone = Shape(prefill=0, tp=2, kvstore={"offload_delay_s": 0.0, "holder_timeout_s": 2.0})
    with start_cluster(alone, checkpoint) as cluster:
        first = cluster.generate(context, max_tokens=10, session_id="s")
        assert first.token_ids == tokens
        pages = (len(context) + 10 - 1) // alone.page_size
        until(lambda: cluster.metrics("kvstore").get("baton_tier_pages") == pages)
        cluster.kill("decode-0")
        cluster.start(["decode-0"])
        restored = cluster.generate(context, max_tokens=10, session_id="s")
        assert restored.token_ids == tokens
        assert restored.usage.pages_moved == (len(context) - 1) // alone.page_size
