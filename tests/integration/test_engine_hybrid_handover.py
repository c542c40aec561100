"""Models with recurrent states between two engines: hand-over, return, restore, and what fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from baton.v1.kv_pb2 import Peer
from baton_engine import Await, Done, FailReason, FinishReason, HandOver, Source
from baton_scheduler import in_group, page_hashes
from baton_transfer import Pulled, PullFailure

from .engine_worker import CACHE_KEY, Attempt, EngineWorker, prompts, running
from .oracle import Reference

NEW = 6
PAGE = 16
EVERY = 32
SETTINGS = {"snapshot_every": EVERY, "page_size": PAGE, "debug_poison_free_pages": True}


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("qwen3_next")


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


def hand_over(
    prefill: EngineWorker,
    decode: EngineWorker,
    name: str,
    prompt: list[int],
    new: int = NEW,
    sources: tuple[Source, ...] = (),
) -> tuple[Attempt, Attempt]:
    """The same request at both, as the router sends it; `sources` are the prefill worker's."""
    awaiting = decode.submit(name, prompt, new, goal=Await(prefill.peer))
    goal = HandOver(decode.peer.name)
    return prefill.submit(name, prompt, new, goal=goal, sources=sources), awaiting


async def settled(*workers: EngineWorker) -> None:
    """Every page of every group is free or cached."""
    for worker in workers:
        await worker.settled()
        core = worker.engine._loaded.core
        with core.lock:
            assert core.scheduler.check_invariants() == ""
            states = core.scheduler.pool_stats(1)
        assert states.free + states.cached == states.total


def moved(length: int, snapshot_held: bool = False) -> int:
    """Pages of a whole prompt: its tokens, the state at its end and the snapshot before that."""
    keeps = length % EVERY > 0 and length > EVERY and not snapshot_held
    return -(-length // PAGE) + 1 + keeps


async def test_the_decode_worker_never_runs_the_prompt(
    checkpoint: Path, reference: Reference
) -> None:
    lengths = [1, 15, 16, 31, 32, 33, 64, 100, 250]
    asked = prompts(reference.vocab_size, lengths, seed=11)
    async with (
        running(checkpoint, "prefill", max_chunk_tokens=48, **SETTINGS) as prefill,
        running(checkpoint, "decode", **SETTINGS) as decode,
    ):
        pairs = [hand_over(prefill, decode, f"h{i}", p) for i, p in enumerate(asked)]
        for prompt, (computing, awaiting) in zip(asked, pairs, strict=True):
            end = await awaiting.ended()
            assert isinstance(end, Done) and end.reason is FinishReason.LENGTH
            assert awaiting.tokens == reference.greedy(prompt, NEW)
            assert end.cost.computed_tokens == 0
            assert end.cost.pages_moved == moved(len(prompt))
            end = await computing.ended()
            assert isinstance(end, Done) and end.reason is FinishReason.HANDED_OVER
        assert decode.pool.computed_tokens == 0
        assert decode.pool.failed_fetches == 0
        assert decode.pool.fetched_tokens == sum(lengths)
        assert prefill.pool.computed_tokens == sum(lengths)
        await settled(prefill, decode)


async def test_turns_go_there_and_back_by_what_is_missing(
    checkpoint: Path, reference: Reference
) -> None:
    """The prefill worker gets generated pages and the last snapshot back and computes on."""
    conversation = prompts(reference.vocab_size, [45], seed=4)[0]
    more = prompts(reference.vocab_size, [20, 37, 90], seed=5)
    known = 0  # tokens of the last snapshot that anybody has
    async with (
        running(checkpoint, "prefill", **SETTINGS) as prefill,
        running(checkpoint, "decode", **SETTINGS) as decode,
    ):
        for turn in range(4):
            held = (len(conversation) - len(more[turn - 1]) - 1) // PAGE if turn else 0
            sources = (Source(decode.peer, held),) if turn else ()
            computing, awaiting = hand_over(prefill, decode, f"t{turn}", conversation, 40, sources)
            end = await awaiting.ended()
            assert isinstance(end, Done)
            assert end.cost.computed_tokens == 0
            assert end.cost.reused_tokens == held * PAGE
            # Tokens beyond those of the last turn, the state, and a snapshot if there is a new one.
            keeps = len(conversation) // EVERY * EVERY > known
            assert end.cost.pages_moved == -(-len(conversation) // PAGE) - held + 1 + keeps
            first = end.cost.first_token
            assert first is not None and first.cached_tokens == known
            assert await computing.ended()
            assert awaiting.tokens == reference.greedy(conversation, 40)
            conversation = conversation + awaiting.tokens
            known = (len(conversation) - 1) // EVERY * EVERY
            conversation += more[turn] if turn < 3 else []
        assert prefill.pool.pages_moved > 0
        await settled(prefill, decode)


async def test_the_decode_worker_goes_on_by_what_was_handed_over(
    checkpoint: Path, reference: Reference
) -> None:
    """A short later turn is computed where it is decoded, from the snapshot that came along."""
    context = prompts(reference.vocab_size, [200], seed=14)[0]
    async with (
        running(checkpoint, "prefill", **SETTINGS) as prefill,
        running(checkpoint, "decode", **SETTINGS) as decode,
    ):
        _, awaiting = hand_over(prefill, decode, "there", context, 5)
        assert isinstance(await awaiting.ended(), Done)
        context = [*context, *awaiting.tokens, 7, 8, 9]
        attempt = decode.submit("here", context, NEW)
        end = await attempt.ended()
        assert isinstance(end, Done)
        assert attempt.tokens == reference.greedy(context, NEW)
        assert end.cost.reused_tokens == 192
        assert end.cost.computed_tokens == len(context) - 192


async def test_a_worker_restores_from_another_one(checkpoint: Path, reference: Reference) -> None:
    prompt = prompts(reference.vocab_size, [150], seed=6)[0]
    async with (
        running(checkpoint, "decode", **SETTINGS) as first,
        running(checkpoint, "decode", **SETTINGS) as second,
    ):
        assert (await first.submit("a", prompt, NEW).ended()).cost.computed_tokens == 150
        source = (Source(first.peer, 9),)
        attempt = second.submit("b", prompt, NEW, sources=source)
        end = await attempt.ended()
        assert isinstance(end, Done)
        assert attempt.tokens == reference.greedy(prompt, NEW)
        # The snapshot at 128 and eight pages; the ninth is of no use without a state behind it.
        assert end.cost.fetched_tokens == 128
        assert end.cost.pages_moved == 9
        assert end.cost.computed_tokens == 22
        assert second.pool.retractions == 0
        await settled(first, second)


async def test_a_restore_rewinds_to_the_nearest_snapshot(
    checkpoint: Path, reference: Reference
) -> None:
    """The holder left its snapshots at 64 and 150 // 32: of a prompt that parts in between only the
    first is of use."""
    trunk = prompts(reference.vocab_size, [150], seed=7)[0]
    fork = trunk[:110] + prompts(reference.vocab_size, [20], seed=8)[0]
    async with (
        running(checkpoint, "decode", max_chunk_tokens=64, **SETTINGS) as first,
        running(checkpoint, "decode", **SETTINGS) as second,
    ):
        assert isinstance(await first.submit("a", trunk, NEW).ended(), Done)
        attempt = second.submit("b", fork, NEW, sources=(Source(first.peer, 6),))
        end = await attempt.ended()
        assert isinstance(end, Done)
        assert attempt.tokens == reference.greedy(fork, NEW)
        assert end.cost.fetched_tokens == 64
        assert end.cost.computed_tokens == len(fork) - 64
        await settled(first, second)


async def test_a_prefill_worker_that_is_lost_leaves_what_came(
    checkpoint: Path, reference: Reference
) -> None:
    prompt = prompts(reference.vocab_size, [200], seed=9)[0]
    async with running(checkpoint, "decode", **SETTINGS) as decode:
        async with running(checkpoint, "prefill", **SETTINGS) as prefill:
            gone = Peer(name=prefill.peer.name, address="127.0.0.1:9", epoch=prefill.peer.epoch)
        attempt = decode.submit("lost", prompt, NEW, goal=Await(gone))
        assert decode.engine.prefill_lost("lost", 1)
        end = await attempt.ended()
        assert isinstance(end, Done)
        assert attempt.tokens == reference.greedy(prompt, NEW)
        assert end.cost.computed_tokens == len(prompt)
        await settled(decode)


async def test_a_state_that_does_not_come_is_computed_from_the_tokens(
    checkpoint: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens came, the state at the prompt's end did not: never a token from half a prompt."""
    prompt = prompts(reference.vocab_size, [100], seed=10)[0]
    async with (
        running(checkpoint, "prefill", max_chunk_tokens=32, **SETTINGS) as prefill,
        running(checkpoint, "decode", **SETTINGS) as decode,
    ):
        assert decode.engine._running is not None
        puller = decode.engine._running.fetcher._puller
        pull = puller.pull

        async def without_states(source, hashes, targets, *, group=0, handed_over=None):  # type: ignore[no-untyped-def]
            if group:
                return Pulled(0, 0, 0.0, PullFailure.NOT_HELD, None, "none of the test's")
            return await pull(source, hashes, targets, group=group, handed_over=handed_over)

        monkeypatch.setattr(puller, "pull", without_states)
        computing, awaiting = hand_over(prefill, decode, "half", prompt)
        end = await awaiting.ended()
        assert isinstance(end, Done)
        assert awaiting.tokens == reference.greedy(prompt, NEW)
        assert end.cost.computed_tokens == len(prompt)
        await computing.ended()
        await settled(prefill, decode)


@contextmanager
def read_elsewhere(worker: EngineWorker, context: list[int]) -> Iterator[None]:
    """Somebody has a lease on what a worker has of this: it stays, whatever others need."""
    chain = page_hashes(np.array(context[:-1], np.int32), PAGE, CACHE_KEY)
    holder = worker.engine.holder
    leases = [
        holder.grant("elsewhere", hashes, 60_000, group)
        for group, hashes in enumerate([chain, in_group(chain[-1:], 1)])
    ]
    assert [len(lease.pages) for lease in leases] == [len(chain), 1]
    yield
    holder.release([lease.lease for lease in leases])


async def test_a_storm_of_hand_overs_in_scarce_pools(
    checkpoint: Path, reference: Reference
) -> None:
    """Sessions over one trunk, turns handed over, restored, cancelled at any moment, with fewer
    states than requests: who finishes has the right tokens, and every page comes back."""
    trunk = prompts(reference.vocab_size, [150], seed=17)[0]
    scarce = {"num_pages": 40, "max_context": 320, "state_pages": 9, "snapshot_every": 16}
    limits = {"max_running": 4, "max_chunk_tokens": 48, "debug_poison_free_pages": True, **scarce}
    finished: list[tuple[list[int], list[int]]] = []
    async with (
        running(checkpoint, "prefill", **limits) as prefill,
        running(checkpoint, "decode", **limits) as decode,
    ):

        async def session(name: str) -> None:
            draw = random.Random(name)  # its own: who wakes first changes nothing of what is drawn
            context = trunk[: draw.randrange(1, 150)]
            for turn in range(2):
                context = context + [draw.randrange(2000)] * draw.randrange(0, 30)
                context = context + await one(f"{name}.{turn}", context, draw)

        async def one(name: str, prompt: list[int], draw: random.Random) -> list[int]:
            new = draw.choice([1, 3, 20, 40])
            sources = (Source(decode.peer, len(prompt) // PAGE),) if draw.random() < 0.5 else ()
            if draw.random() < 0.7:
                _, attempt = hand_over(prefill, decode, name, prompt, new, sources)
            else:
                source = Source(prefill.peer, (len(prompt) - 1) // PAGE)
                attempt = decode.submit(name, prompt, new, sources=(source,))
            if draw.random() < 0.3:
                await asyncio.sleep(draw.random() * 0.1)
                for worker in draw.sample([prefill, decode], 2):
                    worker.engine.cancel(name, 1)
            end = await attempt.ended(60)
            if isinstance(end, Done):
                finished.append((prompt, attempt.tokens))
            else:
                assert end.reason is FailReason.CANCELLED, end
            return attempt.tokens

        # A session whose next turn the storm begins with. What it generated only the decode worker
        # has, and cannot lose: the prefill worker must get it back.
        _, attempt = hand_over(prefill, decode, "kept.0", trunk, 40)
        await attempt.ended()
        kept = trunk + attempt.tokens
        with read_elsewhere(decode, kept):
            sources = (Source(decode.peer, len(kept) // PAGE),)
            returned, attempt = hand_over(prefill, decode, "kept.1", kept, NEW, sources)
            rng = random.Random(17)
            async with asyncio.TaskGroup() as group:
                for i in range(25):
                    group.create_task(session(f"s{i}"))
                    await asyncio.sleep(rng.random() * 0.02)
            assert isinstance(await attempt.ended(60), Done)
            finished.append((kept, attempt.tokens))
        await settled(prefill, decode)
        (end,) = returned.of(Done)
        assert end.cost.fetched_tokens == len(kept) // PAGE * PAGE - len(trunk) // PAGE * PAGE
        assert decode.pool.pages_moved > 0 and prefill.pool.pages_moved > 0
    assert len(finished) > 25
    for prompt, tokens in finished:
        assert tokens == reference.greedy(prompt, len(tokens))
