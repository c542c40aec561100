"""Speculation across the binding: what is reserved, what may be accepted, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baton_scheduler import Admission, CacheGroup, Config, Goal, Reply, Role, Scheduler, Step

CONFIG: dict[str, Any] = {
    "role": Role.DECODE,
    "page_size": 4,
    "num_pages": 16,
    "max_running": 4,
    "max_step_tokens": 32,
    "max_chunk_tokens": 32,
    "max_context": 64,
    "max_waiting": 8,
    "hold_us": 100,
    "max_draft_tokens": 4,
}


def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


def flags(*values: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array(values, np.uint8)


def decoding() -> Scheduler:
    """Request 1 has tokens 0, 1, 2 and a sampled 3."""
    core = Scheduler(Config(**CONFIG))
    admission = core.submit(
        1, ints(0, 1, 2), max_new_tokens=20, key=bytes(16), goal=Goal.GENERATE, now_us=0
    )
    assert admission is Admission.ACCEPTED
    core.complete(core.plan(0), ints(3), flags(0), 0)
    return core


def drafted() -> tuple[Scheduler, Step]:
    core = decoding()
    assert core.draft(1, 4, ints(4, 5, 9)) is Reply.ACCEPTED
    return core, core.plan(1)


def test_a_row_feeds_the_guesses_and_wants_logits_for_each() -> None:
    core, step = drafted()
    assert step.rows.tolist() == [[0, 4, 3, 4, 0, 1]]
    assert step.token_ids.tolist() == [3, 4, 5, 9]
    core.complete(step, ints(4, 5, 6), flags(0), 1, accepted=ints(3))
    assert core.stats().generated_tokens == 4
    assert core.plan(2).token_ids.tolist() == [6]
    assert core.check_invariants() == ""


def test_a_row_may_bring_its_next_token_only() -> None:
    core, step = drafted()
    core.complete(step, ints(8), flags(0), 1)
    assert core.stats().generated_tokens == 2
    assert core.plan(2).rows[0, :3].tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("tokens", "accepted", "message"),
    [
        (ints(4, 5, 9, 6, 7), ints(5), "accepted is 5 for sampling row 0 of step 2: must be"),
        (ints(), ints(0), "accepted is 0 for sampling row 0 of step 2: must be at least 1"),
        (ints(5, 6), ints(2), "another token than was drafted in sampling row 0 of step 2"),
        (ints(4, 6), ints(1), "tokens has 2 entries"),
        (ints(4), ints(2), "tokens has 1 entries"),
        (ints(4), ints(1, 1), "accepted has 2 entries: step 2 has 1 sampling rows"),
        (ints(4, -1), ints(2), "negative token id in sampling row 0"),
    ],
)
def test_what_cannot_be_accepted_is_refused_and_changes_nothing(
    tokens: np.ndarray[Any, np.dtype[np.int32]],
    accepted: np.ndarray[Any, np.dtype[np.int32]],
    message: str,
) -> None:
    core, step = drafted()
    with pytest.raises(ValueError, match=message):
        core.complete(step, tokens, flags(0), 1, accepted=accepted)
    assert core.stats().generated_tokens == 1
    core.complete(step, ints(4, 5, 9, 6), flags(1), 1, accepted=ints(4))
    assert core.stats().generated_tokens == 5
    assert core.stats().free_pages + core.stats().cached_pages == 16


def test_late_and_early_drafts() -> None:
    core = decoding()
    assert core.draft(2, 4, ints(4)) is Reply.IGNORED
    assert core.draft(1, 3, ints(4)) is Reply.IGNORED
    assert core.draft(1, 5, ints(4)) is Reply.REJECTED
    step = core.plan(1)
    assert core.draft(1, 4, ints(4)) is Reply.REJECTED
    core.abandon(step)
    with pytest.raises(ValueError, match="tokens has 5 entries: max_draft_tokens is 4"):
        core.draft(1, 4, ints(1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="token ids are not negative"):
        core.draft(1, 4, ints(-1))


def test_what_cannot_be_drafted_for_is_refused() -> None:
    with pytest.raises(ValueError, match="max_draft_tokens is 65: must be at most 64"):
        Config(**(CONFIG | {"max_draft_tokens": 65}))
    with pytest.raises(ValueError, match="max_draft_tokens is 4 with side_groups"):
        Config(**CONFIG, side_groups=[CacheGroup.window(8, pages=8)])
