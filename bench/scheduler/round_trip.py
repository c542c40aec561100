"""A decode step as Python sees it: plan, read every array, complete, read the completion.

Prints one JSON object per case; CPU time of this thread, medians. Page size 64.
"""

from __future__ import annotations

import json
import statistics
import time

import numpy as np

from baton_scheduler import Admission, Config, Goal, Role, Scheduler, Step

KEY = bytes(range(16))
PAGE = 64
NAMES = tuple(name for name in dir(Step) if not name.startswith("_"))


def decoding_scheduler(running: int, context: int, steps: int) -> Scheduler:
    """A scheduler in which `running` requests of `context` tokens all decode."""
    pages = running * ((context + 2 * steps + 400) // PAGE + 2)
    scheduler = Scheduler(
        Config(
            role=Role.FUSED,
            page_size=PAGE,
            num_pages=pages,
            max_running=running,
            max_step_tokens=1 << 20,
            max_chunk_tokens=1 << 20,
            max_context=1 << 20,
            max_waiting=running,
            hold_us=0,
        )
    )
    random = np.random.default_rng(1)
    for request in range(1, running + 1):
        prompt = random.integers(0, 50_000, context + request % PAGE, dtype=np.int32)
        admission = scheduler.submit(
            request,
            prompt,
            max_new_tokens=steps + 400,
            key=KEY,
            goal=Goal.GENERATE,
            now_us=0,
        )
        if admission is not Admission.ACCEPTED:
            raise RuntimeError(f"request {request} was not accepted: {admission}")
    return scheduler


def advance(scheduler: Scheduler, now_us: int) -> int:
    """One round trip; returns the number of rows."""
    step = scheduler.plan(now_us)
    for name in NAMES:
        getattr(step, name)
    rows = step.rows
    samples = np.flatnonzero(rows[:, 3])
    tokens = np.full(len(samples), 7, np.int32)
    flags = np.zeros(len(samples), np.uint8)
    completion = scheduler.complete(step, tokens, flags, now_us)
    _ = completion.sealed_pages, completion.sealed_hashes, completion.sealed_requests
    _ = completion.finished_requests, completion.prefilled_requests
    return len(rows)


def measure(running: int, context: int, steps: int = 300) -> dict[str, object]:
    scheduler = decoding_scheduler(running, context, steps)
    now = 0
    while scheduler.stats().waiting:
        advance(scheduler, now := now + 1)
    for _ in range(20):
        advance(scheduler, now := now + 1)
    times = []
    for _ in range(steps - 50):
        start = time.thread_time_ns()
        rows = advance(scheduler, now := now + 1)
        times.append(time.thread_time_ns() - start)
        if rows != running:
            raise RuntimeError(f"a step has {rows} rows, not {running}")
    return {
        "case": f"round trip from Python, {running} running, context {context}",
        "median_us": round(statistics.median(times) / 1e3, 2),
        "must_us": 500,
    }


def main() -> None:
    for running, context in ((1024, 1024), (1024, 4096), (64, 4096)):
        print(json.dumps(measure(running, context)), flush=True)


if __name__ == "__main__":
    main()
