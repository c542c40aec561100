"""Speculation changes how many tokens a step brings and nothing else: every request says what it
says without."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from baton_engine import Await, HandOver, Source

from .engine_worker import EngineWorker, config, prompts, running
from .oracle import Reference
from .speculating import (
    ENDS,
    MODEL,
    VOCAB,
    Asked,
    Said,
    all_said,
    ask,
    most_tokens_of_an_event,
    of_every_kind,
    said,
    spoken,
)


def drafting(tokens: int) -> dict[str, Any]:
    return {"speculative": {"method": "mtp", "tokens": tokens}}


@pytest.fixture(scope="module")
def asked() -> dict[str, Asked]:
    return of_every_kind()


@pytest.fixture(scope="module")
def plain(asked: dict[str, Asked]) -> dict[str, Said]:
    """What every request says without speculation, each alone."""

    async def answers() -> dict[str, Said]:
        async with running(MODEL) as worker:
            found = {name: await said(ask(worker, name, each)) for name, each in asked.items()}
            assert worker.pool.draft_tokens == 0
        return found

    return asyncio.run(answers())


def wrong(worker: EngineWorker) -> int:
    """How many guesses did not hold."""
    assert worker.pool.draft_tokens > 100
    return int(worker.pool.draft_tokens - worker.pool.accepted_draft_tokens)


@pytest.mark.parametrize("tokens", [1, 2, 4])
async def test_together(asked: dict[str, Asked], plain: dict[str, Said], tokens: int) -> None:
    async with running(MODEL, **drafting(tokens)) as worker:
        together = await all_said(worker, asked)
        assert together == plain
        assert most_tokens_of_an_event(list(worker.attempts.values())) == 1 + tokens
        assert 0 < worker.pool.accepted_draft_tokens < worker.pool.draft_tokens
        generated = sum(len(answer.tokens) for answer in plain.values())
        assert worker.pool.generated_tokens == generated
        await worker.settled()


async def test_alone(asked: dict[str, Asked], plain: dict[str, Said]) -> None:
    async with running(MODEL, **drafting(2)) as worker:
        for name, each in asked.items():
            assert await said(ask(worker, name, each)) == plain[name], name


async def test_greedy_tokens_are_those_of_transformers() -> None:
    reference, unknown = Reference(MODEL), prompts(VOCAB, [40, 100], seed=3)
    async with running(MODEL, **drafting(3)) as worker:
        attempts = [worker.submit(f"g{i}", p, 30) for i, p in enumerate([*spoken(2), *unknown])]
        for prompt, attempt in zip([*spoken(2), *unknown], attempts, strict=True):
            await attempt.ended()
            assert attempt.tokens == reference.greedy(prompt, 30)


async def test_chunks_beside_decoding_and_a_short_budget(
    asked: dict[str, Asked], plain: dict[str, Said]
) -> None:
    # Some rows get fewer guesses than they were offered, prompts come in many chunks.
    limits = {"max_chunk_tokens": 24, "max_step_tokens": 40, "max_running": 8}
    async with running(MODEL, **limits, **drafting(4)) as worker:
        assert await all_said(worker, asked) == plain


async def test_after_retraction(asked: dict[str, Asked], plain: dict[str, Said]) -> None:
    async with running(MODEL, num_pages=32, max_context=512, **drafting(3)) as worker:
        assert await all_said(worker, asked) == plain
        assert worker.pool.retractions > 0
        await worker.settled()


async def test_pages_of_poison_are_never_read(
    asked: dict[str, Asked], plain: dict[str, Said]
) -> None:
    limits = {"num_pages": 48, "max_context": 512, "debug_poison_free_pages": True}
    async with running(MODEL, **limits, **drafting(3)) as worker:
        assert await all_said(worker, asked) == plain


async def test_the_trained_layer_is_right_wherever_its_pages_come_from() -> None:
    """Computed in one chunk or many, found in the cache, handed over or fetched from a holder: its
    guesses hold, which they would not without its own entries of the prompt. One a conversation
    may fail: the one behind its end."""
    asked = {f"c{i}": Asked(prompt, stop=ENDS) for i, prompt in enumerate(spoken(12))}
    for limits in ({}, {"max_chunk_tokens": 17}):
        async with running(MODEL, **limits, **drafting(1)) as worker:
            await all_said(worker, asked)
            assert wrong(worker) <= len(asked)
    async with (
        running(MODEL, "prefill", **drafting(1)) as prefill,
        running(MODEL, "decode", name="d0", **drafting(1)) as decode,
        running(MODEL, "decode", name="d1", **drafting(1)) as other,
    ):
        for name, each in asked.items():
            attempt = ask(decode, name, each, goal=Await(prefill.peer))
            ask(prefill, name, each, goal=HandOver(decode.peer.name))
            await attempt.ended()
        assert decode.pool.computed_tokens == 0 and prefill.pool.draft_tokens == 0
        assert wrong(decode) <= len(asked)
        for name, each in asked.items():
            sources = (Source(decode.peer, len(each.prompt) // 16),)
            await other.submit(name, each.prompt, each.new, stop=each.stop, sources=sources).ended()
        assert other.pool.fetched_tokens > 0 and other.pool.reused_tokens > 0
        assert wrong(other) <= len(asked)


async def entries(worker: EngineWorker, prompt: list[int], new: int) -> torch.Tensor:
    """Runs one request on a fresh engine; all layers' entries in the pages that are full then."""
    attempt = worker.submit("one", prompt, new)
    await attempt.ended()
    ranks = worker.engine._loaded.ranks
    full = (len(prompt) + len(attempt.tokens) - 1) // 16
    return ranks.local.arena.tensors["full"][:full].clone()


async def test_the_layers_entries_are_the_same_however_they_were_computed() -> None:
    prompt = prompts(VOCAB, [75], seed=8)[0]
    async with running(MODEL, **drafting(1)) as worker:
        attempt = worker.submit("text", prompt, 60)
        await attempt.ended()
    text = prompt + attempt.tokens
    async with running(MODEL, **drafting(1)) as worker:
        expected = await entries(worker, text, 1)  # one chunk, and nothing decoded
    assert expected.shape[:2] == (8, 5) and expected[:, 4].abs().amin(-1).max() > 0
    for tokens, limits in ((1, {}), (4, {}), (2, {"max_chunk_tokens": 17})):
        async with running(MODEL, **limits, **drafting(tokens)) as worker:
            found = await entries(worker, prompt, 60)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


async def test_handed_over(asked: dict[str, Asked], plain: dict[str, Said]) -> None:
    async with (
        running(MODEL, "prefill", **drafting(2)) as prefill,
        running(MODEL, "decode", **drafting(2)) as decode,
    ):
        awaiting = {}
        for name, each in asked.items():
            awaiting[name] = ask(decode, name, each, goal=Await(prefill.peer))
            ask(prefill, name, each, goal=HandOver(decode.peer.name))
        for name, attempt in awaiting.items():
            assert await said(attempt) == plain[name], name
        assert decode.pool.computed_tokens == 0
        assert decode.pool.accepted_draft_tokens > 0
        await decode.settled()
        await prefill.settled()


async def test_pages_with_and_without_the_layer_are_not_exchanged() -> None:
    async with running(MODEL, **drafting(1)) as one, running(MODEL, name="d1") as other:
        assert one.engine.description.identity != other.engine.description.identity


async def test_what_cannot_speculate_is_refused_by_name(
    deepseek_checkpoint: Path, make_checkpoint: Any
) -> None:
    with pytest.raises(ValueError, match=r"speculative.*no multi-token-prediction layer"):
        async with running(deepseek_checkpoint, **drafting(1)):
            pass
    with pytest.raises(ValueError, match=r"speculative.*cache groups \['state'\]"):
        async with running(make_checkpoint("qwen3_next"), **drafting(1)):
            pass
    for wrong in ({"method": "ngram"}, {"tokens": 0}, {"tokens": 65}, {"token": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            config(MODEL, speculative=wrong)
    with pytest.raises(ValueError, match=r"max_step_tokens is 20.*speculative\.tokens 4"):
        config(MODEL, max_running=8, max_step_tokens=20, **drafting(4))
