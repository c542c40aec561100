"""Two engines in this process, joined by real KvPeer services and NIXL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from baton.v1.kv_pb2 import Peer
from baton_engine import (
    Await,
    Done,
    Failed,
    FailReason,
    FinishReason,
    HandOver,
    Prefilled,
    Source,
    StopParams,
)
from baton_engine.holder import EngineHolder
from baton_transfer import LeaseGrant

from .engine_worker import Attempt, EngineWorker, prompts, running
from .oracle import Reference

NEW = 6


def hand_over(
    prefill: EngineWorker, decode: EngineWorker, name: str, prompt: list[int], new: int = NEW
) -> tuple[Attempt, Attempt]:
    """The same request at both, as the router sends it."""
    awaiting = decode.submit(name, prompt, new, goal=Await(prefill.peer))
    computing = prefill.submit(name, prompt, new, goal=HandOver(decode.peer.name))
    return computing, awaiting


async def test_the_decode_worker_never_runs_the_prompt(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    asked = prompts(reference.vocab_size, [1, 15, 16, 17, 32, 100, 250, 300], seed=11)
    async with (
        running(deepseek_checkpoint, "prefill") as prefill,
        running(deepseek_checkpoint, "decode") as decode,
    ):
        pairs = [hand_over(prefill, decode, f"h{i}", p) for i, p in enumerate(asked)]
        for prompt, (computing, awaiting) in zip(asked, pairs, strict=True):
            end = await awaiting.ended()
            assert isinstance(end, Done) and end.reason is FinishReason.LENGTH
            assert awaiting.tokens == reference.greedy(prompt, NEW)
            assert end.cost.computed_tokens == 0
            assert end.cost.pages_moved == -(-len(prompt) // 16)
            assert end.cost.first_token is not None
            end = await computing.ended()
            assert isinstance(end, Done) and end.reason is FinishReason.HANDED_OVER
            assert computing.tokens == []
        assert decode.pool.computed_tokens == 0
        assert decode.pool.fetched_tokens == sum(map(len, asked))
        assert decode.pool.failed_fetches == 0
        assert prefill.pool.computed_tokens == sum(map(len, asked))
        await prefill.settled()
        await decode.settled()


@pytest.mark.parametrize("checksums", [True, False])
async def test_what_a_step_has_sealed_is_read_without_a_lease_if_it_can_be_proved(
    checksums: bool,
    deepseek_checkpoint: Path,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leases: list[str] = []
    grant = EngineHolder.grant

    def counted(self: EngineHolder, reader: str, *asked: Any) -> LeaseGrant:
        leases.append(reader)
        return grant(self, reader, *asked)

    monkeypatch.setattr(EngineHolder, "grant", counted)
    asked = prompts(reference.vocab_size, [40, 100, 41], seed=13)
    async with (
        running(deepseek_checkpoint, "prefill", checksums=checksums) as prefill,
        running(deepseek_checkpoint, "decode", checksums=checksums) as decode,
    ):
        for i, prompt in enumerate(asked):
            if i == 1:
                leases.clear()  # before they knew each other
            _, awaiting = hand_over(prefill, decode, f"h{i}", prompt)
            end = await awaiting.ended()
            assert isinstance(end, Done) and end.cost.computed_tokens == 0
            assert end.cost.pages_moved == -(-len(prompt) // 16)
            assert awaiting.tokens == reference.greedy(prompt, NEW)
        assert (leases == []) is checksums
        await prefill.settled()
        await decode.settled()


async def test_chunks_travel_while_the_prompt_is_computed(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [1000], seed=12)[0]
    async with (
        running(deepseek_checkpoint, "prefill", max_chunk_tokens=32) as prefill,
        running(deepseek_checkpoint, "decode") as decode,
    ):
        computing, awaiting = hand_over(prefill, decode, "long", prompt)
        prefilled = await computing.until(Prefilled)
        before = decode.pool.fetched_tokens
        assert prefilled.sealed_pages == 63
        await awaiting.ended()
        assert awaiting.tokens == reference.greedy(prompt, NEW)
        assert before > 0, "no page had arrived when the prompt was complete"


async def test_only_missing_pages_move_in_both_directions(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [90], seed=13)[0]
    async with (
        running(deepseek_checkpoint, "prefill") as prefill,
        running(deepseek_checkpoint, "decode") as decode,
    ):
        _, awaiting = hand_over(prefill, decode, "t0", prompt, 30)
        await awaiting.ended()
        assert awaiting.tokens == reference.greedy(prompt, 30)
        # 119 tokens are in the decode worker's pages: 7 whole ones, of which prefill has 5.
        turn = prompt + awaiting.tokens + prompts(reference.vocab_size, [50], seed=14)[0]
        awaiting = decode.submit("t1", turn, NEW, goal=Await(prefill.peer))
        computing = prefill.submit(
            "t1", turn, NEW, goal=HandOver(decode.peer.name), sources=(Source(decode.peer, 7),)
        )
        end = await awaiting.ended()
        assert isinstance(end, Done)
        assert awaiting.tokens == reference.greedy(turn, NEW)
        assert end.cost.reused_tokens == 7 * 16
        assert end.cost.pages_moved == -(-len(turn) // 16) - 7
        end = await computing.ended()
        assert isinstance(end, Done)
        assert end.cost.reused_tokens == 5 * 16
        assert end.cost.fetched_tokens == 2 * 16
        assert end.cost.computed_tokens == len(turn) - 7 * 16
        assert decode.pool.computed_tokens == 0


async def test_a_source_spares_the_computing_and_a_dead_one_costs_only_time(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [130], seed=15)[0]
    dead = Peer(name="dead", address="127.0.0.1:9", epoch=5)
    async with (
        running(deepseek_checkpoint, "decode", "one") as one,
        running(deepseek_checkpoint, "decode", "two") as two,
    ):
        await one.submit("a", prompt, NEW).ended()
        sources = (Source(dead, 8), Source(one.peer, 20))
        attempt = two.submit("b", prompt, NEW, sources=sources)
        end = await attempt.ended()
        assert isinstance(end, Done)
        assert attempt.tokens == reference.greedy(prompt, NEW)
        assert (end.cost.fetched_tokens, end.cost.computed_tokens) == (128, 2)
        attempt = two.submit("c", prompt[::-1], NEW, sources=(Source(dead, 8),))
        await attempt.ended()
        assert attempt.tokens == reference.greedy(prompt[::-1], NEW)
        await one.settled()
        await two.settled()


async def test_a_first_token_that_ends_the_request_ends_it_at_the_reader(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [40], seed=16)[0]
    first = reference.greedy(prompt, 1)[0]
    stop = StopParams(eos_token_ids=(first,))
    async with (
        running(deepseek_checkpoint, "prefill") as prefill,
        running(deepseek_checkpoint, "decode") as decode,
    ):
        for name, new, params, reason in [
            ("eos", 5, stop, FinishReason.EOS),
            ("one", 1, StopParams(), FinishReason.LENGTH),
        ]:
            awaiting = decode.submit(name, prompt, new, goal=Await(prefill.peer), stop=params)
            prefill.submit(name, prompt, new, goal=HandOver(decode.peer.name), stop=params)
            end = await awaiting.ended()
            assert isinstance(end, Done) and end.reason is reason
            assert awaiting.tokens == [first]
        await prefill.settled()
        await decode.settled()


async def test_prefill_that_never_comes_is_computed_here(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [70], seed=17)[0]
    dead = Peer(name="dead", address="127.0.0.1:9", epoch=5)
    async with (
        running(deepseek_checkpoint, "prefill") as prefill,
        running(deepseek_checkpoint, "decode", await_ms=300) as decode,
    ):
        silent = decode.submit("silent", prompt, NEW, goal=Await(prefill.peer))
        gone = decode.submit("gone", prompt, NEW, goal=Await(dead))
        told = decode.submit("told", prompt, NEW, goal=Await(prefill.peer))
        decode.engine.prefill_lost("told", 1)
        for attempt in (silent, gone, told):
            end = await attempt.ended()
            assert isinstance(end, Done)
            assert attempt.tokens == reference.greedy(prompt, NEW)
            assert end.cost.first_token is None
        assert decode.pool.failed_fetches == 3
        await decode.settled()


async def test_a_prefill_that_fails_or_stops_midway_leaves_the_rest_to_decode(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [1500], seed=18)[0]
    async with (
        running(deepseek_checkpoint, "prefill", max_chunk_tokens=16) as prefill,
        running(deepseek_checkpoint, "decode") as decode,
    ):
        computing, awaiting = hand_over(prefill, decode, "cut", prompt)
        while decode.pool.fetched_tokens < 64:
            await asyncio.sleep(0.001)
        prefill.engine.cancel("cut", 1)
        end = await computing.ended()
        assert isinstance(end, Failed) and end.reason is FailReason.CANCELLED
        end = await awaiting.ended()
        assert isinstance(end, Done)
        assert awaiting.tokens == reference.greedy(prompt, NEW)
        assert end.cost.fetched_tokens >= 64
        assert end.cost.computed_tokens == len(prompt) - end.cost.fetched_tokens
        await prefill.settled()
        await decode.settled()


async def test_cancelling_an_awaiting_request_frees_both_sides(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    # Prompts that share nothing and answers that take long: none is over before its cancel.
    asked = prompts(reference.vocab_size, [900] * 5, seed=19)
    async with (
        running(deepseek_checkpoint, "prefill", max_chunk_tokens=16) as prefill,
        running(deepseek_checkpoint, "decode") as decode,
    ):
        for i, prompt in enumerate(asked):
            _, awaiting = hand_over(prefill, decode, f"x{i}", prompt, new=1000)
            await asyncio.sleep(0.03 * i)
            decode.engine.cancel(f"x{i}", 1)
            prefill.engine.cancel(f"x{i}", 1)
            end = await awaiting.ended()
            assert isinstance(end, Failed) and end.reason is FailReason.CANCELLED
        await prefill.settled()
        await decode.settled()


async def test_a_reader_that_loses_patience_stops_the_prefill(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [1500], seed=24)[0]
    async with (
        running(deepseek_checkpoint, "prefill", max_chunk_tokens=16) as prefill,
        running(deepseek_checkpoint, "decode") as decode,
    ):
        computing, awaiting = hand_over(prefill, decode, "late", prompt)
        while decode.pool.fetched_tokens < 64:
            await asyncio.sleep(0.001)
        decode.engine.prefill_lost("late", 1)
        end = await computing.ended()
        assert isinstance(end, Done) and end.reason is FinishReason.HANDED_OVER
        assert prefill.pool.computed_tokens < len(prompt)
        await awaiting.ended()
        assert awaiting.tokens == reference.greedy(prompt, NEW)
        await prefill.settled()
        await decode.settled()


async def test_held_pages_are_given_up_when_the_reader_never_comes(
    deepseek_checkpoint: Path,
) -> None:
    async with running(deepseek_checkpoint, "prefill", hold_ms=200) as prefill:
        attempt = prefill.submit("held", list(range(40)), 4, goal=HandOver("nobody"))
        end = await attempt.ended(5)
        assert isinstance(end, Failed) and end.reason is FailReason.DEADLINE_EXCEEDED
        await prefill.settled()


@pytest.mark.parametrize("page_size", [1, 64])
async def test_other_page_sizes(
    deepseek_checkpoint: Path, reference: Reference, page_size: int
) -> None:
    prompt = prompts(reference.vocab_size, [70], seed=20)[0]
    async with (
        running(deepseek_checkpoint, "prefill", page_size=page_size) as prefill,
        running(deepseek_checkpoint, "decode", page_size=page_size) as decode,
    ):
        _, awaiting = hand_over(prefill, decode, "p", prompt)
        await awaiting.ended()
        assert awaiting.tokens == reference.greedy(prompt, NEW)
        assert decode.pool.computed_tokens == 0
