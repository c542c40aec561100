"""The DRAM tier's pool: slots are never in two places, leased ones are never given away."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton_kvstore.pool import PagePool

PAGES = [bytes([i]) * 16 for i in range(12)]
SLOTS = 6


class Pool(RuleBasedStateMachine):
    """Follows which page's bytes are in which slot, as an arena would."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = PagePool(SLOTS)
        self.filling: dict[bytes, int] = {}
        self.content: dict[int, bytes] = {}
        self.leases: dict[int, list[tuple[int, bytes]]] = {}
        self.published: set[bytes] = set()

    @rule(pages=st.lists(st.sampled_from(PAGES), unique=True, max_size=4))
    def reserve(self, pages: list[bytes]) -> None:
        wanted = [page for page in pages if not self.pool.knows(page)]
        slots = self.pool.reserve(wanted, self.now).tolist()
        for page, slot in zip(wanted, slots, strict=False):
            assert slot not in self.filling.values()
            self.filling[page] = slot
            self.content[slot] = b"being written"

    @rule(whole=st.booleans(), pick=st.integers(0, 5))
    def finish(self, whole: bool, pick: int) -> None:
        if not self.filling:
            return
        page = sorted(self.filling)[pick % len(self.filling)]
        slot = self.filling.pop(page)
        if whole:
            self.content[slot] = page
            self.pool.filled(page, page[0])
        else:
            self.pool.unfilled(page)

    @rule(pages=st.lists(st.sampled_from(PAGES), unique=True, min_size=1, max_size=4))
    def grant(self, pages: list[bytes]) -> None:
        lease, slots, sums = self.pool.grant(pages, self.now, 2.0)
        assert sums.tolist() == [page[0] for page in pages[: len(slots)]]
        if lease:
            self.leases[lease] = list(zip(slots.tolist(), pages, strict=False))

    @rule(pick=st.integers(0, 5))
    def release(self, pick: int) -> None:
        if not self.leases:
            return
        lease = sorted(self.leases)[pick % len(self.leases)]
        read = self.leases.pop(lease)
        (valid,) = self.pool.release([lease], self.now)
        if valid:
            # The verdict: what was leased is still what it was.
            assert all(self.content[slot] == page for slot, page in read)

    @rule(step=st.floats(0, 1.5))
    def wait(self, step: float) -> None:
        self.now += step

    @invariant()
    def slots_add_up_and_the_directory_is_told(self) -> None:
        assert self.pool.held + self.pool.free + self.pool.filling == SLOTS
        added, removed = self.pool.take_changes()
        self.published |= set(added)
        self.published -= set(removed)
        assert self.published == set(self.pool.held_pages())


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_the_least_recently_leased_goes_first_and_the_head_of_a_chain_last() -> None:
    pool = PagePool(4)
    pool.reserve(PAGES[:4], 0.0)
    for page in PAGES[:4]:
        pool.filled(page, 0)
    lease, _, _ = pool.grant(PAGES[:3], 0.0, 10.0)
    pool.release([lease], 0.0)
    pool.reserve(PAGES[4:6], 0.0)
    assert pool.held_pages() == [PAGES[1], PAGES[0]]


def test_pages_under_a_lease_are_not_given_away() -> None:
    pool = PagePool(2)
    pool.reserve(PAGES[:2], 0.0)
    for page in PAGES[:2]:
        pool.filled(page, 0)
    pool.grant(PAGES[:2], 0.0, 10.0)
    assert pool.reserve(PAGES[2:4], 5.0).size == 0
    assert pool.reserve(PAGES[2:4], 11.0).tolist() != []
    with pytest.raises(ValueError, match="held or filling"):
        pool.reserve(PAGES[2:3], 11.0)
    assert np.array_equal(pool.reserve([], 11.0), np.empty(0, np.int32))
