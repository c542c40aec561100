"""An agent's session over one prefill and one decode worker moves missing pages, and no others.

The oracle knows what was computed where: by plain sets of token prefixes, one per worker, it
says which pages each worker lacks at each turn, and which prompt tokens nobody has computed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from baton.v1 import inference_pb2

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import PageRadix, Reference

PAGE_SIZE = 16


@dataclass
class Oracle:
    """What must move and be computed, turn by turn."""

    prefill: PageRadix = field(default_factory=lambda: PageRadix(PAGE_SIZE))
    decode: PageRadix = field(default_factory=lambda: PageRadix(PAGE_SIZE))
    returned: int = 0  # pages, decode -> prefill
    handed: int = 0  # pages, prefill -> decode
    computed: int = 0  # tokens

    def turn(self, prompt: list[int], generated: list[int]) -> None:
        here, there = (radix.reusable(prompt) for radix in (self.prefill, self.decode))
        known = max(here, there)
        self.returned += (known - here) // PAGE_SIZE
        # The whole prompt, its partial last page included, less the full pages that are there.
        self.handed += -(-len(prompt) // PAGE_SIZE) - there // PAGE_SIZE
        self.computed += len(prompt) - known
        self.prefill.served(prompt, generated[:1])
        self.decode.served(prompt, generated)


@dataclass
class Measured:
    """The workers' own counters."""

    returned: int
    handed: int
    computed: int

    @classmethod
    def of(cls, cluster: Cluster) -> Measured:
        prefill, decode = (cluster.metrics(name) for name in ("prefill-0", "decode-0"))
        computed = "baton_prompt_tokens_computed_total"
        return cls(
            returned=int(prefill.get("baton_pages_moved_total", 0)),
            handed=int(decode.get("baton_pages_moved_total", 0)),
            computed=int(prefill[computed] + decode[computed]),
        )


def replay(
    cluster: Cluster, turns: int, growth: tuple[int, int], reference: Reference, compare: int
) -> tuple[Oracle, Measured]:
    """`growth`: new prompt tokens and generated tokens of a turn, give or take a half."""
    draw = random.Random(40)
    oracle = Oracle()
    context: list[int] = []
    for _ in range(turns):
        new, generated = (draw.randint(mean // 2, mean * 3 // 2) for mean in growth)
        context += [draw.randrange(100, reference.vocab_size) for _ in range(new)]
        answer = cluster.generate(context, max_tokens=generated, session_id="session")
        assert answer.usage.route == inference_pb2.ROUTE_REMOTE
        if len(context) <= compare:
            assert answer.token_ids == reference.greedy(context, generated)
        oracle.turn(context, answer.token_ids)
        context += answer.token_ids
    return oracle, Measured.of(cluster)


def shape(num_pages: int, **worker: int) -> Shape:
    # Every turn goes through the prefill worker: what moves is what is asked for here.
    return Shape(
        page_size=PAGE_SIZE,
        num_pages=num_pages,
        routing={"local_suffix_tokens": 0},
        worker=dict(worker),
    )


@pytest.mark.timeout(300)
def test_a_session_moves_its_missing_pages_and_no_others(
    start_cluster: StartCluster, reference: Reference
) -> None:
    with start_cluster(shape(512)) as cluster:
        oracle, measured = replay(cluster, 8, (90, 30), reference, compare=10_000)
    assert measured == Measured(oracle.returned, oracle.handed, oracle.computed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_forty_turns_to_eight_thousand_tokens(
    start_cluster: StartCluster, reference: Reference
) -> None:
    with start_cluster(shape(1200, max_context=9216)) as cluster:
        oracle, measured = replay(cluster, 40, (160, 44), reference, compare=1_500)
    moved, missing = measured.returned + measured.handed, oracle.returned + oracle.handed
    print(
        f"\n40 turns: {moved} pages moved (prefill -> decode {measured.handed}, back "
        f"{measured.returned}), {missing} were missing: {moved / missing:.3f} (wanted: 1.05)"
        f"\n{measured.computed} prompt tokens computed, the oracle says {oracle.computed}: "
        f"{measured.computed / oracle.computed - 1:.2%} above (wanted: 1%)"
    )
    assert moved <= 1.05 * missing
    assert measured.computed <= 1.01 * oracle.computed
