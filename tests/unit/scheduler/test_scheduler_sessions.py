"""Sessions across the binding: parked turns and the requests that go on with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baton_scheduler import Admission, Completion, Config, Goal, Reply, Role, Scheduler, Step

KEY = bytes(16)


def scheduler(**change: Any) -> Scheduler:
    given: dict[str, Any] = {
        "role": Role.DECODE,
        "page_size": 4,
        "num_pages": 16,
        "max_running": 4,
        "max_step_tokens": 32,
        "max_chunk_tokens": 32,
        "max_context": 64,
        "max_waiting": 8,
        "hold_us": 100,
    }
    return Scheduler(Config(**(given | change)))


def submit(core: Scheduler, request: int, tokens: list[int], new: int = 1, **more: Any) -> None:
    given: dict[str, Any] = {"key": KEY, "goal": Goal.GENERATE, "now_us": 0}
    admission = core.submit(
        request, np.array(tokens, np.int32), max_new_tokens=new, **(given | more)
    )
    assert admission is Admission.ACCEPTED


def complete(core: Scheduler, step: Step, token: int = 1, now: int = 0) -> Completion:
    sampling = int(np.count_nonzero(step.rows[:, 3]))
    return core.complete(
        step, np.full(sampling, token, np.int32), np.zeros(sampling, np.uint8), now
    )


def test_a_parked_turn_is_told_as_finished_and_keeps_its_pages() -> None:
    core = scheduler()
    submit(core, 1, list(range(9)), park_us=50)
    done = complete(core, core.plan(10), now=10)
    assert done.finished_requests.tolist() == [1]
    assert core.state(1) == "Parked"
    assert len(core.pages(1)) == 3
    assert core.stats().parked == 1
    assert not len(core.plan(60).demoted_requests)
    assert core.plan(61).demoted_requests.tolist() == [1]
    assert core.state(1) is None
    assert core.stats().demotions == 1


def test_a_park_is_renewed_and_cancelled() -> None:
    core = scheduler()
    submit(core, 1, list(range(9)), new=2, park_us=50)
    step = core.plan(0)
    assert core.renew_park(1, 1000) is Reply.REJECTED
    complete(core, step)
    complete(core, core.plan(1), now=1)
    assert core.renew_park(1, 1000) is Reply.ACCEPTED
    assert not len(core.plan(999).demoted_requests)
    assert core.cancel(1) is Reply.ACCEPTED
    assert core.renew_park(1, 2000) is Reply.IGNORED
    assert core.stats().referenced_pages == 0


def test_what_cannot_be_parked_is_refused() -> None:
    core = scheduler()
    with pytest.raises(ValueError, match="park_us is -1: must not be negative"):
        submit(core, 1, [1], park_us=-1)
    with pytest.raises(ValueError, match="a HAND_OVER request has no turn to park"):
        submit(core, 1, [1], park_us=1, goal=Goal.HAND_OVER)
    with pytest.raises(ValueError, match="resumes is 0: no request has this handle"):
        submit(core, 1, [1], resumes=0)


def test_the_next_turn_takes_a_park_over() -> None:
    core = scheduler()
    submit(core, 1, list(range(9)), park_us=50)
    complete(core, core.plan(0), token=7)
    submit(core, 2, [*range(9), 7, 8, 9], resumes=1)
    assert core.state(1) == "Parked"
    step = core.plan(1)
    assert core.state(1) is None
    assert step.admitted.tolist()[0][1] == 8
    complete(core, step)
    assert core.check_invariants() == ""
