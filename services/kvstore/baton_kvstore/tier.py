"""DRAM as a holder: memory, pool, the agent that others read from, and our own reader."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import CacheIdentity, ExportedCache, Handover, Peer
from baton_kvstore.directory import split_hashes
from baton_kvstore.judge import Judge
from baton_kvstore.pool import PagePool
from baton_telemetry import KvstoreMetrics
from baton_transfer import (
    CacheReader,
    Exporter,
    LeaseGrant,
    PageArena,
    Puller,
    PullSettings,
    read_with,
)

TIER = "dram"


@dataclass(slots=True)
class Tier:
    """What exists once the cache identity is known."""

    identity: CacheIdentity
    arena: PageArena
    pool: PagePool
    exporter: Exporter
    reader: CacheReader

    @property
    def exported(self) -> ExportedCache:
        """What readers get: pages as one rank alone has them."""
        return ExportedCache(ranks=[self.exporter.exported])

    def puller(self, me: Peer, credit_bytes: int) -> Puller:
        """Made on the event loop that uses it."""
        return Puller(
            me,
            self.identity,
            read_with(self.reader),
            forget=self.reader.forget,
            settings=PullSettings(credit_bytes=credit_bytes),
        )

    def close(self) -> None:
        """Ends reads by us and of us, frees the memory."""
        self.reader.close()
        self.exporter.close()


def make_tier(
    me: Peer, identity: CacheIdentity, capacity_bytes: int, judge: Judge, *, saves: bool
) -> Tier | None:
    """Allocates the tier; None when not one page fits, or when there are several cache groups.

    What a page is published under does not say of which group it is, so there must be one.
    `saves`: a disk is below. Takes half a second (NIXL's first agent loads UCX): not on the event
    loop.
    """
    if len(identity.groups) != 1:
        return None
    page_bytes = identity.groups[0].page_bytes
    num_pages = capacity_bytes // page_bytes if page_bytes else 0
    if not num_pages:
        return None
    arena = PageArena.allocate(page_bytes=page_bytes, num_pages=num_pages)
    # Leases of an earlier life are fenced by the epoch; ids need not differ.
    pool = PagePool(num_pages, judge, saves=saves)
    exporter = Exporter(me.name, me.epoch, [arena])
    reader = CacheReader(f"{me.name}-{me.epoch:x}-offload", identity.groups, [arena])
    return Tier(identity, arena, pool, exporter, reader)


class TierHolder:
    """A PageHolder over the pool; empty until `tier` is set."""

    def __init__(self, metrics: KvstoreMetrics, max_ttl_s: float) -> None:
        self.tier: Tier | None = None
        self._metrics = metrics
        self._max_ttl_s = max_ttl_s

    def grant(self, reader: str, hashes: NDArray[np.uint8], ttl_ms: int, group: int) -> LeaseGrant:
        if self.tier is None:
            return LeaseGrant(0, np.empty(0, np.int32), None, 0)
        ttl = min(ttl_ms / 1000, self._max_ttl_s)
        chain = split_hashes(hashes.tobytes())
        lease, pages, sums = self.tier.pool.grant(chain, time.monotonic(), ttl)
        self._metrics.asked(TIER, pages=len(chain), held=len(pages))
        return LeaseGrant(lease, pages, sums, int(ttl * 1000))

    def renew(self, leases: Sequence[int], ttl_ms: int) -> list[int]:
        if self.tier is None:
            return list(leases)
        ttl = min(ttl_ms / 1000, self._max_ttl_s)
        return self.tier.pool.renew(leases, time.monotonic(), ttl)

    def release(self, leases: Sequence[int]) -> list[bool]:
        if self.tier is None:
            return [False] * len(leases)
        return self.tier.pool.release(leases, time.monotonic())

    def handed_over(self, request_id: str, attempt: int) -> None:
        """Nobody hands over here."""

    async def watch(self, reader: str) -> AsyncIterator[Sequence[Handover]]:
        """No hand-overs: the stream ends at once."""
        none: tuple[Sequence[Handover], ...] = ()
        for batch in none:
            yield batch
