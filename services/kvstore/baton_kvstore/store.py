"""One kvstore's state: directory, watchers, and the tiers once somebody has published."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baton.v1 import errors_pb2 as errors
from baton.v1 import kv_pb2 as pb
from baton_kvstore.config import KvstoreConfig
from baton_kvstore.directory import HASH_BYTES, Directory, PageHash
from baton_kvstore.disk_files import open_files
from baton_kvstore.groups import beside
from baton_kvstore.judge import Judge
from baton_kvstore.nvme import NvmeTier
from baton_kvstore.offload import Offloader
from baton_kvstore.peers import TierServicer
from baton_kvstore.ring import HashRing
from baton_kvstore.tier import GroupTier, Tier, TierHolder, make_tier
from baton_kvstore.watchers import Watchers
from baton_rpc import Refusal
from baton_telemetry import KvstoreMetrics
from baton_transfer import WIRE_VERSION, DirectoryPublisher, Puller, differing_field

log = logging.getLogger("baton.kvstore")

_TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class Turn:
    """What a router told of a turn. `session` is empty for a prompt of no session."""

    session: bytes
    tenant: bytes
    chain: Sequence[PageHash]
    ttl_s: float
    family: bytes


class Store:
    """Ties the parts together. Used on one event loop."""

    def __init__(self, config: KvstoreConfig, me: pb.Peer, metrics: KvstoreMetrics) -> None:
        self.directory = Directory(config.holder_timeout_s)
        self.watchers = Watchers(config.watcher_queue)
        self.holder = TierHolder(metrics, config.lease_ttl_s)
        self.peers = TierServicer(self.holder, me)
        self.judge = Judge(
            sightings=config.sightings,
            sessions=config.sessions,
            admit_all=config.admission == "all",
            mine=self._mine,
            hot_uses=config.hot_uses,
        )
        self._ring = HashRing(config.replicas or (config.address,))
        self._siblings: list[DirectoryPublisher] = []
        self._config = config
        self._me = me
        self._metrics = metrics
        self._identity: pb.CacheIdentity | None = None
        self._opening: asyncio.Task[None] | None = None
        self._offloaders: list[Offloader] = []  # one for each cache group
        self._puller: Puller | None = None
        self._disks: list[NvmeTier] = []  # as the offloaders, when there is a disk
        self._sequence = 0
        self._ticking = asyncio.create_task(self._tick())

    def publish(
        self, request: pb.PublishRequest, added: Sequence[PageHash], removed: Sequence[PageHash]
    ) -> bool:
        """A holder's word; False: it must publish everything. Raises Refusal."""
        if request.sequence == 0:
            self._check(request.holder, request.cache)
        in_order = self.directory.publish(
            request.holder,
            request.sequence,
            added,
            removed,
            time.monotonic(),
            storage=request.storage,
        )
        self._metrics.published(resync=not in_order)
        for offloader in self._offloaders if in_order else ():
            offloader.published(request.holder, added, removed)
        self._tell()
        return in_order

    def turns(self, turns: Sequence[Turn]) -> None:
        """Turns are over: what they used is worth more, and may be taken."""
        now = time.monotonic()
        for turn in turns:
            freed = self.judge.turn(
                turn.session, turn.tenant, turn.chain, now, turn.ttl_s, turn.family
            )
            self._free(self.judge.over(freed))
            for held, offloader in self._each():
                pages = beside(turn.chain, held.group)
                held.pool.judged_anew(pages)
                offloader.wanted(pages, self._other_holder)

    def sessions_over(self, sessions: Sequence[bytes], had: Sequence[PageHash]) -> list[PageHash]:
        """Sessions are closed; what of their pages, and of `had`, no other session has."""
        freed = [page for session in sessions for page in self.judge.sessions.close(session)]
        free = self.judge.over(list(dict.fromkeys([*freed, *had])))
        self._free(free)
        return free

    def _other_holder(self, page: PageHash) -> pb.Peer | None:
        return self.directory.holder_of(page, other_than=self._me.name)

    def _free(self, pages: Sequence[PageHash]) -> None:
        if not pages:
            return
        dropped = 0
        for held, offloader in self._each():
            theirs = beside(pages, held.group)
            offloader.unwanted(theirs)
            dropped += held.pool.drop(theirs)
        if dropped:
            self._tier_changed()

    def _each(self) -> list[tuple[GroupTier, Offloader]]:
        tier = self.holder.tier
        return [] if tier is None else list(zip(tier.groups, self._offloaders, strict=True))

    async def close(self) -> None:
        """Ends offloads and the tier. The servers are stopped already."""
        self._ticking.cancel()
        tasks = [self._ticking]
        if self._opening is not None:
            tasks.append(self._opening)
        await asyncio.wait(tasks)
        for sibling in self._siblings:
            await sibling.stop()
        for offloader in self._offloaders:
            await offloader.close()
        if self._puller is not None:
            await self._puller.close()
        await asyncio.gather(*(disk.close() for disk in self._disks))
        if self.holder.tier is not None:
            self.holder.tier.close()

    def _check(self, holder: pb.Peer, cache: pb.CacheIdentity) -> None:
        if holder.name == self._me.name:
            raise Refusal(
                errors.ERROR_REASON_INCOMPATIBLE_PEER,
                f"{holder.name!r} is the kvstore's own name; name the worker differently",
                {"field": "name"},
            )
        if self._identity is None and cache.wire_version == WIRE_VERSION:
            self._identity = cache
            self._opening = asyncio.create_task(self._open(cache))
            return
        ours = self._identity or pb.CacheIdentity(wire_version=WIRE_VERSION)
        field = differing_field(ours, cache)
        if field is not None:
            raise Refusal(
                errors.ERROR_REASON_INCOMPATIBLE_PEER,
                f"this kvstore keeps pages of another cache than {holder.name}: {field}; "
                "run one kvstore for each",
                {"field": field.partition(":")[0]},
            )

    async def _open(self, identity: pb.CacheIdentity) -> None:
        """Any failure leaves a directory without tiers, and says so."""
        try:
            await self._open_tiers(identity)
        except (OSError, ValueError, RuntimeError) as error:
            log.error("no tiers, this is a directory only: %s", error)

    async def _open_tiers(self, identity: pb.CacheIdentity) -> None:
        capacity = self._config.capacity_mb << 20
        saves = self._config.nvme_path is not None
        tier = await asyncio.to_thread(
            make_tier, self._me, identity, capacity, self.judge, saves=saves
        )
        if tier is None:
            log.warning(
                "no DRAM tier: capacity_mb %d, cache groups %s; this is a directory only",
                self._config.capacity_mb,
                [(group.name, group.page_bytes) for group in identity.groups],
            )
            return
        self.judge.page_tokens = identity.page_size
        self.judge.page_bytes = tier.groups[0].arena.page_bytes
        self.judge.several_groups = len(tier.groups) > 1
        if self._config.nvme_path is not None:
            await self._open_disks(self._config.nvme_path, tier)
        in_flight = self._config.in_flight_mb << 20
        self._puller = tier.puller(self._me, in_flight)
        self._offloaders = [
            Offloader(
                group,
                self._puller,
                self._metrics,
                in_flight_bytes=in_flight // len(tier.groups),
                delay_s=self._config.offload_delay_s,
                room=partial(self._room, group.group),
                changed=self._tier_changed,
            )
            for group in tier.groups
        ]
        self.holder.tier = tier
        self.peers.open(identity, tier.exported)
        for group in tier.groups:
            pages, page_bytes = group.pool.num_pages, group.arena.page_bytes
            log.info("%s tier: %d pages of %d bytes", group.label, pages, page_bytes)
        self._tier_changed()
        self._tell_siblings(identity, tier)
        self._catch_up()

    async def _open_disks(self, path: Path, tier: Tier) -> None:
        arenas = [group.arena for group in tier.groups]
        try:
            files = await asyncio.to_thread(
                open_files, path, tier.identity, arenas, self._config.nvme_mb
            )
        except BaseException:
            tier.close()
            raise
        self._disks = self.peers.disks = [
            NvmeTier(theirs, group, self.judge, self._metrics, self._tier_changed)
            for theirs, group in zip(files, tier.groups, strict=True)
        ]

    def _mine(self, page: PageHash, hot: bool) -> bool:
        return self._config.address in self._ring.owners(page, 2 if hot else 1)

    def _tell_siblings(self, identity: pb.CacheIdentity, tier: Tier) -> None:
        """Every directory is whole: each kvstore publishes its tier to the others."""
        for address in sorted(self._ring.members - {self._config.address}):
            sibling = DirectoryPublisher(
                address,
                self._me,
                identity,
                lambda: _rows(_held(tier)),
                storage=True,
            )
            sibling.start()
            self._siblings.append(sibling)

    async def _room(self, group: int) -> None:
        if self._disks:
            await self._disks[group].room()

    def _catch_up(self) -> None:
        """What was published before the tier was there."""
        for change in self.directory.snapshot():
            if not change.storage:
                pages = [change.added[i : i + 16] for i in range(0, len(change.added), 16)]
                for offloader in self._offloaders:
                    offloader.published(change.holder, pages, ())

    def _tier_changed(self) -> None:
        tier = self.holder.tier
        if tier is None:
            return
        for disk in self._disks:
            disk.wake()
        changes = [group.pool.take_changes() for group in tier.groups]
        added = [page for came, _ in changes for page in came]
        removed = [page for _, went in changes for page in went]
        for sibling in self._siblings if added or removed else ():
            sibling.publish(b"".join(added), b"".join(removed))
        now = time.monotonic()
        self.directory.publish(self._me, self._sequence, added, removed, now, storage=True)
        self._sequence += 1
        self._measure(tier)
        self._tell()

    def _tell(self) -> None:
        self.watchers.tell(self.directory.take_changes())

    def _measure(self, tier: Tier) -> None:
        for group in tier.groups:
            self._metrics.tier(
                group.label,
                pages=group.pool.in_dram,
                held_bytes=group.pool.in_dram * group.arena.page_bytes,
                capacity_pages=group.pool.num_pages,
            )
        for disk in self._disks:
            disk.measure()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            self.directory.touch(self._me.name, now)
            for held, _ in self._each():
                held.pool.expire(now)
            for peer in self.directory.expire(now):
                log.warning(
                    "%s at %s has gone silent; its pages are forgotten", peer.name, peer.address
                )
                self._metrics.holder_expired()
                for offloader in self._offloaders:
                    offloader.gone(peer)
            self._free(self.judge.over(self.judge.sessions.expire(now)))
            self._tell()
            self._metrics.sessions.set(len(self.judge.sessions))
            self._metrics.session_pages.set(self.judge.sessions.pages)
            self._metrics.directory_pages.set(self.directory.pages)
            self._metrics.directory_entries.set(self.directory.entries)
            self._metrics.holders.set(self.directory.holders)
            self._metrics.watchers.set(len(self.watchers))


def _held(tier: Tier) -> list[PageHash]:
    return [page for group in tier.groups for page in group.pool.held_pages()]


def _rows(pages: Sequence[PageHash]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(pages), np.uint8).reshape(-1, HASH_BYTES)
