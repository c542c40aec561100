"""Pages that a holder on the same host lists are read without asking it, and prove themselves."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from baton_transfer import Pulled, PullFailure

from .transfer_holder import hashes
from .transfer_rig import HolderProcess, Reading, check_pages, holder, reading

SMALL, LARGE = 65536, 1 << 20  # read by who asks; by the link's threads


@asynccontextmanager
async def connected(**options: object) -> AsyncIterator[tuple[HolderProcess, Reading]]:
    """A holder that was read before, so that there is nothing left to ask it."""
    size = int(str(options.get("page_bytes", SMALL)))
    with holder(listed=True, **options) as peer:
        async with reading(page_bytes=size) as mine:
            for _ in range(4):  # UCX goes on connecting when the first read has ended
                first = await pull(peer, mine, 59)
                assert first.failure is None
                await asyncio.sleep(0.05)
            await mine.puller.released()
            yield peer, mine


async def pull(
    peer: HolderProcess,
    mine: Reading,
    first: int,
    count: int = 1,
    handed_over: tuple[str, int] | None = None,
) -> Pulled:
    """Pages [first, first + count) of the holder into the same ones of ours, in reverse."""
    targets = np.arange(first, first + count, dtype=np.int32)[::-1].copy()
    wanted = hashes(1, count, first)
    pulled = await mine.puller.pull(peer.peer, wanted, targets, handed_over=handed_over)
    check_pages(mine.arena, targets[: pulled.arrived], 1, first)
    return pulled


@pytest.mark.parametrize("page_bytes", [SMALL, LARGE])
async def test_a_holder_that_does_nothing_is_read_all_the_same(page_bytes: int) -> None:
    async with connected(page_bytes=page_bytes) as (peer, mine):
        peer.signal(signal.SIGSTOP)
        # No more than one lane reads: the other one is not connected yet.
        for first, count in ((0, 1), (1, 1), (2, 2)):
            pulled = await pull(peer, mine, first, count)
            assert (pulled.arrived, pulled.failure) == (count, None), pulled
            assert pulled.moved_bytes == count * page_bytes
        peer.signal(signal.SIGCONT)


@pytest.mark.parametrize("page_bytes", [SMALL, LARGE])
async def test_a_page_that_left_its_place_is_leased_in_its_new_one(page_bytes: int) -> None:
    async with connected(page_bytes=page_bytes, moved=[2, 3]) as (peer, mine):
        for first, count in ((2, 1), (0, 6), (3, 1)):
            pulled = await pull(peer, mine, first, count)
            assert (pulled.arrived, pulled.failure) == (count, None), pulled


async def test_a_page_that_is_nowhere_is_said_to_be_missing() -> None:
    async with connected() as (peer, mine):
        pulled = await mine.puller.pull(peer.peer, hashes(2, 1), np.zeros(1, np.int32))
        assert (pulled.arrived, pulled.failure) == (0, PullFailure.NOT_HELD)


async def test_what_is_not_right_in_its_place_either_is_rejected() -> None:
    async with connected(moved=[2], corrupt=[2]) as (peer, mine):
        pulled = await pull(peer, mine, 1, 3)
        assert (pulled.arrived, pulled.failure) == (1, PullFailure.READ)


async def test_a_request_is_handed_over_without_a_lease_too() -> None:
    async with connected() as (peer, mine):
        [_ async for _ in mine.puller.follow(peer.peer, "r1", 1)]
        pulled = await pull(peer, mine, 0, 3, ("r1", 1))
        assert pulled.failure is None
        # The holder says so only once it heard that r1 is handed over.
        failed = [h.failed async for h in mine.puller.follow(peer.peer, "r2", 1)]
        assert failed == [40]


@pytest.mark.parametrize("page_bytes", [SMALL, LARGE])
async def test_a_killed_holder_is_no_source_any_more(page_bytes: int) -> None:
    async with connected(page_bytes=page_bytes) as (peer, mine):
        peer.process.kill()
        peer.process.wait()
        for _ in range(2):
            pulled = await pull(peer, mine, 0)
            assert pulled.arrived == 0
            assert pulled.failure in (PullFailure.READ, PullFailure.UNREACHABLE)
