"""One engine, a model with recurrent states: tokens equal transformers', snapshots are reused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from baton_engine import (
    Done,
    EngineConfig,
    FailReason,
    FinishReason,
)

from .engine_worker import EngineWorker, prompts, running
from .oracle import Reference
from .test_engine_ranks import run

LENGTHS = [1, 2, 16, 31, 33, 128, 129, 250]
NEW = 8
EVERY = 32


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("qwen3_next")


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


async def answers(
    worker: EngineWorker, name: str, asked: list[list[int]], new: int = NEW
) -> list[list[int]]:
    """All of them at once."""
    attempts = [worker.submit(f"{name}{i}", prompt, new) for i, prompt in enumerate(asked)]
    for attempt in attempts:
        end = await attempt.ended()
        assert isinstance(end, Done) and end.reason is FinishReason.LENGTH, end
    return [attempt.tokens for attempt in attempts]


@pytest.mark.parametrize("variant", ["qwen3_next", "qwen3_5", "qwen3_5_moe"])
async def test_greedy_tokens_equal_transformers(
    make_checkpoint: Callable[..., Path], variant: str
) -> None:
    reference = Reference(make_checkpoint(variant))
    asked = prompts(reference.vocab_size, LENGTHS)
    expected = [reference.greedy(prompt, NEW) for prompt in asked]
    async with running(make_checkpoint(variant), "fused") as worker:
        assert await answers(worker, "together", asked) == expected
        await worker.settled()
        again = [await answers(worker, f"alone{i}", [prompt]) for i, prompt in enumerate(asked)]
        assert [tokens for (tokens,) in again] == expected


async def test_turns_continue_from_the_last_snapshot(
    checkpoint: Path, reference: Reference
) -> None:
    """Decoding leaves a snapshot at every boundary it passes, a prompt at the last one."""
    conversation = prompts(reference.vocab_size, [45], seed=4)[0]
    more = prompts(reference.vocab_size, [20, 37, 90], seed=5)
    known = 0
    async with running(checkpoint, "fused", snapshot_every=EVERY) as worker:
        for turn in range(4):
            attempt = worker.submit(f"t{turn}", conversation, 21)
            end = await attempt.ended()
            assert isinstance(end, Done)
            assert end.cost.reused_tokens == known
            assert end.cost.computed_tokens == len(conversation) - known
            assert attempt.tokens == reference.greedy(conversation, 21)
            conversation = conversation + attempt.tokens
            known = (len(conversation) - 1) // EVERY * EVERY
            conversation += more[turn] if turn < 3 else []
        assert known > 3 * EVERY


async def test_many_continue_one_prefix(checkpoint: Path, reference: Reference) -> None:
    """A hit in the middle, from one snapshot, by requests that run side by side."""
    shared = prompts(reference.vocab_size, [3 * EVERY], seed=8)[0]
    asked = [shared + tail for tail in prompts(reference.vocab_size, [5, 17, 40, 64], seed=9)]
    expected = [reference.greedy(prompt, 12) for prompt in asked]
    async with running(checkpoint, "fused", snapshot_every=EVERY) as worker:
        await answers(worker, "first", [[*shared, 7]])
        assert await answers(worker, "then", asked, 12) == expected
        for i in range(len(asked)):
            (end,) = worker.attempts[(f"then{i}", 1)].of(Done)
            assert end.cost.reused_tokens == len(shared)
        await worker.settled()


@pytest.fixture(scope="module")
def long_answers(reference: Reference) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and their 30 next tokens."""
    asked = prompts(reference.vocab_size, [40] * 6, seed=3)
    return asked, [reference.greedy(prompt, 30) for prompt in asked]


@pytest.mark.parametrize(
    "tight", [{"num_pages": 16}, {"state_pages": 5}, {"num_pages": 17, "state_pages": 8}]
)
async def test_tight_pools_retract_and_still_give_the_same_tokens(
    checkpoint: Path,
    long_answers: tuple[list[list[int]], list[list[int]]],
    tight: dict[str, int],
) -> None:
    asked, expected = long_answers
    settings = {"max_context": 256, "snapshot_every": 16, **tight}
    async with running(checkpoint, "fused", **settings) as worker:
        assert await answers(worker, "tight", asked, 30) == expected
        if "num_pages" in tight:
            assert worker.pool.retractions > 0
        await worker.settled()


async def test_a_storm_of_prefixes_and_cancellations(
    checkpoint: Path, reference: Reference
) -> None:
    """Requests over one trunk start and end at any moment; who finishes has the right tokens."""
    rng = random.Random(11)
    trunk = prompts(reference.vocab_size, [150], seed=11)[0]
    limits = {"num_pages": 40, "max_context": 320, "state_pages": 13, "snapshot_every": 16}
    limits["debug_poison_free_pages"] = True
    finished: list[tuple[list[int], list[int]]] = []

    async with running(checkpoint, "fused", max_running=6, max_chunk_tokens=48, **limits) as worker:

        async def one(name: str) -> None:
            prompt = trunk[: rng.randrange(1, 150)] + [rng.randrange(2000)] * rng.randrange(0, 30)
            attempt = worker.submit(name, prompt, rng.choice([1, 3, 12, 20]))
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.1)
                worker.engine.cancel(name, 1)
            end = await attempt.ended(60)
            if isinstance(end, Done):
                finished.append((prompt, attempt.tokens))
            else:
                assert end.reason is FailReason.CANCELLED, end

        async with asyncio.TaskGroup() as group:
            for i in range(50):
                group.create_task(one(f"s{i}"))
                await asyncio.sleep(rng.random() * 0.01)
        await worker.settled()
        core = worker.engine._loaded.core
        with core.lock:
            assert core.scheduler.check_invariants() == ""
            states = core.scheduler.pool_stats(1)
        assert states.free + states.cached == states.total
        assert worker.pool.reused_tokens > 0
    assert len(finished) > 25
    for prompt, tokens in finished[:20]:
        assert tokens == reference.greedy(prompt, len(tokens))


@pytest.mark.timeout(180)
def test_two_ranks_hold_half_of_the_heads_each(
    tmp_path: Path, checkpoint: Path, reference: Reference
) -> None:
    asked = prompts(reference.vocab_size, [1, 33, 64, 150], seed=21)
    output = run(
        tmp_path,
        checkpoint,
        asked,
        """
        async def main():
            async with running(CHECKPOINT, "fused", tp=2, snapshot_every=32) as worker:
                for turn in "ab":  # the second time from snapshots
                    attempts = [worker.submit(f"{turn}{i}", p, 8) for i, p in enumerate(ASKED)]
                    for attempt in attempts:
                        assert isinstance(await attempt.ended(), Done)
                    print(json.dumps([a.tokens for a in attempts]))
                    reused = [a.of(Done)[0].cost.reused_tokens for a in attempts]
                    # The prompt of 64 left its snapshot at 64, but its last token is wanted.
                    assert reused == ([0] * 4 if turn == "a" else [0, 32, 0, 128]), reused
        """,
    )
    expected = [reference.greedy(prompt, 8) for prompt in asked]
    assert output.splitlines() == [str(expected)] * 2


async def test_settings_of_states_are_checked(checkpoint: Path, deepseek_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="snapshot_every is 24; it must be a multiple"):
        EngineConfig(model_path=checkpoint, page_size=16, snapshot_every=24)
    with pytest.raises(ValueError, match="are for models with a recurrent state"):
        async with running(deepseek_checkpoint, state_pages=8):
            pass
