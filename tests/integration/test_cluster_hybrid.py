"""A cluster over a model whose pages are not exchanged: prompts are computed where they decode."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import Reference

MAX_TOKENS = 8
LENGTHS = [1, 16, 33, 64, 200]


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("qwen3_5")


@pytest.fixture(scope="module")
def cluster(checkpoint: Path, start_cluster: StartCluster) -> Iterator[Cluster]:
    # Settings under which every prompt of another model would be handed over.
    shape = Shape(routing={"local_suffix_tokens": 0}, worker={"snapshot_every": 32})
    with start_cluster(shape, checkpoint) as cluster:
        yield cluster


def test_answers_equal_transformers_and_later_turns_reuse(
    cluster: Cluster, checkpoint: Path
) -> None:
    reference = Reference(checkpoint)
    draw = random.Random(3)
    prompts = [[draw.randrange(100, reference.vocab_size) for _ in range(n)] for n in LENGTHS]
    expected = [reference.greedy(prompt, MAX_TOKENS) for prompt in prompts]
    answers = cluster.generate_all(prompts, max_tokens=MAX_TOKENS)
    assert [answer.token_ids for answer in answers] == expected
    longer = [[*prompt, *tokens, 7] for prompt, tokens in zip(prompts, expected, strict=True)]
    again = cluster.generate_all(longer, max_tokens=MAX_TOKENS)
    assert [answer.token_ids for answer in again] == [
        reference.greedy(prompt, MAX_TOKENS) for prompt in longer
    ]
    # A prompt leaves its snapshot at its last boundary, and decoding at those it passes.
    assert [answer.usage.cached_tokens for answer in again] == [0, 0, 32, 64, 192]
    assert cluster.metrics("prefill-0")["baton_prompt_tokens_computed_total"] == 0
