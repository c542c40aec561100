"""Pulled pages against raw NIXL, in the same run, between two processes of this machine.

python bench/handover/throughput.py [--rounds N]

A pull is everything that a worker pays from the call of `pull` to its result:
lease, read, checksum of every page, judgement. (The release follows; with
checksums its verdict is not waited for.) One page is found in the holder's table
of seals, as workers on one host do, and needs no lease; "leased" is the same
page for a reader that does not see the table. Raw NIXL is one posted read of the
same pages by an agent of the same settings, nothing around it. A lease trip is
one empty renewal on a lease connection: what asking the holder costs at least.
Rounds alternate them; printed are the medians, and the median of the rounds'
ratios. One page is read after all pages were, and then others with a pause of a
millisecond before each ("alone"). A pull has two lanes, so its figures want a
second core that is free: the load beside the figures says whether it was.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from baton.v1 import kv_pb2 as pb
from baton.v1.kv_pb2_grpc import KvPeerServiceStub, add_KvPeerServiceServicer_to_server
from baton_rpc import Server, channel
from baton_transfer import (
    CacheReader,
    Exporter,
    KvPeerServicer,
    LeaseBook,
    LeaseGrant,
    MemoryType,
    PageArena,
    Puller,
    SealTable,
    cache_identity,
    configure_ucx,
    new_epoch,
)
from baton_transfer.agent import Agent, XferState
from baton_transfer.lease_stream import LeaseStream

SALT = 0x9E3779B9  # identities are no small numbers
SHAPES = ((1000, 64 << 10), (128, 4_500_000 // 4096 * 4096))


class Shelf:
    """Holds page i under the identity i, with checksums taken once, as when pages are sealed."""

    def __init__(self, arena: PageArena) -> None:
        self._sums = arena.checksums(range(arena.num_pages))
        self._book = LeaseBook(1, lambda pages: None)

    def grant(self, reader: str, hashes: NDArray[np.uint8], ttl_ms: int, group: int) -> LeaseGrant:
        pages = hashes[:, :4].copy().view(np.int32).reshape(-1)
        lease = self._book.grant(pages, time.monotonic(), ttl_ms / 1000)
        return LeaseGrant(lease, pages, self._sums[pages], ttl_ms)

    def renew(self, leases: Sequence[int], ttl_ms: int) -> list[int]:
        return self._book.renew(leases, time.monotonic(), ttl_ms / 1000)

    def release(self, leases: Sequence[int]) -> list[bool]:
        return self._book.release(leases, time.monotonic())

    def handed_over(self, request_id: str, attempt: int) -> None:
        raise ValueError(f"nothing was prefilled here, {request_id} neither")

    async def watch(self, reader: str) -> AsyncIterator[Sequence[pb.Handover]]:
        none: tuple[Sequence[pb.Handover], ...] = ()
        for batch in none:
            yield batch


def identity(page_bytes: int) -> pb.CacheIdentity:
    group = pb.CacheGroupIdentity(name="full", dtype="uint8", layers=1, page_bytes=page_bytes)
    return cache_identity("bench", 16, [group])


async def hold(pages: int, page_bytes: int) -> None:
    """The holder's process: serves until its stdin ends."""
    configure_ucx()
    arena = PageArena.allocate(page_bytes=page_bytes, num_pages=pages)
    arena.pages[:] = np.random.default_rng(0).integers(0, 256, page_bytes, np.uint8)
    arena.pages[:, :4] = np.arange(pages, dtype=np.int32)[:, None].view(np.uint8)
    me = pb.Peer(name="bench-holder", epoch=new_epoch())
    table = SealTable(pages)
    exporter = Exporter(me.name, me.epoch, [arena], tables=[table])
    exported = pb.ExportedCache(ranks=[exporter.exported])
    everything = np.arange(pages, dtype=np.int32)
    table.put(_hashes(everything), everything, arena.checksums(everything))
    servicer = KvPeerServicer(Shelf(arena), me, identity(page_bytes), exported)
    server = Server("127.0.0.1:0", [(servicer, add_KvPeerServiceServicer_to_server)])
    await servicer.open_leases("127.0.0.1")
    await server.start()
    me.address = server.address
    print(me.address, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()
    await servicer.close_leases()
    exporter.close()


class Raw:
    """NIXL with nothing around it."""

    def __init__(self, arena: PageArena, memory: pb.ExportedMemory) -> None:
        self._agent = Agent("bench-raw", progress_thread=False)
        self._agent.register(arena.address, arena.size, arena.memory_type, arena.device)
        peer = self._agent.add_peer(memory.agent_metadata)
        kind = MemoryType.DRAM
        size, count = arena.page_bytes, arena.num_pages
        self._local = self._agent.prepare(None, arena.address, size, count, kind, 0)
        self._remote = self._agent.prepare(peer, memory.base, size, memory.pages, kind, 0)

    def read(self, sources: NDArray[np.int32], targets: NDArray[np.int32]) -> float:
        started = time.perf_counter()
        begun = self._agent.read(self._local, targets, self._remote, sources)
        state = XferState.DONE
        if begun is not None:  # else the post has done all of it
            handle, state = begun
            while state is XferState.RUNNING:
                state = self._agent.state(handle)
            self._agent.release(handle)
        seconds = time.perf_counter() - started
        if state is not XferState.DONE:
            raise RuntimeError(f"raw read ended {state}")
        return seconds

    def close(self) -> None:
        self._agent.destroy()


class BlindReader:
    """A reader that does not see tables of seals, as on another host."""

    def __init__(self, reader: CacheReader) -> None:
        self.begin = reader.begin
        self.forget = reader.forget

    def unleased(self, memory: bytes, group: int) -> None:
        """Nothing is."""


@dataclass
class Figures:
    """Seconds of every round, by what was timed."""

    pages: int
    page_bytes: int
    seconds: dict[str, list[float]]

    def ratio(self, over: str, under: str) -> float:
        """Median over the rounds."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        return median(a / b for a, b in pairs)

    def row(self) -> str:
        size = self.pages * self.page_bytes / 1e9
        middle = {name: median(times) for name, times in self.seconds.items()}
        ones = "".join(
            f"\n   one page{label}: raw {middle['raw' + one] * 1e6:5.0f} us, "
            f"pull {middle['pull' + one] * 1e6:5.0f} us, "
            f"{self.ratio('pull' + one, 'raw' + one):4.1f} x raw (wanted: 2); "
            f"leased {middle['leased' + one] * 1e6:5.0f} us, "
            f"{self.ratio('leased' + one, 'raw' + one):4.1f} x raw, "
            f"of it a lease trip {middle['trip' + one] * 1e6:4.0f} us"
            for one, label in (("_one", "       "), ("_alone", ", alone"))
        )
        return (
            f"{self.pages:5d} x {self.page_bytes / 1024:5.0f} KiB: "
            f"raw {size / middle['raw']:5.2f} GB/s, pull {size / middle['pull']:5.2f} GB/s, "
            f"{self.ratio('raw', 'pull'):4.0%} of raw (wanted: 90%){ones}"
        )


def _hashes(pages: NDArray[np.int32]) -> NDArray[np.uint8]:
    rows = np.empty((len(pages), 4), np.uint32)
    rows[:, 0] = pages
    rows[:, 1:] = SALT
    return rows.view(np.uint8)


def _one_page(
    pairs: Iterator[tuple[np.int32, np.int32]],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    source, target = next(pairs)
    return np.array([source]), np.array([target])


async def measure(address: str, pages: int, page_bytes: int, rounds: int) -> Figures:
    arena = PageArena.allocate(page_bytes=page_bytes, num_pages=pages)
    arena.pages[:] = 1  # touched: page faults are not what is measured
    me = pb.Peer(name="bench-reader", address="127.0.0.1:1", epoch=new_epoch())
    source = pb.Peer(name="bench-holder", address=address)
    async with channel(address) as link:
        hello = pb.HandshakeRequest(reader=me, cache=identity(page_bytes))
        hands = await KvPeerServiceStub(link).Handshake(hello)
    leases = await LeaseStream.dial(address, hands.lease_port, hands.lease_ticket, 5.0)
    raw = Raw(arena, hands.memory.ranks[0].groups[0])
    reader = CacheReader("bench", identity(page_bytes).groups, [arena])
    puller = Puller(me, identity(page_bytes), reader)
    leasing = Puller(me, identity(page_bytes), BlindReader(reader))
    random = np.random.default_rng(1)
    seconds: dict[str, list[float]] = defaultdict(list)

    async def trip() -> None:
        await leases.ask(pb.LeaseRequest(renew=pb.RenewRequest()), 5.0)

    async def pull(puller: Puller, hashes: NDArray[np.uint8], targets: NDArray[np.int32]) -> None:
        pulled = await puller.pull(source, hashes, targets)
        if pulled.failure is not None:
            raise RuntimeError(f"pull failed: {pulled}")

    async def timed(name: str, work: Coroutine[Any, Any, None]) -> None:
        started = time.perf_counter()
        await work
        seconds[name].append(time.perf_counter() - started)

    def shuffled() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return random.permutation(pages).astype(np.int32), random.permutation(pages).astype(
            np.int32
        )

    async def one_page(label: str, pause: float) -> None:
        # Another page each time: what was just read lies in the caches.
        ones = iter(zip(*shuffled(), strict=True))
        await asyncio.sleep(pause)
        seconds["raw" + label].append(raw.read(*_one_page(ones)))
        await asyncio.sleep(pause)
        await timed("trip" + label, trip())
        for name, by in (("pull", puller), ("leased", leasing)):
            await asyncio.sleep(pause)
            one, place = _one_page(ones)
            await timed(name + label, pull(by, _hashes(one), place))

    try:
        for by in (puller, puller, leasing):  # the second finds everything connected
            await pull(by, _hashes(np.arange(1, dtype=np.int32)), np.zeros(1, np.int32))
        for _ in range(rounds):
            sources, targets = shuffled()
            seconds["raw"].append(raw.read(sources, targets))
            await timed("pull", pull(puller, _hashes(sources), targets))
            await one_page("_one", 0.0)
        for _ in range(5 * rounds):  # apart from the others: a core that slept is slow for a while
            await one_page("_alone", 1e-3)
    finally:
        leases.close()
        await puller.close()
        await leasing.close()
        reader.close()
        raw.close()
    return Figures(pages, page_bytes, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        uvloop.run(hold(**json.loads(options.hold)))
        return
    configure_ucx()
    for pages, page_bytes in SHAPES:
        shape = json.dumps({"pages": pages, "page_bytes": page_bytes})
        holder = subprocess.Popen(
            [sys.executable, __file__, "--hold", shape],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with holder:
            if holder.stdout is None or holder.stdin is None:
                raise RuntimeError("the holder has no pipes")
            address = holder.stdout.readline().strip()
            print(uvloop.run(measure(address, pages, page_bytes, options.rounds)).row())
            holder.stdin.close()
    print(f"load while this ran: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
