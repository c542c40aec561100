"""A process that holds pages, for the transfer tests: `python transfer_holder.py JSON`.

Prints one JSON line (address, epoch) when it serves; ends when its stdin does.
Page i of seed s contains `page_content(s, i, page_bytes)` and has the identity
`page_hash(s, i)`, so the reading side knows what must arrive. `page_bytes` may be
a list: that many cache groups. Page i of group g contains `page_content(s + g, i, ...)`
and goes by `page_hash(s, i, g)`: the identity of what stands after page i. `listed`: in
tables of seals, which of the pages `moved` say where they were once.
"""

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
from numpy.typing import NDArray

from baton.v1 import kv_pb2 as pb
from baton.v1.kv_pb2_grpc import add_KvPeerServiceServicer_to_server
from baton_rpc import Server, host_of
from baton_scheduler import in_group
from baton_transfer import (
    Exporter,
    KvPeerServicer,
    LeaseBook,
    LeaseGrant,
    PageArena,
    SealTable,
    Transport,
    cache_identity,
    configure_ucx,
    new_epoch,
)

GROUPS = ("full", "state")
PAGES_BETWEEN_STATES = 2


def page_hash(seed: int, index: int, group: int = 0) -> bytes:
    tokens = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=16).digest()
    return in_group(np.frombuffer(tokens, np.uint8).reshape(1, 16), group).tobytes()


def hashes(seed: int, count: int, first: int = 0, group: int = 0) -> NDArray[np.uint8]:
    """uint8 [count, 16]."""
    data = b"".join(page_hash(seed, i, group) for i in range(first, first + count))
    return np.frombuffer(data, np.uint8).reshape(count, 16)


def page_content(seed: int, index: int, page_bytes: int) -> NDArray[np.uint8]:
    pattern = np.random.default_rng([seed, index]).integers(0, 256, 4096, np.uint8)
    return np.resize(pattern, page_bytes)


def identity(
    page_bytes: int | Sequence[int],
    fingerprint: str = "model",
    page_size: int = 16,
    dtype: str = "float32",
) -> pb.CacheIdentity:
    sizes = [page_bytes] if isinstance(page_bytes, int) else page_bytes
    groups = [
        pb.CacheGroupIdentity(
            name=name,
            dtype=dtype,
            layers=2,
            page_bytes=size,
            snapshot_every=PAGES_BETWEEN_STATES * page_size * (name == "state"),
        )
        for name, size in zip(GROUPS, sizes, strict=False)
    ]
    return cache_identity(fingerprint, page_size, groups)


class Shelf:
    """A PageHolder of fixed pages; page i lies at slot num_pages - 1 - i."""

    def __init__(self, arenas: Sequence[PageArena], options: dict[str, object]) -> None:
        self.arenas = arenas
        seed = int(str(options["seed"]))
        self.slots = [
            {page_hash(seed, i, group): arena.num_pages - 1 - i for i in range(arena.num_pages)}
            for group, arena in enumerate(arenas)
        ]
        self.ttl_cap_ms = int(str(options.get("ttl_cap_ms", 60_000)))
        self.renewable = bool(options.get("renewable", True))
        self.with_checksums = bool(options.get("checksums", True))
        self.corrupt = set(options.get("corrupt", ()))  # type: ignore[call-overload]
        self.book = LeaseBook(1, lambda pages: None)
        self.handed: list[tuple[str, int]] = []
        self.told = asyncio.Event()

    def grant(self, reader: str, hashes: NDArray[np.uint8], ttl_ms: int, group: int) -> LeaseGrant:
        arena = self.arenas[group]
        pages: list[int] = []
        for row in hashes:
            slot = self.slots[group].get(row.tobytes())
            if slot is None:
                break
            pages.append(slot)
        if not pages:
            return LeaseGrant(0, np.empty(0, np.int32), None, 0)
        held = np.array(pages, np.int32)
        sums = arena.checksums(held) if self.with_checksums else None
        for page in held[np.isin(held, [arena.num_pages - 1 - i for i in self.corrupt])]:
            arena.pages[page, -1] ^= 1  # after the checksum was taken
        ttl_ms = min(ttl_ms, self.ttl_cap_ms)
        lease = self.book.grant(held, time.monotonic(), ttl_ms / 1000)
        return LeaseGrant(lease, held, sums, ttl_ms)

    def renew(self, leases: Sequence[int], ttl_ms: int) -> list[int]:
        ttl_ms = min(ttl_ms, self.ttl_cap_ms) if self.renewable else 0
        return self.book.renew(leases, time.monotonic(), ttl_ms / 1000)

    def release(self, leases: Sequence[int]) -> list[bool]:
        return self.book.release(leases, time.monotonic())

    def handed_over(self, request_id: str, attempt: int) -> None:
        self.handed.append((request_id, attempt))
        self.told.set()

    async def watch(self, reader: str) -> AsyncIterator[Sequence[pb.Handover]]:
        """Two steps of request r1, then silence until it is handed over; then r2 fails."""
        yield [pb.Handover(request_id="r1", attempt=1, sealed_pages=1)]
        await asyncio.sleep(0.05)
        first = pb.FirstToken(token_id=42)
        yield [pb.Handover(request_id="r1", attempt=1, sealed_pages=3, first_token=first)]
        await self.told.wait()
        yield [pb.Handover(request_id="r2", attempt=1, failed=40)]
        await asyncio.Event().wait()


def list_all(arenas: Sequence[PageArena], options: dict[str, object]) -> list[SealTable]:
    tables = []
    for group, arena in enumerate(arenas):
        slots = np.arange(arena.num_pages, dtype=np.int32)[::-1].copy()
        sums = arena.checksums(slots)
        for page in options.get("moved", ()):  # type: ignore[attr-defined]
            slots[page] = slots[page + 1]
        tables.append(SealTable(arena.num_pages))
        listed = hashes(int(str(options["seed"])), arena.num_pages, group=group)
        tables[-1].put(listed, slots, sums)
    return tables


async def hold(options: dict[str, object]) -> None:
    configure_ucx(Transport(str(options.get("transport", "local"))))
    pages, seed = int(str(options["pages"])), int(str(options["seed"]))
    sizes = options["page_bytes"]
    page_bytes = sizes if isinstance(sizes, list) else [int(str(sizes))]
    arenas = [PageArena.allocate(page_bytes=size, num_pages=pages) for size in page_bytes]
    for group, arena in enumerate(arenas):
        for i in range(pages):
            arena.pages[pages - 1 - i] = page_content(seed + group, i, arena.page_bytes)
    name, epoch = str(options.get("name", "holder")), new_epoch()
    me = pb.Peer(name=name, epoch=epoch)
    tables = list_all(arenas, options) if options.get("listed") else ()
    exporter = Exporter(name, epoch, arenas, tables=tables)
    cache = identity(page_bytes, str(options.get("fingerprint", "model")))
    exported = pb.ExportedCache(ranks=[exporter.exported])
    servicer = KvPeerServicer(Shelf(arenas, options), me, cache, exported)
    listen = str(options.get("listen", "127.0.0.1:0"))
    server = Server(listen, [(servicer, add_KvPeerServiceServicer_to_server)])
    await servicer.open_leases(host_of(listen))
    await server.start()
    me.address = server.address
    print(json.dumps({"address": me.address, "epoch": epoch, "name": name}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()
    await servicer.close_leases()
    exporter.close()


if __name__ == "__main__":
    asyncio.run(hold(json.loads(sys.argv[1])))
