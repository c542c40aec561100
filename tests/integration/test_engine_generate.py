"""One engine in this process: tokens equal transformers', pages are reused and come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from baton_engine import Admitted, Done, EngineRefusal, Failed, FailReason, FinishReason, StopParams

from .engine_worker import prompts, running
from .oracle import PageRadix, Reference

LENGTHS = [1, 2, 15, 16, 17, 31, 33, 64, 100, 127, 128, 129, 250, 300]
NEW = 8


async def test_greedy_tokens_equal_transformers_alone_and_batched(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    asked = prompts(reference.vocab_size, LENGTHS)
    expected = [reference.greedy(prompt, NEW) for prompt in asked]
    async with running(deepseek_checkpoint) as worker:
        together = [worker.submit(f"b{i}", p, NEW) for i, p in enumerate(asked)]
        for attempt, tokens in zip(together, expected, strict=True):
            end = await attempt.ended()
            assert isinstance(end, Done) and end.reason is FinishReason.LENGTH, end
            assert attempt.tokens == tokens
        await worker.settled()
    async with running(deepseek_checkpoint) as worker:
        for i, (prompt, tokens) in enumerate(zip(asked, expected, strict=True)):
            attempt = worker.submit(f"a{i}", prompt, NEW)
            await attempt.ended()
            assert attempt.tokens == tokens
        assert worker.pool.computed_tokens == sum(LENGTHS)


async def test_a_tight_pool_retracts_and_still_gives_the_same_tokens(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    asked = prompts(reference.vocab_size, [40] * 6, seed=3)
    async with running(deepseek_checkpoint, num_pages=20, max_context=320) as worker:
        attempts = [worker.submit(f"r{i}", p, 40) for i, p in enumerate(asked)]
        for prompt, attempt in zip(asked, attempts, strict=True):
            await attempt.ended()
            assert attempt.tokens == reference.greedy(prompt, 40)
            assert len(attempt.of(Admitted)) == 1
        assert worker.pool.retractions > 0
        await worker.settled()


async def test_turns_reuse_what_a_radix_says(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    radix = PageRadix(16)
    conversation = prompts(reference.vocab_size, [45], seed=4)[0]
    more = prompts(reference.vocab_size, [20, 37], seed=5)
    async with running(deepseek_checkpoint) as worker:
        for turn in range(3):
            attempt = worker.submit(f"t{turn}", conversation, 21)
            end = await attempt.ended()
            assert isinstance(end, Done)
            reused = radix.reusable(conversation)
            assert end.cost.reused_tokens == reused
            assert end.cost.computed_tokens == len(conversation) - reused
            assert attempt.tokens == reference.greedy(conversation, 21)
            radix.served(conversation, attempt.tokens)
            conversation = conversation + attempt.tokens + (more[turn] if turn < 2 else [])


async def test_eos_and_stop_tokens_end_at_that_token(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [30], seed=6)[0]
    tokens = reference.greedy(prompt, 8)
    first_of_fourth = tokens.index(tokens[3])
    async with running(deepseek_checkpoint) as worker:
        eos = worker.submit("eos", prompt, 8, stop=StopParams(eos_token_ids=(tokens[3],)))
        stop = worker.submit("stop", prompt, 8, stop=StopParams(stop_token_ids=(tokens[3],)))
        end = await eos.ended()
        assert isinstance(end, Done) and end.reason is FinishReason.EOS
        assert eos.tokens == tokens[: first_of_fourth + 1]
        end = await stop.ended()
        assert isinstance(end, Done) and end.reason is FinishReason.STOP_TOKEN
        assert stop.tokens == eos.tokens


async def test_cancelling_frees_and_the_next_request_works(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [200], seed=7)[0]
    async with running(deepseek_checkpoint) as worker:
        attempts = [worker.submit(f"c{i}", prompt, 200) for i in range(4)]
        while len(attempts[0].tokens) < 3:
            await asyncio.sleep(0.005)
        for i in range(4):
            assert worker.engine.cancel(f"c{i}", 1)
        assert not worker.engine.cancel("c0", 1)
        assert not worker.engine.cancel("unknown", 1)
        for attempt in attempts:
            end = await attempt.ended()
            assert isinstance(end, Failed) and end.reason is FailReason.CANCELLED
        await worker.settled()
        again = worker.submit("again", prompt, 4)
        await again.ended()
        assert again.tokens == reference.greedy(prompt, 4)


@pytest.mark.parametrize(
    ("tokens", "new", "reason"),
    [
        ([], 1, FailReason.INVALID_PROMPT),
        ([1 << 30], 1, FailReason.INVALID_PROMPT),
        ([-1], 1, FailReason.INVALID_PROMPT),
        ([1], 0, FailReason.INVALID_PROMPT),
        ([1] * 400, 1, FailReason.PROMPT_TOO_LONG),
    ],
)
async def test_refusals_name_their_reason(
    deepseek_checkpoint: Path, tokens: list[int], new: int, reason: FailReason
) -> None:
    async with running(deepseek_checkpoint, max_context=300) as worker:
        with pytest.raises(EngineRefusal) as refused:
            worker.submit("bad", tokens, new)
        assert refused.value.reason is reason
        attempt = worker.submit("good", [1, 2, 3], 2)
        with pytest.raises(EngineRefusal) as duplicate:
            worker.submit("good", [1, 2, 3], 2)
        assert duplicate.value.reason is FailReason.DUPLICATE_REQUEST
        assert isinstance(await attempt.ended(), Done)


async def test_draining_refuses_and_ends_when_the_last_is_done(deepseek_checkpoint: Path) -> None:
    async with running(deepseek_checkpoint) as worker:
        attempt = worker.submit("last", [1, 2, 3], 30)
        worker.engine.drain()
        with pytest.raises(EngineRefusal) as refused:
            worker.submit("late", [1], 1)
        assert refused.value.reason is FailReason.DRAINING
        await asyncio.wait_for(worker.engine.drained(), 20)
        assert isinstance(attempt.end, Done)


async def test_what_cannot_be_served_is_said_at_loading(
    deepseek_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        async with running(tmp_path):
            pass
    with pytest.raises(ValueError, match="max_context is"):
        async with running(deepseek_checkpoint, max_context=1 << 20, num_pages=1 << 17):
            pass
