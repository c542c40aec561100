"""Cache groups beside the token pages: identities, what is made of them, leases that do not mix."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import baton_scheduler
from baton.v1.kv_pb2 import CacheGroupIdentity, CacheIdentity, Peer
from baton_kvstore.groups import StateJudge, beside, in_group, shares
from baton_kvstore.judge import Judge
from baton_kvstore.ring import HashRing
from baton_kvstore.tier import TierHolder, make_tier
from baton_telemetry import KvstoreMetrics

PAGES = [bytes([i]) * 16 for i in range(40)]
TWO = CacheIdentity(
    page_size=16,
    groups=[
        CacheGroupIdentity(name="full", page_bytes=4096),
        CacheGroupIdentity(name="state", page_bytes=16384, snapshot_every=32),
    ],
)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 7))
def test_identities_are_the_schedulers(page: bytes, group: int) -> None:
    row = np.frombuffer(page, np.uint8).reshape(1, 16)
    assert in_group(page, group) == baton_scheduler.in_group(row, group).tobytes()
    assert in_group(in_group(page, group), group) == page


def test_a_state_is_taken_for_its_token_pages_sake() -> None:
    judge = Judge(sightings=100, sessions=10)
    states = StateJudge(judge, 1, 1 << 20)
    marks = beside(PAGES[:6], 1)
    assert not any(states.admits(page) for page in marks)
    judge.turn(b"s" * 16, b"t" * 16, PAGES[:6], 0.0, 10.0)
    assert all(states.admits(page) for page in marks)
    # Of no group is what is of the other one.
    assert not any(states.admits(page) for page in PAGES[:6])
    assert not any(judge.admits(page) for page in marks)
    assert states.tenant(marks[0]) == b"t" * 16
    # The later a state, the more is computed for the want of it.
    worths = [states.worth(page, copy=False) for page in marks]
    assert worths == sorted(worths) and worths[0] > 0
    judge.over(judge.sessions.close(b"s" * 16))
    assert not any(states.admits(page) for page in marks)


@given(st.integers(0, 1 << 24))
def test_groups_reach_equally_far_within_the_budget(capacity: int) -> None:
    tokens, states = shares(TWO, capacity)
    assert tokens * 4096 + states * 16384 <= capacity
    assert 0 <= tokens * 16 - states * 32 < 32
    assert tokens * 4096 + states * 16384 > capacity - 4096 - 16384


def test_leases_of_two_groups_do_not_mix() -> None:
    judge = Judge(sightings=100, sessions=10)
    me = Peer(name="store", epoch=1)
    assert make_tier(me, TWO, 16384, judge, saves=False) is None  # not one state fits
    tier = make_tier(me, TWO, 1 << 20, judge, saves=False)
    assert tier is not None
    try:
        holder = TierHolder(KvstoreMetrics(), 10.0)
        holder.tier = tier
        held = [PAGES[:4], beside(PAGES[:4], 1)[1::2]]
        for group, pages in zip(tier.groups, held, strict=True):
            group.pool.reserve(pages, 0.0)
            for page in pages:
                group.pool.filled(page, 7)
        rows = [np.frombuffer(b"".join(p), np.uint8).reshape(-1, 16) for p in held]
        grants = [holder.grant("r", rows[group], 5000, group) for group in (0, 1)]
        assert [len(grant.pages) for grant in grants] == [4, 2]
        assert not holder.grant("r", rows[1], 5000, 0).lease
        leases = [grant.lease for grant in grants]
        assert len(set(leases)) == 2
        assert holder.renew([*leases, 99], 5000) == [99]
        assert holder.release(leases[1:]) == [True]
        assert [group.pool.leased for group in tier.groups] == [4, 0]
        assert holder.release([*leases, 99]) == [True, False, False]
        assert [group.pool.leased for group in tier.groups] == [0, 0]
    finally:
        tier.close()


@given(st.sets(st.sampled_from(PAGES)), st.booleans())
def test_all_takes_what_a_turn_has_had_of_several_groups(had: set[bytes], several: bool) -> None:
    """An identity says nothing of its group, so that without a turn a state looks as tokens do."""
    judge = Judge(sightings=100, sessions=10, admit_all=True)
    judge.several_groups = several
    states = StateJudge(judge, 1, 1 << 20)
    judge.turn(b"", b"t" * 16, list(had), 0.0, 0.0)
    marks = beside(PAGES, 1)
    assert [judge.admits(page) for page in PAGES] == [page in had or not several for page in PAGES]
    if several:
        assert [states.admits(mark) for mark in marks] == [page in had for page in PAGES]
        assert not any(judge.admits(mark) for mark in marks)
        assert not any(states.admits(page) for page in PAGES)


MEMBERS = [f"kvstore-{i}:7300" for i in range(3)]


@given(
    st.lists(st.binary(min_size=16, max_size=16), unique=True, min_size=1, max_size=20),
    st.integers(1, 3),
)
def test_a_state_is_kept_where_its_token_page_is(pages: list[bytes], turns: int) -> None:
    """So that whoever loses the one loses nothing else with the other; hot ones alike."""
    ring = HashRing(MEMBERS)
    tokens, states = [], []
    for member in MEMBERS:

        def mine(page: bytes, hot: bool, member: str = member) -> bool:
            return member in ring.owners(page, 2 if hot else 1)

        judge = Judge(sightings=100, sessions=10, mine=mine, hot_uses=3)
        for _ in range(turns):
            judge.turn(b"s" * 16, b"", pages, 0.0, 10.0)
        tokens.append([judge.admits(page) for page in pages])
        states.append([StateJudge(judge, 1, 1).admits(page) for page in beside(pages, 1)])
    assert states == tokens
    assert np.sum(states, axis=0).tolist() == [1 if turns < 3 else 2] * len(pages)
