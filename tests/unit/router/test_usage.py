"""Usage from reports: cached tokens are those that nobody computed, over all attempts."""

from __future__ import annotations

import pytest

from baton.v1 import inference_pb2 as pb
from baton.v1 import kv_pb2 as kv
from baton.v1 import worker_pb2 as wire
from baton_router.usage import AttemptCost, Clock, total_usage

LOCAL, REMOTE, RESTORE = pb.ROUTE_LOCAL, pb.ROUTE_REMOTE, pb.ROUTE_RESTORE


def cost(**fields: object) -> wire.RequestCost:
    return wire.RequestCost(**fields)  # type: ignore[arg-type]


def attempt(route: pb.Route, sequence: int = 100, **fields: object) -> AttemptCost:
    return AttemptCost(route, 100, sequence, planned_cached=48, **fields)  # type: ignore[arg-type]


FIRST = kv.FirstToken(cached_tokens=64, pages_moved=2, bytes_moved=20)
CASES = {
    "local": (attempt(LOCAL, decode=cost(reused_tokens=32, computed_tokens=68)), LOCAL, 32, 0),
    "restore": (
        attempt(RESTORE, decode=cost(fetched_tokens=64, computed_tokens=36, pages_moved=4)),
        RESTORE, 64, 4,
    ),
    "restore that found nothing": (
        attempt(RESTORE, decode=cost(computed_tokens=100)), LOCAL, 0, 0,
    ),
    "remote, told by decode": (
        attempt(REMOTE, decode=cost(fetched_tokens=100, pages_moved=7, first_token=FIRST)),
        REMOTE, 64, 9,
    ),
    "remote, told by prefill": (
        attempt(
            REMOTE,
            decode=cost(fetched_tokens=100, pages_moved=7),
            prefill=cost(computed_tokens=30, pages_moved=1),
        ),
        REMOTE, 70, 8,
    ),
    "remote, all pages were here": (
        attempt(REMOTE, decode=cost(reused_tokens=96, fetched_tokens=0, first_token=FIRST)),
        REMOTE, 64, 2,
    ),
    "prefill lost before anything arrived": (
        attempt(REMOTE, decode=cost(computed_tokens=100)), LOCAL, 0, 0,
    ),
    "prefill lost half way": (
        attempt(REMOTE, decode=cost(fetched_tokens=80, computed_tokens=20, pages_moved=5)),
        REMOTE, 48, 5,
    ),
    "second attempt, longer sequence": (
        attempt(LOCAL, 120, decode=cost(reused_tokens=112, computed_tokens=8)), LOCAL, 100, 0,
    ),
    "nobody said anything": (attempt(LOCAL), LOCAL, 48, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_attempt(name: str) -> None:
    known, route, cached, moved = CASES[name]
    usage = total([known])
    assert (usage.route, usage.cached_tokens, usage.pages_moved) == (route, cached, moved)
    assert usage.prefill_worker == ("p" if route == REMOTE else "")


def total(attempts: list[AttemptCost]) -> pb.Usage:
    return total_usage(
        attempts,
        clock=Clock(),
        generated_tokens=3,
        deaths=len(attempts) - 1,
        prefill_worker="p",
        decode_worker="d",
    )


def test_what_an_earlier_attempt_computed_was_computed() -> None:
    first = attempt(LOCAL, decode=cost(computed_tokens=100))
    second = attempt(LOCAL, 110, decode=cost(reused_tokens=96, computed_tokens=14))
    usage = total([first, second])
    assert (usage.cached_tokens, usage.attempts) == (0, 2)


def test_exact_is_known_without_waiting() -> None:
    assert attempt(LOCAL, decode=cost(computed_tokens=1)).exact
    assert attempt(REMOTE, decode=cost(fetched_tokens=9, first_token=FIRST)).exact
    assert not attempt(REMOTE, decode=cost(fetched_tokens=9)).exact
    assert attempt(REMOTE, decode=cost(fetched_tokens=9), prefill=cost()).exact
    assert not attempt(LOCAL).exact
