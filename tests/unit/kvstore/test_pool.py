"""The tiers' pool: places are never in two hands, leased ones are never given away."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton_kvstore.judge import Judge
from baton_kvstore.pool import Move, PagePool

PAGES = [bytes([i]) * 16 for i in range(12)]
TENANTS = [b"", b"a" * 16, b"b" * 16]
PLACES = 6
SOME = st.lists(st.sampled_from(PAGES), unique=True, min_size=1, max_size=4)


class Pool(RuleBasedStateMachine):
    """Follows which page's bytes are in which place and slot, as an arena and a file would."""

    slots = 0

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.judge = Judge(sightings=100, sessions=4)
        self.pool = PagePool(PLACES, self.judge, saves=self.slots > 0)
        self.pool.disk.grow(self.slots)
        self.filling: dict[bytes, int] = {}
        self.content: dict[int, bytes] = {}
        self.on_disk: dict[int, bytes] = {}
        self.saving: list[Move] = []
        self.loading: list[Move] = []
        self.leases: dict[int, list[tuple[int, bytes]]] = {}
        self.published: set[bytes] = set()

    @rule(pages=SOME)
    def reserve(self, pages: list[bytes]) -> None:
        wanted = [page for page in pages if not self.pool.knows(page)]
        places = self.pool.reserve(wanted, self.now).tolist()
        for page, place in zip(wanted, places, strict=False):
            assert place not in self.filling.values()
            assert place not in [move.place for move in (*self.saving, *self.loading)]
            self.filling[page] = place
            self.content[place] = b"being written"

    @rule(whole=st.booleans(), pick=st.integers(0, 5))
    def finish(self, whole: bool, pick: int) -> None:
        if not self.filling:
            return
        page = sorted(self.filling)[pick % len(self.filling)]
        place = self.filling.pop(page)
        if whole:
            self.content[place] = page
            self.pool.filled(page, page[0])
        else:
            self.pool.unfilled(page)

    @rule(pages=SOME)
    def grant(self, pages: list[bytes]) -> None:
        lease, places, sums = self.pool.grant(pages, self.now, 2.0)
        assert sums.tolist() == [page[0] for page in pages[: len(places)]]
        if lease:
            self.leases[lease] = list(zip(places.tolist(), pages, strict=False))

    @rule(pick=st.integers(0, 5))
    def release(self, pick: int) -> None:
        if not self.leases:
            return
        lease = sorted(self.leases)[pick % len(self.leases)]
        read = self.leases.pop(lease)
        (valid,) = self.pool.release([lease], self.now)
        if valid:
            # The verdict: what was leased is still what it was.
            assert all(self.content[place] == page for place, page in read)

    @rule(step=st.floats(0, 1.5))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(pages=SOME, tenant=st.sampled_from(TENANTS), session=st.sampled_from(TENANTS))
    def turn(self, pages: list[bytes], tenant: bytes, session: bytes) -> None:
        freed = self.judge.turn(session, tenant, pages, self.now, 5.0)
        self.pool.judged_anew([*freed, *pages])

    @rule(pages=SOME)
    def drop(self, pages: list[bytes]) -> None:
        self.pool.drop(pages)
        assert not set(pages) & set(self.pool.held_pages())

    @rule(most=st.integers(1, 3))
    def save(self, most: int) -> None:
        for slot in self.pool.take_erased():
            self.on_disk.pop(slot, None)
        for move in self.pool.to_save(most):
            assert self.content[move.place] == move.page
            assert move.slot not in [other.slot for other in (*self.saving, *self.loading)]
            self.saving.append(move)
            self.on_disk[move.slot] = b"being written"

    @rule(takes=st.booleans())
    def disk_takes(self, takes: bool) -> None:
        self.pool.disk_takes = takes and self.slots > 0

    @rule(whole=st.booleans())
    def saved(self, whole: bool) -> None:
        if self.saving:
            move = self.saving.pop(0)
            assert self.content[move.place] == move.page
            if whole:
                self.on_disk[move.slot] = move.page
            self.pool.saved(move.page, whole=whole)

    @rule(pages=SOME)
    def load(self, pages: list[bytes]) -> None:
        for move in self.pool.to_load(pages, self.now):
            assert self.on_disk[move.slot] == move.page
            assert move.place not in self.filling.values()
            self.loading.append(move)
            self.content[move.place] = b"being written"

    @rule(whole=st.booleans())
    def loaded(self, whole: bool) -> None:
        if self.loading:
            move = self.loading.pop(0)
            assert self.on_disk[move.slot] == move.page
            if whole:
                self.content[move.place] = move.page
            self.pool.loaded(move.page, whole=whole)

    @invariant()
    def places_add_up_and_the_directory_is_told(self) -> None:
        busy = len(self.filling) + len(self.loading)
        assert self.pool.in_dram + self.pool.free + busy == PLACES
        added, removed = self.pool.take_changes()
        self.published |= set(added)
        self.published -= set(removed)
        assert self.published == set(self.pool.held_pages())

    def teardown(self) -> None:
        """Whatever happened: once everything ends and is dropped, every place is free."""
        while self.filling:
            self.finish(True, 0)
        while self.saving:
            self.saved(True)
        while self.loading:
            self.loaded(False)
        self.pool.expire(self.now + 100)
        self.pool.drop(PAGES)
        assert self.pool.free == PLACES
        assert self.pool.disk.free == self.slots
        assert self.pool.held == self.pool.unsaved == 0


class PoolOverDisk(Pool):
    slots = 8


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestPoolOverDisk = PoolOverDisk.TestCase
TestPoolOverDisk.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def filled(pool: PagePool, pages: list[bytes]) -> PagePool:
    pool.reserve(pages, 0.0)
    for page in pages:
        pool.filled(page, page[0])
    return pool


def judge() -> Judge:
    return Judge(sightings=100, sessions=10)


def test_the_least_recently_leased_goes_first_and_the_head_of_a_chain_last() -> None:
    pool = filled(PagePool(4, judge()), PAGES[:4])
    lease, _, _ = pool.grant(PAGES[:3], 0.0, 10.0)
    pool.release([lease], 0.0)
    pool.reserve(PAGES[4:6], 0.0)
    assert pool.held_pages() == PAGES[:2]


def test_pages_under_a_lease_are_not_given_away() -> None:
    pool = filled(PagePool(2, judge()), PAGES[:2])
    pool.grant(PAGES[:2], 0.0, 10.0)
    assert pool.reserve(PAGES[2:4], 5.0).size == 0
    assert pool.reserve(PAGES[2:4], 11.0).tolist() != []
    with pytest.raises(ValueError, match="held or filling"):
        pool.reserve(PAGES[2:3], 11.0)
    assert np.array_equal(pool.reserve([], 11.0), np.empty(0, np.int32))


def test_a_live_sessions_pages_outlive_others_until_the_session_ends() -> None:
    for ends in (False, True):
        knows = judge()
        knows.turn(b"s" * 16, b"t" * 16, PAGES[:2], 0.0, 60.0)
        pool = filled(PagePool(4, knows), PAGES[:4])
        if ends:
            pool.drop(knows.sessions.close(b"s" * 16))
        pool.reserve(PAGES[4:6], 0.0)
        assert set(pool.held_pages()) == set(PAGES[2:4] if ends else PAGES[:2])


def test_a_saved_page_leaves_dram_and_is_still_held() -> None:
    pool = PagePool(2, judge(), saves=True)
    pool.disk.grow(4)
    filled(pool, PAGES[:2])
    # What waits for the disk is not given away while the disk takes pages.
    assert pool.reserve(PAGES[2:4], 0.0).size == 0
    for move in pool.to_save(10):
        pool.saved(move.page, whole=True)
    filled(pool, PAGES[2:4])
    for move in pool.to_save(10):
        pool.saved(move.page, whole=True)
    assert set(pool.held_pages()) == set(PAGES[:4])
    assert pool.grant(PAGES[:2], 0.0, 1.0)[0] == 0
    moves = pool.to_load(PAGES[:2], 0.0)
    assert [(move.page, move.checksum) for move in moves] == [(p, p[0]) for p in PAGES[:2]]
    pool.loaded(PAGES[0], whole=True)
    pool.loaded(PAGES[1], whole=False)
    assert pool.take_erased() == [moves[1].slot]
    assert pool.grant(PAGES[:2], 0.0, 1.0)[1].tolist() == [moves[0].place]
    assert PAGES[1] not in pool.held_pages()
