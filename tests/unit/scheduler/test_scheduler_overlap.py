"""Overlap across the binding: the same tokens with one step in flight and with two."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest

from baton_scheduler import Admission, CacheGroup, Config, Goal, Role, Scheduler, Step

PAGE, PAGES, SLOTS = 4, 14, 4
CONFIG: dict[str, Any] = {
    "role": Role.DECODE,
    "page_size": PAGE,
    "num_pages": PAGES,
    "max_running": SLOTS,
    "max_step_tokens": 16,
    "max_chunk_tokens": 8,
    "max_context": 48,
    "max_waiting": 64,
    "hold_us": 100,
}


class Executor:
    """Runs steps in order; its KV is the token itself, so a row sees what was really written."""

    def __init__(self) -> None:
        self.table = np.full((SLOTS, 16), -1, np.int64)
        self.kv = np.full((PAGES, PAGE), -1, np.int64)
        self.last = np.zeros(SLOTS, np.int64)

    def run(self, step: Step) -> np.ndarray[Any, np.dtype[np.int32]]:
        self.table[step.slot_resets] = -1
        for slot, index, page in step.page_deltas.tolist():
            self.table[slot, index] = page
        for source, target in step.copies.tolist():
            self.kv[target] = self.kv[source]
        sampled = []
        for slot, query, context, samples, offset, _ in step.rows.tolist():
            for i, token in enumerate(step.token_ids[offset : offset + query].tolist()):
                position = context + i
                page = self.table[slot, position // PAGE]
                self.kv[page, position % PAGE] = self.last[slot] if token == -1 else token
            if samples:
                pages = self.table[slot, : (context + query - 1) // PAGE + 1]
                seen = self.kv[pages].ravel()[: context + query]
                self.last[slot] = hash(tuple(seen.tolist())) % 7
                sampled.append(self.last[slot])
        return np.array(sampled, np.int32)


def generate(overlap: int, seed: int) -> dict[int, list[int]]:
    draw = random.Random(seed)
    core = Scheduler(Config(**CONFIG, overlap=overlap))
    executor = Executor()
    tokens: dict[int, list[int]] = {}
    for request in range(1, 13):
        prompt = [draw.randint(0, 1) for _ in range(draw.randint(1, 20))]
        admission = core.submit(
            request,
            np.array(prompt, np.int32),
            max_new_tokens=draw.randint(1, 20),
            key=bytes(16),
            goal=Goal.GENERATE,
            now_us=0,
        )
        assert admission is Admission.ACCEPTED
        tokens[request] = []
    over: set[int] = set()
    flying: deque[Step] = deque()
    for now in range(2000):
        planned = core.plan(now)
        if len(planned.rows):
            flying.append(planned)
            if len(flying) <= overlap:
                continue
        else:  # whatever it says of the tables must not wait for a step that follows
            executor.run(planned)
        if not flying:
            break
        step = flying.popleft()
        out = executor.run(step)
        flags = np.zeros(len(out), np.uint8)
        sampling = step.requests[step.rows[:, 3] == 1].tolist()
        for i, (request, token) in enumerate(zip(sampling, out.tolist(), strict=True)):
            if request in over:
                continue
            tokens[request].append(token)
            if token == 6:
                flags[i] = 1
        done = core.complete(step, out, flags, now)
        over |= set(done.finished_requests.tolist())
        assert core.check_invariants() == ""
    assert over == set(tokens)
    return tokens


@pytest.mark.parametrize("seed", range(20))
def test_the_same_tokens_with_one_step_in_flight_and_with_two(seed: int) -> None:
    assert generate(0, seed) == generate(1, seed)


def decoding() -> Scheduler:
    core = Scheduler(Config(**CONFIG, overlap=1))
    core.submit(
        1,
        np.arange(3, dtype=np.int32),
        max_new_tokens=8,
        key=bytes(16),
        goal=Goal.GENERATE,
        now_us=0,
    )
    core.complete(core.plan(0), np.array([3], np.int32), np.zeros(1, np.uint8), 0)
    return core


def test_two_steps_in_flight_and_no_third() -> None:
    core = decoding()
    first, second = core.plan(1), core.plan(2)
    assert first.token_ids.tolist() == [3]
    assert second.token_ids.tolist() == [-1]
    with pytest.raises(ValueError, match="as many steps are in flight as overlap allows"):
        core.plan(3)
    one = (np.array([4], np.int32), np.zeros(1, np.uint8), 3)
    with pytest.raises(ValueError, match="step 3 is not the oldest in flight"):
        core.complete(second, *one)
    core.abandon(first)
    with pytest.raises(ValueError, match="step 3 follows a step that was abandoned"):
        core.complete(second, *one)
    core.abandon(second)
    assert core.plan(4).token_ids.tolist() == [3]


def test_what_cannot_be_overlapped_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap is 2: must be 0"):
        Config(**CONFIG, overlap=2)
    with pytest.raises(ValueError, match="overlap is 1 with side_groups"):
        Config(**CONFIG, overlap=1, side_groups=[CacheGroup.window(8, pages=8)])
