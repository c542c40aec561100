"""The cluster says what transformers says, and the decode worker never ran the prompt."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import Reference

MAX_TOKENS = 12
LENGTHS = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 48, 64, 65, 100, 127, 160, 255, 300, 401, 512, 600]
COMPUTED = "baton_prompt_tokens_computed_total"
MOVED = "baton_pages_moved_total"


@pytest.fixture(scope="module")
def prompts(reference: Reference) -> list[list[int]]:
    """Prompts of 1 to 600 tokens that share no first page."""
    draw = random.Random(7)
    return [[draw.randrange(100, reference.vocab_size) for _ in range(n)] for n in LENGTHS]


@pytest.fixture(scope="module")
def expected(reference: Reference, prompts: list[list[int]]) -> list[list[int]]:
    return [reference.greedy(prompt, MAX_TOKENS) for prompt in prompts]


@pytest.fixture(scope="module", params=[1, 2], ids=["tp1", "tp2"])
def cluster(request: pytest.FixtureRequest, start_cluster: StartCluster) -> Iterator[Cluster]:
    # A remote route for every prompt, however short, so that all pages are handed over.
    shape = Shape(
        tp=request.param,
        routing={"local_suffix_tokens": 0},
        worker={"max_chunk_tokens": 128},
    )
    with start_cluster(shape) as cluster:
        yield cluster


def test_alone(cluster: Cluster, prompts: list[list[int]], expected: list[list[int]]) -> None:
    for prompt, tokens in zip(prompts, expected, strict=True):
        answer = cluster.generate(prompt, max_tokens=MAX_TOKENS, tenant="alone")
        assert answer.token_ids == tokens, f"prompt of {len(prompt)} tokens"
        assert answer.usage.prompt_tokens == len(prompt)
        assert answer.usage.generated_tokens == MAX_TOKENS


def test_batched(cluster: Cluster, prompts: list[list[int]], expected: list[list[int]]) -> None:
    answers = cluster.generate_all(prompts, max_tokens=MAX_TOKENS, tenant="batched")
    assert [answer.token_ids for answer in answers] == expected


def test_decode_worker_never_ran_a_prompt(cluster: Cluster, prompts: list[list[int]]) -> None:
    """Its counter of computed prompt tokens stays at zero; the pages came by NIXL."""
    before = cluster.metrics("decode-0")
    prefill_before = cluster.metrics("prefill-0")
    answers = cluster.generate_all(prompts, max_tokens=2, tenant="counted")
    after = cluster.metrics("decode-0")
    prefill_after = cluster.metrics("prefill-0")
    tokens = sum(map(len, prompts))
    pages = sum(-(-len(prompt) // cluster.shape.page_size) for prompt in prompts)

    assert after[COMPUTED] == 0
    assert prefill_after[COMPUTED] - prefill_before[COMPUTED] == tokens
    assert after[MOVED] - before[MOVED] == pages
    assert sum(answer.usage.pages_moved for answer in answers) == pages
    assert all(answer.usage.bytes_moved > 0 for answer in answers)
