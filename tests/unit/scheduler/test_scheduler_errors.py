"""Misuse across the binding is a ValueError that says what to do; nothing changes by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baton_scheduler import Admission, Config, Goal, Reply, Role, Scheduler, page_hashes

KEY = bytes(16)
CONFIG: dict[str, Any] = {
    "role": Role.FUSED,
    "page_size": 4,
    "num_pages": 8,
    "max_running": 2,
    "max_step_tokens": 8,
    "max_chunk_tokens": 8,
    "max_context": 24,
    "max_waiting": 2,
    "hold_us": 100,
}


def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


def flags(*values: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array(values, np.uint8)


def submit(scheduler: Scheduler, request: int, tokens: int, **change: Any) -> Admission:
    given: dict[str, Any] = {"max_new_tokens": 2, "key": KEY, "goal": Goal.GENERATE, "now_us": 0}
    return scheduler.submit(request, ints(*range(tokens)), **(given | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page_size": 0}, "page_size is 0: must be at least 1"),
        ({"num_pages": -3}, "num_pages is 0: must be at least 1"),
        ({"max_step_tokens": 1}, r"must be at least max_running \(2\)"),
        ({"hold_us": -1}, "hold_us is -1: must not be negative"),
        ({"max_context": 1 << 40}, "must be at most"),
    ],
)
def test_config_names_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**(CONFIG | change))


def test_admissions() -> None:
    scheduler = Scheduler(Config(**(CONFIG | {"max_context": 64})))
    assert submit(scheduler, 1, 60, max_new_tokens=5) is Admission.TOO_LONG
    assert submit(scheduler, 1, 30, max_new_tokens=4) is Admission.NEVER_FITS
    assert submit(scheduler, 1, 30, max_new_tokens=3) is Admission.ACCEPTED
    assert submit(scheduler, 1, 3) is Admission.DUPLICATE
    assert submit(scheduler, 2, 3) is Admission.ACCEPTED
    assert submit(scheduler, 3, 3) is Admission.QUEUE_FULL


@pytest.mark.parametrize(
    "tokens",
    [
        [1, 2],
        np.array([1, 2]),
        np.array([1.0], np.float32),
        np.zeros((2, 2), np.int32),
        np.arange(8, dtype=np.int32)[::2],
    ],
    ids=["list", "int64", "float", "two dimensions", "strided"],
)
def test_arrays_of_another_kind_are_refused(tokens: Any) -> None:
    scheduler = Scheduler(Config(**CONFIG))
    with pytest.raises(ValueError, match=r"tokens is a .*C-contiguous numpy array, int32"):
        scheduler.submit(1, tokens, max_new_tokens=1, key=KEY, goal=Goal.GENERATE, now_us=0)
    with pytest.raises(ValueError, match="int32"):
        page_hashes(tokens, 4, KEY)


def test_values_out_of_range_are_refused() -> None:
    scheduler = Scheduler(Config(**CONFIG))
    with pytest.raises(ValueError, match="tokens is empty"):
        submit(scheduler, 1, 0)
    with pytest.raises(ValueError, match="key has 3 bytes: must have 16"):
        submit(scheduler, 1, 2, key=b"abc")
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        submit(scheduler, 1, 2, max_new_tokens=0)
    with pytest.raises(ValueError, match="token ids are not negative"):
        scheduler.submit(1, ints(-4), max_new_tokens=1, key=KEY, goal=Goal.AWAIT, now_us=0)
    with pytest.raises(ValueError, match=r"hashes .*uint8 \[n, 16\]"):
        scheduler.grant(np.zeros((2, 15), np.uint8), 0, 1)
    with pytest.raises(ValueError, match="ttl_us is 0"):
        scheduler.grant(np.zeros((2, 16), np.uint8), 0, 0)


def test_a_completion_is_checked_before_anything_is_applied() -> None:
    scheduler = Scheduler(Config(**CONFIG))
    submit(scheduler, 1, 3)
    step = scheduler.plan(1)
    with pytest.raises(ValueError, match="tokens has 2 entries: step 1 has 1 sampling rows"):
        scheduler.complete(step, ints(1, 2), flags(0), 1)
    with pytest.raises(ValueError, match="flags has 0 entries"):
        scheduler.complete(step, ints(1), flags(), 1)
    with pytest.raises(ValueError, match="flags has a value above 2"):
        scheduler.complete(step, ints(1), flags(3), 1)
    with pytest.raises(ValueError, match="negative token id"):
        scheduler.complete(step, ints(-1), flags(0), 1)
    with pytest.raises(ValueError, match="another scheduler"):
        Scheduler(Config(**CONFIG)).complete(step, ints(1), flags(0), 1)
    with pytest.raises(ValueError, match="still in flight"):
        scheduler.plan(2)
    assert scheduler.stats().generated_tokens == 0
    scheduler.complete(step, ints(1), flags(0), 1)
    with pytest.raises(ValueError, match="completed or abandoned before"):
        scheduler.complete(step, ints(1), flags(0), 1)
    with pytest.raises(ValueError, match="completed or abandoned before"):
        scheduler.abandon(step)


def test_a_step_without_rows_may_be_dropped_but_not_kept() -> None:
    scheduler = Scheduler(Config(**CONFIG))
    first = scheduler.plan(1)
    second = scheduler.plan(2)
    with pytest.raises(ValueError, match="completed or abandoned before"):
        scheduler.complete(first, ints(), flags(), 2)
    assert len(scheduler.complete(second, ints(), flags(), 2).finished_requests) == 0


def test_an_abandoned_step_is_planned_again() -> None:
    scheduler = Scheduler(Config(**CONFIG))
    submit(scheduler, 1, 3)
    step = scheduler.plan(1)
    rows = step.rows.copy()
    scheduler.abandon(step)
    assert np.array_equal(scheduler.plan(2).rows, rows)


def test_views_are_read_only_and_outlive_their_scheduler() -> None:
    scheduler = Scheduler(Config(**CONFIG))
    submit(scheduler, 1, 3)
    rows = scheduler.plan(1).rows
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 9
    del scheduler
    assert rows.tolist() == [[0, 3, 0, 1, 0, 0]]


def test_unknown_requests_and_leases_are_answered_by_value() -> None:
    scheduler = Scheduler(Config(**CONFIG))
    assert scheduler.cancel(9) is Reply.IGNORED
    assert scheduler.pages_arrived(9, 0, 1) is Reply.IGNORED
    assert scheduler.fetch_ended(9, None, 0) is Reply.IGNORED
    assert scheduler.handed_over(9) is Reply.IGNORED
    assert not scheduler.renew(9, 0, 1)
    assert scheduler.state(9) is None


def test_poisoned_pages_are_not_found_again() -> None:
    scheduler = Scheduler(Config(**CONFIG))
    submit(scheduler, 1, 4, max_new_tokens=8)
    scheduler.complete(scheduler.plan(1), ints(7), flags(0), 1)
    assert scheduler.lookup(ints(0, 1, 2, 3), KEY) == 4
    done = scheduler.complete(scheduler.plan(2), ints(0), flags(2), 2)
    assert done.finished_reasons.tolist() == [2]
    assert scheduler.lookup(ints(0, 1, 2, 3), KEY) == 0
    assert len(scheduler.plan(3).evicted_hashes) == 1
