"""Groups beside full attention through the Python face: an executor that keeps what pages hold."""

from __future__ import annotations

import random

import numpy as np
import pytest

from baton_scheduler import (
    Admission,
    CacheGroup,
    Config,
    Goal,
    Reply,
    Retention,
    Role,
    Scheduler,
    Step,
    in_group,
    page_hashes,
)

KEY = bytes(range(16))
PAGE = 4
WINDOW = 6
EVERY = 8
SLOTS = 4


def scheduler(*groups: CacheGroup) -> Scheduler:
    return Scheduler(
        Config(
            role=Role.FUSED,
            page_size=PAGE,
            num_pages=24,
            max_running=SLOTS,
            max_step_tokens=16,
            max_chunk_tokens=12,
            max_context=80,
            max_waiting=16,
            hold_us=50,
            side_groups=groups,
        )
    )


def tag(tokens: list[int]) -> int:
    """What a cache must hold after `tokens`: a function of all of them."""
    return hash(tuple(tokens)) or 1


class Executor:
    """Keeps a window group's pages and a state group's states, as a model would."""

    def __init__(self, window_pages: int, state_pages: int) -> None:
        self.table = np.full((SLOTS, 32), -1, np.int64)
        self.window = np.zeros((window_pages, PAGE), np.int64)
        self.states = np.zeros(state_pages, np.int64)

    def run(self, step: Step, tokens: dict[int, list[int]]) -> None:
        """Check all that the rows read, then write all that they write."""
        self.table[step.slot_resets] = -1
        for group, slot, index, page in step.side_deltas.tolist():
            assert group == 1
            self.table[slot, index] = page
        assert step.state_pages.shape == (len(step.rows), 1, 2)
        rows = list(zip(step.requests.tolist(), step.rows, step.state_pages[:, 0], strict=True))
        for request, (slot, _, context, *_), (read, _) in rows:
            assert (read == -1) == (context == 0)
            if context:
                assert self.states[read] == tag(tokens[request][:context])
            for position in range(max(0, context - WINDOW + 1), context):
                held = self.window[self.table[slot, position // PAGE], position % PAGE]
                assert held == tag(tokens[request][: position + 1])
        for request, (slot, query, context, *_), (_, write) in rows:
            self.states[write] = tag(tokens[request][: context + query])
            for position in range(context, context + query):
                page = self.table[slot, position // PAGE]
                assert page >= 0
                self.window[page, position % PAGE] = tag(tokens[request][: position + 1])


@pytest.mark.parametrize("seed", range(12))
def test_rows_read_only_what_was_written_for_their_tokens(seed: int) -> None:
    draw = random.Random(seed)
    pages, states = draw.randint(3, 9), draw.randint(2, 6)
    core = scheduler(
        CacheGroup.window(WINDOW, pages=pages), CacheGroup.state(every=EVERY, pages=states)
    )
    executor = Executor(pages, states)
    tokens: dict[int, list[int]] = {}
    for now in range(1000):
        if now < 100 and draw.random() < 0.3:
            request = len(tokens) + 1
            length = draw.randint(1, 40)
            family = draw.randint(0, 1)
            tokens[request] = [family if i < 20 else draw.randint(0, 2) for i in range(length)]
            admission = core.submit(
                request,
                np.array(tokens[request], np.int32),
                max_new_tokens=draw.randint(1, 12),
                key=KEY,
                goal=Goal.GENERATE,
                now_us=now,
            )
            assert admission in (Admission.ACCEPTED, Admission.QUEUE_FULL)
        step = core.plan(now)
        executor.run(step, tokens)
        sampled = step.requests[step.rows[:, 3] == 1].tolist()
        out = np.array([draw.randint(0, 2) for _ in sampled], np.int32)
        done = core.complete(step, out, np.zeros(len(out), np.uint8), now)
        for request, token in zip(sampled, out.tolist(), strict=True):
            tokens[request].append(token)
        for group, digest, request, index in zip(
            done.sealed_groups.tolist(),
            done.sealed_hashes,
            done.sealed_requests.tolist(),
            done.sealed_indices.tolist(),
            strict=True,
        ):
            known = np.array(tokens[request][: (index + 1) * PAGE], np.int32)
            assert bytes(page_hashes(known, PAGE, KEY, group=group)[index]) == bytes(digest)
        assert core.check_invariants() == ""
        for group in range(3):
            pool = core.pool_stats(group)
            assert pool.free + pool.cached + pool.owned + pool.referenced == pool.total
    stats = core.stats()
    assert stats.waiting + stats.running == 0
    assert all(core.pool_stats(g).owned + core.pool_stats(g).referenced == 0 for g in range(3))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("window", {"tokens": 0, "pages": 4}, r"side_groups\[0\] has a window of 0 tokens"),
        ("state", {"every": 6, "pages": 4}, r"every 6 tokens: must be a multiple of page_size"),
        ("window", {"tokens": 9, "pages": 2}, r"side_groups\[0\] has 2 pages: must be at least 3"),
        ("state", {"every": 8, "pages": -1}, "has 0 pages: must be at least 2"),
    ],
)
def test_config_names_what_is_wrong(kind: str, values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler(getattr(CacheGroup, kind)(**values))


def test_a_fetch_names_the_pages_of_every_group() -> None:
    core = scheduler(CacheGroup.window(WINDOW, pages=4), CacheGroup.state(every=8, pages=4))
    prompt = np.arange(18, dtype=np.int32)
    core.submit(1, prompt, max_new_tokens=2, key=KEY, goal=Goal.AWAIT, now_us=0)
    step = core.plan(1)
    hashes = {g: page_hashes(prompt, PAGE, KEY, tail=True, group=g) for g in range(3)}
    assert np.array_equal(in_group(hashes[0], 2), hashes[2])
    named = list(zip(step.fetch_groups.tolist(), step.fetch_pages[:, 0].tolist(), strict=True))
    last = (len(prompt) - 1) // PAGE
    first_seen = (len(prompt) + 1 - WINDOW) // PAGE
    assert named == [
        *((0, index) for index in range(last + 1)),
        *((1, index) for index in range(first_seen, last + 1)),
        (2, last),
        (2, 16 // PAGE - 1),
    ]
    for (group, index), digest in zip(named, step.fetch_hashes, strict=True):
        assert bytes(hashes[group][index]) == bytes(digest)
    targets = step.fetch_pages[:, 1].tolist()
    for (group, index), page in zip(named, targets, strict=True):
        assert page in core.pages(1, group).tolist()
        assert core.pages_arrived(1, index, 1, group) is Reply.ACCEPTED
    assert core.fetch_ended(1, 3, 2) is Reply.ACCEPTED
    assert core.state(1) == "Decoding"
    with pytest.raises(ValueError, match="group is 3"):
        core.pages_arrived(1, 0, 1, 3)


def test_groups_are_numbered_and_refused_by_number() -> None:
    core = scheduler(CacheGroup.window(WINDOW, pages=4), CacheGroup.state(every=8, pages=4))
    assert core.pool_stats(0).total == 24
    with pytest.raises(ValueError, match="group is 3: this scheduler has groups 0 to 2"):
        core.pool_stats(3)
    with pytest.raises(ValueError, match="group is -1"):
        core.grant(np.zeros((1, 16), np.uint8), 0, 1, group=-1)
    assert CacheGroup.state(every=8, pages=4).keeps is Retention.STATE


def test_a_groups_identities_are_its_own() -> None:
    tokens = np.arange(12, dtype=np.int32)
    hashes = {bytes(h) for g in range(4) for h in page_hashes(tokens, PAGE, KEY, group=g)}
    assert len(hashes) == 12


def test_snapshots_and_windows_can_be_leased() -> None:
    core = scheduler(CacheGroup.window(WINDOW, pages=4), CacheGroup.state(every=8, pages=4))
    tokens = np.arange(11, dtype=np.int32)
    core.submit(1, tokens, max_new_tokens=1, key=KEY, goal=Goal.HAND_OVER, now_us=0)
    while core.state(1) != "Prefilled":
        step = core.plan(1)
        samples = int(step.rows[:, 3].sum())
        core.complete(step, np.ones(samples, np.int32), np.zeros(samples, np.uint8), 1)
    tail = page_hashes(tokens, PAGE, KEY, tail=True, group=2)[-1:]
    lease = core.grant(tail, 1, 10, group=2)
    assert lease.id and len(lease.pages) == 1
    assert core.pool_stats(2).leased == 1
    windows = page_hashes(tokens, PAGE, KEY, tail=True, group=1)[-2:]
    assert len(core.grant(windows, 1, 10, group=1).pages) == 2


def test_a_prefix_is_reused_as_far_as_every_group_serves_it() -> None:
    core = scheduler(CacheGroup.window(WINDOW, pages=6), CacheGroup.state(every=EVERY, pages=6))
    tokens = np.arange(23, dtype=np.int32)
    for request in (1, 2):
        core.submit(request, tokens, max_new_tokens=1, key=KEY, goal=Goal.GENERATE, now_us=0)
        while core.state(request) is not None:
            step = core.plan(1)
            samples = int(step.rows[:, 3].sum())
            core.complete(step, np.ones(samples, np.int32), np.zeros(samples, np.uint8), 1)
    assert core.lookup(tokens, KEY) == 16
    assert core.stats().reused_tokens == 16
