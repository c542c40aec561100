"""Deadlines across the binding: a plan ends what is late, wherever it stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baton_scheduler import Admission, Config, FinishReason, Goal, Reply, Role, Scheduler

CONFIG: dict[str, Any] = {
    "role": Role.DECODE,
    "page_size": 4,
    "num_pages": 16,
    "max_running": 2,
    "max_step_tokens": 32,
    "max_chunk_tokens": 32,
    "max_context": 64,
    "max_waiting": 8,
    "hold_us": 100,
}


def submit(core: Scheduler, request: int, **more: Any) -> None:
    given: dict[str, Any] = {"max_new_tokens": 20, "key": bytes(16), "goal": Goal.GENERATE}
    admission = core.submit(request, np.arange(5, dtype=np.int32), now_us=0, **(given | more))
    assert admission is Admission.ACCEPTED


def test_running_waiting_and_fetching_requests_end_at_their_deadline() -> None:
    core = Scheduler(Config(**CONFIG))
    submit(core, 1, deadline_us=50)
    submit(core, 2, deadline_us=50, goal=Goal.AWAIT)
    submit(core, 3, deadline_us=50)
    submit(core, 4)
    step = core.plan(0)
    core.complete(step, np.array([1], np.int32), np.zeros(1, np.uint8), 0)
    assert [core.state(r) for r in (1, 2, 3)] == ["Decoding", "Fetching", "Queued"]
    step = core.plan(50)
    assert not len(step.finished_requests)
    core.abandon(step)
    step = core.plan(51)
    assert step.finished_requests.tolist() == [1, 2, 3]
    assert set(step.finished_reasons.tolist()) == {FinishReason.DEADLINE}
    assert core.state(2) == "Draining"
    assert core.fetch_ended(2, None, 52) is Reply.ACCEPTED
    assert step.requests.tolist() == [4]
    assert core.check_invariants() == ""


def test_a_deadline_is_a_time() -> None:
    core = Scheduler(Config(**CONFIG))
    with pytest.raises(ValueError, match="deadline_us is 0: must be at least 1; None for none"):
        submit(core, 1, deadline_us=0)
