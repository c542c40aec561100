"""The pattern in freed pages would change tokens: what the chaos tests rely on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from baton_engine.poison import PATTERN

from .engine_worker import prompts, running
from .oracle import Reference

NEW = 8


@pytest.mark.timeout(180)
async def test_a_poisoned_page_that_is_used_changes_the_answer(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [60], seed=5)[0]
    right = reference.greedy(prompt, NEW)
    async with running(deepseek_checkpoint, "decode", debug_poison_free_pages=True) as worker:
        first = worker.submit("first", prompt, NEW)
        await first.ended()
        again = worker.submit("again", prompt, NEW)  # reuses the pages of the first
        await again.ended()
        assert first.tokens == again.tokens == right
        arena = worker.engine.arenas[0]
        free = (arena.pages == PATTERN).all(axis=1)
        assert 0 < (~free).sum() < 10, "free pages are poisoned, the held ones are not"
        arena.pages[:] = PATTERN  # as if the pages of the prefix had been given away meanwhile
        stale = worker.submit("stale", prompt, NEW)
        await stale.ended()
        assert stale.tokens != right


@pytest.mark.timeout(180)
async def test_a_poisoned_state_that_is_used_changes_the_answer(
    make_checkpoint: Callable[..., Path],
) -> None:
    checkpoint = make_checkpoint("qwen3_next")
    reference = Reference(checkpoint)
    prompt = prompts(reference.vocab_size, [60], seed=5)[0]
    right = reference.greedy(prompt, NEW)
    settings = {"debug_poison_free_pages": True, "snapshot_every": 32}
    async with running(checkpoint, "decode", **settings) as worker:
        for name in ("first", "again"):  # the second time from the snapshot at 32
            attempt = worker.submit(name, prompt, NEW)
            await attempt.ended()
            assert attempt.tokens == right
        states = worker.engine.arenas[1]
        free = (states.pages == PATTERN).all(axis=1)
        assert 0 < (~free).sum() < 6, "free states are poisoned, the held ones are not"
        states.pages[:] = PATTERN
        stale = worker.submit("stale", prompt, NEW)
        await stale.ended()
        assert stale.tokens != right
