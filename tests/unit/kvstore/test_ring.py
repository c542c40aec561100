"""The ring: everybody agrees, the load is even, and a member that leaves moves only its own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_kvstore.ring import HashRing

MEMBERS = st.sets(st.sampled_from([f"10.0.0.{i}:7300" for i in range(8)]), min_size=1)
PAGES = [i.to_bytes(16, "little") for i in range(400)]


@settings(max_examples=30, deadline=None)
@given(MEMBERS, st.integers(1, 3))
def test_owners_are_different_and_the_same_for_everybody(members: set[str], copies: int) -> None:
    ring, again = HashRing(sorted(members)), HashRing(sorted(members, reverse=True))
    for page in PAGES[:50]:
        owners = ring.owners(page, copies)
        assert owners == again.owners(page, copies)
        assert len(set(owners)) == len(owners) == min(copies, len(members))
        assert ring.owners(page) == owners[:1]


@settings(max_examples=30, deadline=None)
@given(MEMBERS.filter(lambda m: len(m) > 1), st.data())
def test_who_leaves_moves_only_its_own_pages_to_their_second_owners(
    members: set[str], data: st.DataObject
) -> None:
    ring = HashRing(members)
    leaver = data.draw(st.sampled_from(sorted(members)))
    rest = HashRing(members - {leaver})
    for page in PAGES[:100]:
        first, second = ring.owners(page, 2)
        assert rest.owners(page) == [second if first == leaver else first]


def test_the_load_is_even() -> None:
    ring = HashRing([f"kvstore-{i}:7300" for i in range(4)])
    owned = [ring.owners(page)[0] for page in PAGES]
    assert all(50 < owned.count(member) < 170 for member in ring.members)


def test_nobody_is_no_ring() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        HashRing([])
