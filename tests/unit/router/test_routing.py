"""The policy as a table: who holds what, who is busy, and what is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from baton_router.config import RoutingConfig
from baton_router.page_index import Held, Holder
from baton_router.routing import Prompt, WorkerView, choose

COSTS = RoutingConfig()


def holder(name: str) -> Holder:
    return Holder(name, f"{name}:1", 1, name.startswith("kv"))


def view(name: str, **fields: int) -> WorkerView:
    idle = WorkerView(
        name, holder(name), max_context=65_536, total_pages=4096, free_pages=4096, running=0,
        waiting=0,
    )  # fmt: skip
    return replace(idle, **fields)  # type: ignore[arg-type]


def prompt(tokens: int, held: dict[str, int], **fields: object) -> Prompt:
    holders = [Held(holder(name), pages) for name, pages in held.items()]
    holders.sort(key=lambda h: -h.pages)
    base = Prompt(tokens, max_new_tokens=100, page_size=16, bytes_per_token=4096, holders=holders)
    return replace(base, **fields)  # type: ignore[arg-type]


D0, D1, P0, P1 = view("d0"), view("d1"), view("p0"), view("p1")


@dataclass
class Case:
    """Inputs, and the plan's (route, decode, prefill, cached tokens)."""

    tokens: int
    held: dict[str, int]
    expected: tuple[str, str, str | None, int]
    decode: list[WorkerView] = field(default_factory=lambda: [D0])
    prefill: list[WorkerView] = field(default_factory=lambda: [P0])
    costs: RoutingConfig = COSTS
    session: str = ""


THRESHOLD = RoutingConfig(local_suffix_tokens=64)
CASES = {
    "cold and long: a prefill worker": Case(2000, {}, ("REMOTE", "d0", "p0", 0)),
    "cold and short: here": Case(10, {}, ("LOCAL", "d0", None, 0)),
    "no prefill worker": Case(2000, {}, ("LOCAL", "d0", None, 0), prefill=[]),
    "almost everything is here": Case(2000, {"d0": 124}, ("LOCAL", "d0", None, 1984)),
    "threshold: a suffix as long": Case(
        2000, {"d0": 121}, ("LOCAL", "d0", None, 1936), costs=THRESHOLD
    ),
    "threshold: one page longer": Case(
        2000, {"d0": 120}, ("REMOTE", "d0", "p0", 1920), costs=THRESHOLD
    ),
    "threshold zero: even one token": Case(
        1, {}, ("REMOTE", "d0", "p0", 0), costs=RoutingConfig(local_suffix_tokens=0)
    ),
    "prefill fetches what decode holds": Case(2000, {"d0": 60}, ("REMOTE", "d0", "p0", 960)),
    "prefill that holds the prefix": Case(
        4000, {"p1": 120}, ("REMOTE", "d0", "p1", 1920), prefill=[P0, P1]
    ),
    "kvstore holds it all: restore": Case(2000, {"kv": 124}, ("RESTORE", "d0", None, 1984)),
    "the decode worker that holds it": Case(
        2000, {"d1": 124}, ("LOCAL", "d1", None, 1984), decode=[D0, D1]
    ),
    "holder too busy: restore elsewhere": Case(
        2000,
        {"d1": 124},
        ("RESTORE", "d0", None, 1984),
        decode=[D0, view("d1", waiting=20)],
    ),
    "the least loaded": Case(
        10, {}, ("LOCAL", "d1", None, 0), decode=[view("d0", running=8), D1]
    ),
    "free pages count": Case(
        2000, {}, ("REMOTE", "d1", "p0", 0), decode=[view("d0", free_pages=10), D1]
    ),
    "the session's worker": Case(
        10, {}, ("LOCAL", "d1", None, 0), decode=[D0, D1], session="d1"
    ),
    "the session's worker, drowning": Case(
        10, {}, ("LOCAL", "d0", None, 0), decode=[D0, view("d1", waiting=5)], session="d1"
    ),
    "a queue at one prefill worker": Case(
        2000, {}, ("REMOTE", "d0", "p1", 0), prefill=[view("p0", pending_tokens=9000), P1]
    ),
    "queues at every prefill worker": Case(
        2000, {}, ("LOCAL", "d0", None, 0), prefill=[view("p0", pending_tokens=90_000)]
    ),
    "only one is large enough": Case(
        2000, {}, ("REMOTE", "d1", "p0", 0), decode=[view("d0", total_pages=20), D1]
    ),
    "all pages held, the last token is computed": Case(
        32, {"d0": 2}, ("LOCAL", "d0", None, 16)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_plan(name: str) -> None:
    case = CASES[name]
    plan = choose(
        prompt(case.tokens, case.held, session_worker=case.session),
        case.decode,
        case.prefill,
        case.costs,
    )
    assert plan is not None
    route = pb.Route.Name(plan.route).removeprefix("ROUTE_")
    assert (route, plan.decode, plan.prefill, plan.cached_tokens) == case.expected


def test_sources_are_those_from_whom_something_is_gained() -> None:
    plan = choose(prompt(2000, {"d0": 60, "p0": 10, "kv": 90}), [D0], [P0], THRESHOLD)
    assert plan is not None and plan.route == pb.ROUTE_REMOTE
    assert [(s.holder.name, s.pages) for s in plan.prefill_sources] == [("kv", 90), ("d0", 60)]
    assert [(s.holder.name, s.pages) for s in plan.decode_sources] == [("kv", 90)]


def test_nobody_is_large_enough() -> None:
    assert choose(prompt(2000, {}), [view("d0", max_context=1000)], [P0], COSTS) is None
    assert choose(prompt(2000, {}), [], [P0], COSTS) is None


WORKERS = st.builds(
    lambda free, running, waiting, pending: {
        "free_pages": free, "running": running, "waiting": waiting, "pending_tokens": pending,
    },
    st.integers(0, 4096), st.integers(0, 64), st.integers(0, 64), st.integers(0, 10_000),
)  # fmt: skip
HELD = st.dictionaries(st.sampled_from(["d0", "d1", "p0", "kv", "gone"]), st.integers(1, 300))


@given(
    st.integers(1, 4000),
    HELD,
    st.lists(WORKERS, min_size=1, max_size=2),
    st.lists(WORKERS, max_size=2),
    st.sampled_from([None, 0, 64, 100_000]),
)
def test_every_plan_is_one_that_can_be_carried_out(
    tokens: int,
    held: dict[str, int],
    decode: list[dict[str, int]],
    prefill: list[dict[str, int]],
    threshold: int | None,
) -> None:
    views = [view(f"d{i}", **fields) for i, fields in enumerate(decode)]
    others = [view(f"p{i}", **fields) for i, fields in enumerate(prefill)]
    costs = RoutingConfig(local_suffix_tokens=threshold)
    asked = prompt(tokens, held)
    plan = choose(asked, views, others, costs)
    assert plan is not None
    assert plan.decode in {v.name for v in views}
    assert (plan.prefill is not None) == (plan.route == pb.ROUTE_REMOTE)
    assert 0 <= plan.cached_tokens < tokens
    for sources, reader in (
        (plan.decode_sources, plan.decode),
        (plan.prefill_sources, plan.prefill),
    ):
        pages = [source.pages for source in sources]
        assert pages == sorted(pages, reverse=True)
        assert all(held.get(reader or "", 0) < p <= asked.usable_pages for p in pages)
        assert reader not in {source.holder.name for source in sources}
    if plan.route == pb.ROUTE_RESTORE:
        assert plan.decode_sources
    assert plan == choose(asked, views, others, costs), "the choice can be repeated"
