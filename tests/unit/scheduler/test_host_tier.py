"""The host tier through the Python face: an executor that really moves pages."""

from __future__ import annotations

import random

import numpy as np
import pytest

from baton_scheduler import CacheGroup, Config, Goal, Reply, Role, Scheduler

KEY = bytes(range(16))
PAGE = 4
PAGES = 12


def config(host_pages: int, *groups: CacheGroup) -> Config:
    return Config(
        role=Role.FUSED,
        page_size=PAGE,
        num_pages=PAGES,
        max_running=3,
        max_step_tokens=16,
        max_chunk_tokens=12,
        max_context=60,
        max_waiting=16,
        hold_us=50,
        side_groups=groups,
        host_pages=host_pages,
    )


def tag(tokens: list[int]) -> int:
    return hash(tuple(tokens)) or 1


def test_a_host_tier_keeps_pages_of_full_attention_alone() -> None:
    with pytest.raises(ValueError, match="host_pages is 4 with side_groups"):
        config(4, CacheGroup.window(4, pages=4))


def test_an_unknown_offload_is_answered_by_value() -> None:
    assert Scheduler(config(4)).offload_ended(7, True) is Reply.IGNORED


@pytest.mark.parametrize("seed", range(8))
def test_what_is_restored_is_what_was_computed(seed: int) -> None:
    draw = random.Random(seed)
    host_pages = draw.randint(4, 24)
    core = Scheduler(config(host_pages))
    table = np.full((3, 32), -1, np.int64)
    content = np.zeros((PAGES, PAGE), np.int64)
    host = np.zeros((host_pages, PAGE), np.int64)
    tokens: dict[int, list[int]] = {}
    copies: list[tuple[int, int, int]] = []  # in flight: offload, page, host page
    restores: dict[int, list[tuple[int, int, int]]] = {}
    for now in range(1000):
        if now < 150 and draw.random() < 0.3:
            request, family = len(tokens) + 1, draw.randint(0, 4)
            tokens[request] = [family] * draw.randint(1, 24)
            core.submit(
                request,
                np.array(tokens[request], np.int32),
                max_new_tokens=draw.randint(1, 12),
                key=KEY,
                goal=Goal.GENERATE,
                now_us=now,
            )
        step = core.plan(now)
        table[step.slot_resets] = -1
        for slot, index, page in step.page_deltas.tolist():
            table[slot, index] = page
        copies += [
            (ticket, page, host_page)
            for ticket, (page, host_page) in zip(
                step.offloads.tolist(), step.offload_pages.tolist(), strict=True
            )
        ]
        for request, (index, host_page, page) in zip(
            step.restore_requests.tolist(), step.restore_pages.tolist(), strict=True
        ):
            restores.setdefault(request, []).append((index, host_page, page))
            content[page] = 0
        sampled = []
        for request, (slot, query, context, samples, *_) in zip(
            step.requests.tolist(), step.rows.tolist(), strict=True
        ):
            for position in range(context + query):
                page, at = table[slot, position // PAGE], position % PAGE
                if position >= context:
                    content[page, at] = tag(tokens[request][: position + 1])
                assert content[page, at] == tag(tokens[request][: position + 1])
            if samples:
                sampled.append(request)
        out = np.array([draw.randint(0, 2) for _ in sampled], np.int32)
        core.complete(step, out, np.zeros(len(out), np.uint8), now)
        for request, token in zip(sampled, out.tolist(), strict=True):
            tokens[request].append(token)
        while copies and draw.random() < 0.5:
            ticket, page, host_page = copies.pop(draw.randrange(len(copies)))
            complete = draw.random() < 0.8
            host[host_page] = content[page] if complete else 0
            assert core.offload_ended(ticket, complete) is Reply.ACCEPTED
        for request in list(restores):
            if draw.random() < 0.5:
                continue
            arrived = restores.pop(request)
            if draw.random() < 0.2:  # the rest is lost, and computed
                arrived = arrived[: len(arrived) // 2]
            for index, host_page, page in arrived:
                content[page] = host[host_page]
                assert core.pages_arrived(request, index, 1) is Reply.ACCEPTED
            assert core.fetch_ended(request, None, now) is Reply.ACCEPTED
        assert core.check_invariants() == ""
    stats = core.stats()
    assert stats.waiting + stats.running + stats.fetching == 0
    assert stats.restored_tokens > 0
