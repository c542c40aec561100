"""Many requests of every kind between three engines, some given up at any moment: nothing leaks,
and whoever finishes has the right tokens."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from baton.v1.kv_pb2 import Peer
from baton_engine import Await, Done, Failed, FailReason, HandOver, Source

from .engine_worker import EngineWorker, prompts, running
from .oracle import Reference


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_storm_leaves_nothing_behind(
    deepseek_checkpoint: Path, reference: Reference, seed: int
) -> None:
    rng = random.Random(seed)
    trunk = prompts(reference.vocab_size, [150], seed=seed)[0]
    limits: dict[str, int] = {
        "num_pages": 48,
        "max_context": 320,
        "max_running": 6,
        "max_chunk_tokens": 48,
        "hold_ms": 2000,
    }
    async with (
        running(deepseek_checkpoint, "prefill", **limits) as prefill,
        running(deepseek_checkpoint, "decode", "d0", **limits) as first,
        running(deepseek_checkpoint, "decode", "d1", **limits) as second,
    ):
        decodes = [first, second]
        checks: list[tuple[list[int], int, list[int]]] = []

        async def one(name: str) -> None:
            prompt = trunk[: rng.randrange(1, 150)] + [rng.randrange(2000)] * rng.randrange(0, 30)
            decode = rng.choice(decodes)
            new = rng.choice([1, 3, 12])
            worker_of = {"decode": decode}
            hint = (Source(rng.choice([prefill, *decodes]).peer, rng.randrange(1, 9)),)
            if rng.random() < 0.6:
                peer = prefill.peer if rng.random() < 0.9 else Peer(name="x", address="127.0.0.1:9")
                attempt = decode.submit(name, prompt, new, goal=Await(peer))
                if rng.random() < 0.9:
                    goal = HandOver(decode.peer.name)
                    prefill.submit(name, prompt, new, goal=goal, sources=hint)
                    worker_of["prefill"] = prefill
                else:
                    decode.engine.prefill_lost(name, 1)
            else:
                attempt = decode.submit(name, prompt, new, sources=hint)
            fate = rng.random()
            if fate < 0.35:
                await asyncio.sleep(rng.random() * 0.1)
                for worker in worker_of.values():
                    worker.engine.cancel(name, 1)
            elif fate < 0.5:
                await asyncio.sleep(rng.random() * 0.05)
                decode.engine.prefill_lost(name, 1)
                prefill.engine.cancel(name, 1)
            end = await attempt.ended(50)
            if isinstance(end, Done):
                checks.append((prompt, new, attempt.tokens))
            else:
                assert isinstance(end, Failed) and end.reason is FailReason.CANCELLED, end
            if "prefill" in worker_of:
                await prefill.attempts[(name, 1)].ended(50)

        async with asyncio.TaskGroup() as group:
            for i in range(60):
                group.create_task(one(f"s{i}"))
                await asyncio.sleep(rng.random() * 0.01)
        for worker in (prefill, first, second):
            await worker.settled()
            assert_sound(worker)
    assert len(checks) > 20
    for prompt, new, tokens in checks[:25]:
        assert tokens == reference.greedy(prompt, new)


def assert_sound(worker: EngineWorker) -> None:
    """The scheduler's own invariants, and what the directory was told."""
    core = worker.engine._loaded.core
    with core.lock:
        assert core.scheduler.check_invariants() == ""
        held = {row.tobytes() for row in core.scheduler.held_hashes()}
    told: set[bytes] = set()
    for step in worker.steps:
        told -= {row.tobytes() for row in step.evicted}
        told |= {row.tobytes() for row in step.sealed}
    assert told == held
