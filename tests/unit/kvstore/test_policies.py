"""Worth, eviction order, tenants' shares, admission: properties, and the cases they are for."""

from hypothesis import given, settings
from hypothesis import strategies as st

from baton_kvstore.admission import Sightings, admitted
from baton_kvstore.greedy_dual import GreedyDual
from baton_kvstore.judge import Judge
from baton_kvstore.shelf import Shelf
from baton_kvstore.worth import Sighting, recompute_cost, worth

PAGES = [bytes([i]) * 16 for i in range(40)]
ANY = settings(max_examples=60, deadline=None)


# ---- worth


@ANY
@given(st.integers(0, 200), st.integers(1, 200), st.integers(1, 512))
def test_losing_a_page_costs_everything_after_it(index: int, length: int, tokens: int) -> None:
    alone = [recompute_cost(i, i + 1, tokens) for i in range(length)]
    first = min(index, length - 1)
    assert abs(recompute_cost(index, length, tokens) - sum(alone[first:])) < 1e-6 * sum(alone)
    assert alone == sorted(alone)


@ANY
@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 9), st.booleans(), st.integers(0, 3))
def test_worth_falls_along_a_chain_and_grows_with_use(
    index: int, more: int, uses: int, shared: bool, live: int
) -> None:
    length = index + more + 1

    def at(place: int, n: int, copy: bool = False) -> float:
        seen = Sighting(uses=n, shared=shared, index=place, length=length)
        return worth(seen, live, 64, 1 << 20, copy=copy)

    assert at(index, uses) >= at(index + 1, uses)
    assert at(index, uses + 1) >= at(index, uses)
    assert at(index, uses, copy=True) <= at(index, uses)
    seen = Sighting(uses=uses, index=index, length=length)
    assert worth(seen, 1, 64, 1 << 20) >= worth(seen, 0, 64, 1 << 20)
    assert worth(seen, live, 64, 2 << 20) <= worth(seen, live, 64, 1 << 20)


# ---- order of eviction

WORTH = st.floats(0, 100)


@ANY
@given(st.lists(st.tuples(st.sampled_from(PAGES), WORTH), max_size=60), st.data())
def test_the_least_worth_evictable_goes_first(
    touches: list[tuple[bytes, float]], data: st.DataObject
) -> None:
    order: GreedyDual[bytes] = GreedyDual()
    model: dict[bytes, tuple[float, int]] = {}
    age = 0.0
    for at, (page, value) in enumerate(touches):
        order.touch(page, value)
        model[page] = (age + value, at)
        if data.draw(st.booleans()):
            kept = data.draw(st.sets(st.sampled_from(PAGES), max_size=5))
            expected = min((k for k in model if k not in kept), key=model.__getitem__, default=None)
            assert order.pop(lambda page, kept=kept: page not in kept) == expected
            if expected is not None:
                age = max(age, model.pop(expected)[0])
        assert len(order) == len(model)


def test_worth_ages_so_that_what_was_dear_once_goes_at_last() -> None:
    order: GreedyDual[int] = GreedyDual()
    order.touch(0, 10.0)
    for newcomer in range(1, 100):
        order.touch(newcomer, 1.0)
        if order.pop(lambda _: True) == 0:
            return
    raise AssertionError("the old page was never evicted")


# ---- shares

TENANTS = [b"a", b"b", b"c"]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(0, 39), WORTH), max_size=80),
)
def test_no_tenant_is_pushed_below_its_share(
    capacity: int, wants: list[tuple[bytes, int, float]]
) -> None:
    shelf: Shelf[bytes] = Shelf(capacity)
    owner: dict[bytes, bytes] = {}
    for tenant, number, value in wants:
        page = PAGES[number]
        if page in shelf:
            shelf.rank(page, value)
            continue
        before = {t: shelf.used_by(t) for t in TENANTS}
        share = shelf.share(tenant)
        taken = shelf.take(page, tenant, lambda _: True)
        if taken is None:
            # Everybody else is within their share, and the tenant has nothing to give.
            assert before[tenant] == 0
            assert all(used <= share for used in before.values())
            continue
        place, victim = taken
        assert 0 <= place < capacity
        if victim is not None:
            assert shelf.free == 0
            loser = owner.pop(victim)
            assert loser == tenant or before[loser] > share
        owner[page] = tenant
        shelf.rank(page, value)
        assert len(shelf) == len(owner) == capacity - shelf.free
        assert len({shelf.place(p) for p in owner}) == len(owner)


def test_a_greedy_tenant_gets_what_is_free_and_gives_it_back() -> None:
    shelf: Shelf[bytes] = Shelf(10)
    for page in PAGES[:10]:
        shelf.take(page, b"greedy", lambda _: True)
        shelf.rank(page, 100.0)
    for page in PAGES[10:30]:
        shelf.take(page, b"modest", lambda _: True)
        shelf.rank(page, 0.0)
    assert (shelf.used_by(b"greedy"), shelf.used_by(b"modest")) == (5, 5)


# ---- admission


@ANY
@given(st.integers(0, 5), st.integers(0, 3), st.booleans())
def test_admitted_is_what_is_used_again_or_expected_to_be(
    uses: int, live: int, shared: bool
) -> None:
    assert admitted(Sighting(uses=uses, shared=shared), live) == (uses >= 2 or live > 0 or shared)


def test_a_system_prompt_stays_admitted_when_its_sessions_are_over() -> None:
    judge = Judge(sightings=100, sessions=10)
    for session in (b"1" * 16, b"2" * 16):
        chain = [*PAGES[:2], bytes([200 + session[0]]) * 16]
        judge.turn(session, b"t" * 16, chain, 0.0, 10.0)
    judge.sessions.expire(20.0)
    assert all(judge.admits(page) for page in PAGES[:2])
    assert judge.worth(PAGES[0], copy=False) > judge.worth(PAGES[5], copy=False) == 0.0


def test_a_prompt_of_no_session_is_admitted_at_its_second_use() -> None:
    judge = Judge(sightings=100, sessions=10)
    judge.turn(b"", b"", PAGES[:2], 0.0, 0.0)
    assert not judge.admits(PAGES[0])
    judge.turn(b"", b"", PAGES[:1], 0.0, 0.0)
    assert [judge.admits(page) for page in PAGES[:2]] == [True, False]


def test_sightings_are_bounded_and_forget_the_oldest() -> None:
    seen = Sightings(10)
    seen.used(PAGES[:8], b"")
    seen.used(PAGES[:2], b"")
    seen.used(PAGES[20:28], b"")
    assert len(seen) == 10
    assert [seen.of(page).uses for page in (PAGES[0], PAGES[5], PAGES[27])] == [2, 0, 1]
