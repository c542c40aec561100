"""Ranks as Ray actors. Starts a Ray instance of its own, which takes its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from .engine_worker import prompts
from .oracle import Reference
from .test_engine_ranks import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_a_ray_actor_is_a_rank_like_any_other(
    tmp_path: Path, deepseek_checkpoint: Path, reference: Reference
) -> None:
    pytest.importorskip("ray")
    asked = prompts(reference.vocab_size, [5, 100, 250], seed=31)
    output = run(
        tmp_path,
        deepseek_checkpoint,
        asked,
        """
        async def main():
            import ray
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            async with (
                running(CHECKPOINT, "prefill") as prefill,
                running(CHECKPOINT, "decode", tp=2, launcher="ray") as decode,
            ):
                attempts = []
                for i, prompt in enumerate(ASKED):
                    attempts.append(decode.submit(f"t{i}", prompt, 8, goal=Await(prefill.peer)))
                    prefill.submit(f"t{i}", prompt, 8, goal=HandOver(decode.peer.name))
                for attempt in attempts:
                    assert isinstance(await attempt.ended(), Done)
                assert decode.pool.computed_tokens == 0, decode.pool
                await decode.settled()
                print(json.dumps([a.tokens for a in attempts]))
            ray.shutdown()
        """,
    )
    expected = [reference.greedy(prompt, 8) for prompt in asked]
    assert output.strip().splitlines()[-1] == str(expected)
