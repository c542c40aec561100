"""A cluster that speculates says what transformers says, in fewer steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from baton.v1 import inference_pb2

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .engine_worker import prompts
from .oracle import Reference
from .speculating import MODEL, VOCAB, spoken

PROPOSED = "baton_spec_decode_num_draft_tokens_total"
ACCEPTED = "baton_spec_decode_num_accepted_tokens_total"
COMPUTED = "baton_prompt_tokens_computed_total"
GENERATED = "baton_generation_tokens_total"
STEPS = "baton_step_seconds_count"


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Iterator[Cluster]:
    # A remote route for every prompt, so that all pages are handed over.
    shape = Shape(
        model={"speculative": {"method": "mtp", "tokens": 1}}, routing={"local_suffix_tokens": 0}
    )
    with start_cluster(shape, MODEL) as cluster:
        yield cluster


def test_greedy_answers_are_those_of_transformers(cluster: Cluster) -> None:
    reference = Reference(MODEL)
    asked = [*spoken(4), *prompts(VOCAB, [5, 64, 130], seed=2)]
    answers = cluster.generate_all(asked, max_tokens=24)
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer.token_ids == reference.greedy(prompt, 24)
        assert answer.usage.generated_tokens == 24


def test_guesses_hold_and_are_counted(cluster: Cluster) -> None:
    before, asked = cluster.metrics("decode-0"), spoken(12)[4:]
    stop = inference_pb2.StopParams(max_tokens=60)
    answers = [cluster.generate(prompt, tenant="alone", stop=stop) for prompt in asked]
    after = cluster.metrics("decode-0")
    said = sum(len(answer.token_ids) for answer in answers)
    gained = {name: after[name] - before[name] for name in (PROPOSED, ACCEPTED, GENERATED, STEPS)}
    assert after[COMPUTED] == 0
    # One guess of each answer may fail, the one behind its end.
    assert gained[PROPOSED] - gained[ACCEPTED] <= len(asked)
    # First tokens came from the prefill worker; every step brings one token and what held.
    assert gained[STEPS] == said - len(asked) - gained[ACCEPTED]
    assert gained[GENERATED] == said
    assert gained[ACCEPTED] > said / 3
