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
    assert step.admitted.tolist()[0][1] == 9  # two full pages and a copy of the partial one
    assert len(step.copies) == 1
    complete(core, step)
    assert core.check_invariants() == ""


def test_a_fork_copies_the_page_in_which_it_parts() -> None:
    core = scheduler()
    submit(core, 1, list(range(10)), new=8)
    complete(core, core.plan(0))
    submit(core, 2, [*range(10), 1, 2], fork_of=1)
    step = core.plan(1)
    parent, child = core.pages(1).tolist(), core.pages(2).tolist()
    assert parent[:2] == child[:2]
    assert step.copies.tolist() == [[parent[2], child[2]]]
    assert step.admitted.tolist()[0][1] == 10
    assert step.rows[1, 1:3].tolist() == [2, 10]
    complete(core, step)
    assert core.check_invariants() == ""
    assert not len(core.plan(2).copies)


def test_who_may_not_be_forked() -> None:
    core = scheduler()
    submit(core, 1, list(range(10)), new=8)
    admission = core.submit(
        2,
        np.arange(10, dtype=np.int32),
        max_new_tokens=1,
        key=bytes(range(16)),
        goal=Goal.GENERATE,
        fork_of=1,
        now_us=0,
    )
    assert admission is Admission.FOREIGN
    with pytest.raises(ValueError, match="resumes and fork_of are both given"):
        submit(core, 2, [1], fork_of=1, resumes=1)
