"""LeaseBook against a model: no page is free while a lease on it could be believed."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton_transfer import LeaseBook


class Leases(RuleBasedStateMachine):
    """The model keeps (pages, deadline) of every lease and forgets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.let_go: list[int] = []
        self.book = LeaseBook(5, self.let_go.extend)
        self.model: dict[int, tuple[set[int], float]] = {}

    def live(self) -> dict[int, tuple[set[int], float]]:
        return {i: lease for i, lease in self.model.items() if lease[1] > self.now}

    @rule(pages=st.sets(st.integers(0, 9), min_size=1), ttl=st.floats(0.5, 5))
    def grant(self, pages: set[int], ttl: float) -> None:
        lease = self.book.grant(np.array(sorted(pages), np.int32), self.now, ttl)
        assert lease not in self.model
        self.model[lease] = (pages, self.now + ttl)

    @rule(pick=st.integers(0, 20), ttl=st.floats(0.1, 5))
    def renew(self, pick: int, ttl: float) -> None:
        expired = self.book.renew([pick], self.now, ttl)
        if pick in self.live():
            assert expired == []
            pages, deadline = self.model[pick]
            self.model[pick] = (pages, max(deadline, self.now + ttl))
        else:
            assert expired == [pick]

    @rule(pick=st.integers(0, 20))
    def release(self, pick: int) -> None:
        valid = self.book.release([pick], self.now)
        assert valid == [pick in self.live()]
        self.model.pop(pick, None)

    @rule(step=st.floats(0, 3))
    def wait(self, step: float) -> None:
        self.now += step
        self.book.expire(self.now)

    @invariant()
    def leased_pages_are_those_of_live_leases(self) -> None:
        self.book.expire(self.now)
        held = set().union(*(pages for pages, _ in self.live().values()))
        assert self.book.leased_pages == len(held)
        assert all(self.book.is_leased(page) == (page in held) for page in range(10))
        assert len(self.book) == len(self.live())


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_a_shared_page_is_let_go_once_by_its_last_lease() -> None:
    let_go: list[int] = []
    book = LeaseBook(1, let_go.extend)
    first = book.grant(np.array([1, 2], np.int32), 0.0, 10.0)
    second = book.grant(np.array([2, 3], np.int32), 0.0, 1.0)
    assert book.release([first], 0.5) == [True]
    assert let_go == [1]
    assert book.release([second], 2.0) == [False]
    assert let_go == [1, 2, 3]


def test_ids_start_above_zero() -> None:
    with pytest.raises(ValueError, match="start at 1"):
        LeaseBook(0, lambda pages: None)
