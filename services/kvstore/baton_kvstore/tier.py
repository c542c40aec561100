"""DRAM as a holder: memory, pool, the agent that others read from, and our own reader."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import CacheIdentity, ExportedCache, Handover, Peer
from baton_kvstore.directory import split_hashes
from baton_kvstore.groups import PageJudge, StateJudge, shares
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
)

TIER = "dram"


@dataclass(frozen=True, slots=True)
class GroupTier:
    """DRAM of one cache group."""

    group: int
    suffix: str  # of its tiers' names in metrics: _ and the group's name, none for token pages
    arena: PageArena
    pool: PagePool
    judge: PageJudge

    @property
    def label(self) -> str:
        """In metrics."""
        return TIER + self.suffix


@dataclass(slots=True)
class Tier:
    """What exists once the cache identity is known."""

    identity: CacheIdentity
    groups: list[GroupTier]  # as identity.groups
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
            self.reader,
            settings=PullSettings(credit_bytes=credit_bytes),
        )

    def close(self) -> None:
        """Ends reads by us and of us, frees the memory."""
        self.reader.close()
        self.exporter.close()


def make_tier(
    me: Peer, identity: CacheIdentity, capacity_bytes: int, judge: Judge, *, saves: bool
) -> Tier | None:
    """Allocates the tier; None when not one page of every cache group fits.

    `saves`: a disk is below. Takes half a second (NIXL's first agent loads UCX): not on the event
    loop.
    """
    counts = shares(identity, capacity_bytes)
    if not all(counts):
        return None
    groups = []
    for index, (group, count) in enumerate(zip(identity.groups, counts, strict=True)):
        arena = PageArena.allocate(page_bytes=group.page_bytes, num_pages=count)
        views = StateJudge(judge, index, group.page_bytes) if index else judge
        suffix = f"_{group.name}" if index else ""
        # Leases of an earlier life are fenced by the epoch; ids need not differ.
        groups.append(GroupTier(index, suffix, arena, PagePool(count, views, saves=saves), views))
    arenas = [group.arena for group in groups]
    exporter = Exporter(me.name, me.epoch, arenas)
    reader = CacheReader(f"{me.name}-{me.epoch:x}-offload", identity.groups, arenas)
    return Tier(identity, groups, exporter, reader)


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
        held = self.tier.groups[group]
        lease, pages, sums = held.pool.grant(chain, time.monotonic(), ttl)
        self._metrics.asked(held.label, pages=len(chain), held=len(pages))
        # Each pool counts its own leases: the remainder says whose one is.
        numbered = lease * len(self.tier.groups) + group if lease else 0
        return LeaseGrant(numbered, pages, sums, int(ttl * 1000))

    def renew(self, leases: Sequence[int], ttl_ms: int) -> list[int]:
        if self.tier is None:
            return list(leases)
        ttl, now = min(ttl_ms / 1000, self._max_ttl_s), time.monotonic()
        expired = []
        for lease in leases:
            number, group = divmod(lease, len(self.tier.groups))
            if self.tier.groups[group].pool.renew([number], now, ttl):
                expired.append(lease)
        return expired

    def release(self, leases: Sequence[int]) -> list[bool]:
        if self.tier is None:
            return [False] * len(leases)
        now, valid = time.monotonic(), []
        for lease in leases:
            number, group = divmod(lease, len(self.tier.groups))
            valid += self.tier.groups[group].pool.release([number], now)
        return valid

    def handed_over(self, request_id: str, attempt: int) -> None:
        """Nobody hands over here."""

    async def watch(self, reader: str) -> AsyncIterator[Sequence[Handover]]:
        """No hand-overs: the stream ends at once."""
        none: tuple[Sequence[Handover], ...] = ()
        for batch in none:
            yield batch
