"""The ledger loses no token and repeats none, whoever sends what how often."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from baton.v1 import worker_pb2 as wire
from baton_router.ledger import Gap, Ledger

PROMPT = np.arange(7, dtype=np.int32)
OUTPUT = [100 + i for i in range(20)]


def ledger(max_tokens: int = 20) -> Ledger:
    return Ledger(PROMPT, max_tokens, frozenset({5}))


def update(begin: int, end: int, *, logprobs: bool = False) -> wire.RequestTokens:
    ids = OUTPUT[begin:end]
    chosen = [pb.TokenLogprob(token_id=token) for token in ids] if logprobs else []
    return wire.RequestTokens(first_position=len(PROMPT) + begin, token_ids=ids, logprobs=chosen)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=30), st.booleans())
def test_any_order_of_overlapping_updates(spans: list[tuple[int, int]], logprobs: bool) -> None:
    book = ledger()
    delivered: list[int] = []
    for begin, size in spans:
        known = len(book.emitted)
        try:
            new = book.accept(update(begin, min(begin + size, 20), logprobs=logprobs))
        except Gap:
            assert begin > known
            continue
        delivered += new.token_ids
        if logprobs:
            assert [entry.token_id for entry in new.logprobs] == new.token_ids
    assert delivered == book.emitted == OUTPUT[: len(delivered)]


def test_more_than_was_asked_for_is_cut() -> None:
    book = ledger(max_tokens=3)
    assert book.accept(update(0, 10)).token_ids == OUTPUT[:3]
    assert book.complete and book.remaining == 0
    assert book.accept(update(0, 20)).token_ids == []


def test_what_the_next_attempt_starts_with() -> None:
    book = ledger()
    book.accept(update(0, 4))
    assert book.sequence().tolist() == [*PROMPT.tolist(), *OUTPUT[:4]]
    assert (book.length, book.remaining, book.complete) == (11, 16, False)


def test_a_stop_token_completes() -> None:
    book = ledger()
    book.accept(wire.RequestTokens(first_position=7, token_ids=[9, 5]))
    assert book.complete


def test_a_gap_names_the_positions() -> None:
    with pytest.raises(Gap, match="position 9 arrived, but the next one is 7"):
        ledger().accept(update(2, 4))
