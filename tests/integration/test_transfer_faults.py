"""Holders that die or stall under a read: it ends, with what is whole, and writes no more."""

import asyncio
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_rpc import channel
from baton_transfer import PullFailure, PullSettings, ReadFailure, ReadOutcome
from baton_transfer.peers import Holder

from .transfer_holder import hashes, identity
from .transfer_rig import HolderProcess, Reading, check_pages, holder, reading

PAGE = 1 << 20
PAGES = 256


async def memory_of(peer: pb.Peer, page_bytes: int = PAGE) -> bytes:
    async with channel(peer.address) as link:
        answer = await kv_pb2_grpc.KvPeerServiceStub(link).Handshake(
            pb.HandshakeRequest(reader=pb.Peer(name="r"), cache=identity(page_bytes))
        )
    return answer.memory.SerializeToString()


def read(mine: Reading, memory: bytes, sources: list[int], targets: list[int]) -> ReadOutcome:
    return mine.reader.submit(memory, 0, sources, targets).result()


async def read_slowly_and(
    mine: Reading, peer: HolderProcess, number: signal.Signals, seconds: float
) -> tuple[pb.Peer, object]:
    """Starts a long read, sends the holder a signal in the middle of it; the outcome."""
    memory = await memory_of(peer.peer)
    sources = np.arange(PAGES, dtype=np.int32)
    warm = await asyncio.to_thread(read, mine, memory, [0], [0])
    assert warm.failure is None
    future = mine.reader.submit(memory, 0, sources, sources, seconds=seconds)
    while not mine.arena.pages[8].any():
        await asyncio.sleep(0)
    peer.signal(number)
    return peer.peer, await asyncio.wait_for(asyncio.wrap_future(future), seconds + 10)


@pytest.mark.parametrize("transport", ["local", "tcp"])
async def test_a_holder_killed_under_a_read_leaves_a_whole_prefix(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp,cma" if transport == "local" else "tcp")
    with holder(page_bytes=PAGE, pages=PAGES, transport=transport) as peer:
        async with reading(page_bytes=PAGE, pages=PAGES) as mine:
            started = time.monotonic()
            _, outcome = await read_slowly_and(mine, peer, signal.SIGKILL, 30.0)
            assert time.monotonic() - started < 15
            if outcome.failure is None:  # the copy was faster than the signal
                assert outcome.arrived == PAGES
            else:
                assert outcome.failure is ReadFailure.DISCONNECTED
            # Source pages lie in reverse order of their contents.
            for i in range(outcome.arrived):
                check_pages(mine.arena, np.array([i]), 1, first=PAGES - 1 - i)
            assert (await mine.puller.pull(peer.peer, hashes(1, 1), np.zeros(1, np.int32))).failure


@pytest.mark.chaos
async def test_a_stalled_holder_ends_in_the_fence_and_a_late_write_is_impossible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # TCP: the holder itself must send, so stopping it stalls the read halfway.
    monkeypatch.setenv("UCX_TLS", "tcp")
    with holder(page_bytes=PAGE, pages=PAGES, transport="tcp") as peer:
        async with reading(page_bytes=PAGE, pages=PAGES) as mine:
            started = time.monotonic()
            _, outcome = await read_slowly_and(mine, peer, signal.SIGSTOP, 1.0)
            assert outcome.failure is ReadFailure.DEADLINE
            assert outcome.arrived < PAGES
            assert time.monotonic() - started < 8
            # The pages are free now: reuse them, wake the holder, and see them unharmed.
            mine.arena.pages[:] = 0xAB
            peer.signal(signal.SIGCONT)
            await asyncio.sleep(1.0)
            assert (mine.arena.pages == 0xAB).all()
            # The holder may not survive its waking: UCX's TCP aborts on the connections that the
            # fence closed. The reader does, and reads from others.
            with holder(page_bytes=PAGE, pages=4, name="other", transport="tcp") as other:
                targets = np.arange(4, dtype=np.int32)
                pulled = await mine.puller.pull(other.peer, hashes(1, 4), targets)
                assert (pulled.arrived, pulled.failure) == (4, None), pulled
                check_pages(mine.arena, targets, 1)


async def test_a_stopped_holder_costs_a_pull_seconds_and_is_read_again_when_it_wakes() -> None:
    with holder() as peer:
        async with reading() as mine:
            targets = np.arange(4, dtype=np.int32)
            assert (await mine.puller.pull(peer.peer, hashes(1, 4), targets)).failure is None
            peer.signal(signal.SIGSTOP)
            started = time.monotonic()
            stopped = await mine.puller.pull(peer.peer, hashes(1, 4), targets)
            assert stopped.failure is PullFailure.UNREACHABLE
            assert time.monotonic() - started < 8
            peer.signal(signal.SIGCONT)
            again = await mine.puller.pull(peer.peer, hashes(1, 4), targets)
            assert (again.arrived, again.failure) == (4, None), again


async def test_a_cancelled_pull_returns_only_when_nothing_writes_any_more() -> None:
    with holder(page_bytes=PAGE, pages=PAGES) as peer:
        async with reading(page_bytes=PAGE, pages=PAGES) as mine:
            targets = np.arange(PAGES, dtype=np.int32)
            pull = asyncio.create_task(mine.puller.pull(peer.peer, hashes(1, PAGES), targets))
            while not mine.arena.pages[4].any():
                await asyncio.sleep(0)
            pull.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pull
            mine.arena.pages[:] = 0xAB
            await asyncio.sleep(0.2)
            assert (mine.arena.pages == 0xAB).all()
            again = await mine.puller.pull(peer.peer, hashes(1, 2), targets[:2])
            assert again.failure is None


async def test_a_pull_cancelled_while_it_asks_lets_the_lease_go_that_it_is_granted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdicts: list[list[bool]] = []
    release = Holder.release

    async def noted(*given: Any, **named: Any) -> list[bool]:
        verdicts.append(await release(*given, **named))
        return verdicts[-1]

    monkeypatch.setattr(Holder, "release", noted)
    with holder() as peer:
        async with reading() as mine:
            targets = np.zeros(1, np.int32)
            assert (await mine.puller.pull(peer.peer, hashes(1, 1), targets)).failure is None
            await mine.puller.released()
            verdicts.clear()
            peer.signal(signal.SIGSTOP)
            pull = asyncio.create_task(mine.puller.pull(peer.peer, hashes(1, 1), targets))
            await asyncio.sleep(0)  # it has asked
            pull.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pull
            peer.signal(signal.SIGCONT)
            async with asyncio.timeout(10):
                while not verdicts:
                    await asyncio.sleep(0.01)
            assert verdicts == [[True]], "the holder had granted it and held it until now"


@pytest.mark.parametrize("checksums", [True, False])
async def test_a_lease_that_cannot_be_renewed_stops_the_read(
    checksums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")
    options = {"ttl_cap_ms": 50, "renewable": False, "transport": "tcp", "checksums": checksums}
    with holder(page_bytes=PAGE, pages=PAGES, **options) as peer:
        settings = PullSettings(ttl_ms=400)
        async with reading(page_bytes=PAGE, pages=PAGES, settings=settings) as mine:
            targets = np.arange(PAGES, dtype=np.int32)
            for _ in range(3):  # until one lasts longer than its lease
                pulled = await mine.puller.pull(peer.peer, hashes(1, PAGES), targets)
                if pulled.failure is not None:
                    break
            if not checksums:
                assert (pulled.arrived, pulled.failure) == (0, PullFailure.EXPIRED), pulled
                return
            # What had come by then proves itself.
            assert pulled.failure is PullFailure.READ, pulled
            assert pulled.read_failure is ReadFailure.STOPPED
            check_pages(mine.arena, targets[: pulled.arrived], 1)


async def test_a_reader_that_closes_ends_its_reads() -> None:
    with holder(page_bytes=PAGE, pages=PAGES) as peer:
        async with reading(page_bytes=PAGE, pages=PAGES) as mine:
            memory = await memory_of(peer.peer)
            sources = np.arange(PAGES, dtype=np.int32)
            futures = [mine.reader.submit(memory, 0, sources, sources) for _ in range(3)]
            await asyncio.to_thread(mine.reader.close)
            outcomes = [future.result(timeout=5) for future in futures]
            assert outcomes[-1].failure is ReadFailure.CLOSED
            late = read(mine, memory, [0], [0])
            assert late.failure is ReadFailure.CLOSED
            assert not [t for t in threading.enumerate() if t.name.startswith("baton-read-")]


async def test_memory_that_makes_no_sense_is_refused_without_a_read() -> None:
    with holder() as peer:
        async with reading() as mine:
            memory = pb.ExportedCache.FromString(await memory_of(peer.peer, 65536))
            cases = {
                "outside": (memory.SerializeToString(), [64]),
                "bytes": (_changed(memory, page_bytes=4096), [0]),
                "neither": (_changed(memory, memory_type="DISK"), [0]),
                "not an ExportedCache": (b"\xff\xff", [0]),
                "of no rank": (b"", [0]),
                "no cache group 0": (pb.ExportedCache(ranks=[{}]).SerializeToString(), [0]),
                "peer metadata": (_changed(memory, agent_metadata=b"nonsense"), [0]),
            }
            for word, (data, sources) in cases.items():
                outcome = await asyncio.to_thread(read, mine, data, sources, [1])
                assert outcome.failure is ReadFailure.UNREADABLE, word
                assert word in outcome.detail, outcome
            with pytest.raises(ValueError, match="outside the arena"):
                read(mine, memory.SerializeToString(), [0], [64])


def _changed(memory: pb.ExportedCache, **fields: object) -> bytes:
    changed = pb.ExportedCache()
    changed.CopyFrom(memory)
    for name, value in fields.items():
        setattr(changed.ranks[0].groups[0], name, value)
    return changed.SerializeToString()


async def test_reads_of_one_page_by_many_callers_at_once_end_each_by_itself() -> None:
    """Small reads are done by who asks, unless the lanes are taken: both ways at once here."""
    with holder() as peer:
        async with reading() as mine:
            memory = await memory_of(peer.peer, 65536)

            def read_some(first: int) -> None:
                for i in range(first, 64, 8):
                    outcome = read(mine, memory, [63 - i], [i])
                    assert (outcome.arrived, outcome.failure) == (1, None), outcome

            await asyncio.gather(*(asyncio.to_thread(read_some, first) for first in range(8)))
            check_pages(mine.arena, np.arange(64), 1)


async def test_a_small_read_of_a_dead_holder_fences_away_from_its_caller() -> None:
    with holder() as peer:
        async with reading() as mine:
            targets = np.zeros(1, np.int32)
            memory = await memory_of(peer.peer, 65536)
            for _ in range(2):  # the second by the caller
                warm = await asyncio.to_thread(read, mine, memory, [0], [0])
                assert warm.failure is None
            peer.signal(signal.SIGKILL)
            peer.process.wait()
            dead = await asyncio.wait_for(
                asyncio.wrap_future(mine.reader.submit(memory, 0, [0], targets)), 10
            )
            assert dead.failure is ReadFailure.DISCONNECTED, dead
            # The lanes are free again, and can be used for the next attempt.
            again = mine.reader.submit(memory, 0, [0], targets, seconds=1.0)
            assert (await asyncio.wait_for(asyncio.wrap_future(again), 10)).failure


async def test_a_holder_that_died_before_the_first_read_is_disconnected_not_unreadable() -> None:
    with holder() as peer:
        memory = await memory_of(peer.peer, 65536)
        peer.signal(signal.SIGKILL)
        peer.process.wait()
        async with reading() as mine:
            dead = await asyncio.to_thread(read, mine, memory, [0], [0])
            assert dead.failure is ReadFailure.DISCONNECTED, dead
