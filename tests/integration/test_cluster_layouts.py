"""Workers of different tensor-parallel sizes exchange pages, in both directions."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import PageRadix, Reference

MOVED = "baton_pages_moved_total"


def moved(cluster: Cluster) -> list[int]:
    """Pages pulled by (prefill, decode) so far."""
    return [int(cluster.metrics(name).get(MOVED, 0)) for name in cluster.workers]


def shape(prefill_tp: int, decode_tp: int) -> Shape:
    """Every prompt is computed by the prefill worker."""
    return Shape(
        tp=decode_tp, prefill_worker={"tp": prefill_tp}, routing={"local_suffix_tokens": 0}
    )


def talk(cluster: Cluster, reference: Reference, page_size: int) -> None:
    """Three turns: every token as transformers', every page there and back over NIXL."""
    draw = random.Random(8)
    radix = PageRadix(page_size)
    context: list[int] = []
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
    assert cluster.metrics("decode-0")["baton_prompt_tokens_computed_total"] == 0


SIZES = [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("prefill_tp", "decode_tp"), SIZES)
def test_latent_pages_fit_every_size(
    start_cluster: StartCluster, reference: Reference, prefill_tp: int, decode_tp: int
) -> None:
    """MLA: latents are the same on every rank, so a page is read whole, once for each rank."""
    with start_cluster(shape(prefill_tp, decode_tp)) as cluster:
        talk(cluster, reference, cluster.shape.page_size)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("prefill_tp", "decode_tp"), SIZES)
def test_heads_are_cut_and_joined(
    start_cluster: StartCluster,
    make_checkpoint: Callable[..., Path],
    prefill_tp: int,
    decode_tp: int,
) -> None:
    """GQA: each rank has its heads, so a page of one size is parts of pages of the other."""
    checkpoint = make_checkpoint("qwen3")
    with start_cluster(shape(prefill_tp, decode_tp), checkpoint) as cluster:
        talk(cluster, Reference(checkpoint), cluster.shape.page_size)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_equal_sizes_move_the_heads_of_each_rank(
    start_cluster: StartCluster, make_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = make_checkpoint("llama")
    with start_cluster(shape(2, 2), checkpoint) as cluster:
        talk(cluster, Reference(checkpoint), cluster.shape.page_size)
