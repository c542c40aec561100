"""Takes copies of what workers publish, as a reader like any other."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from baton.v1.kv_pb2 import Peer
from baton_kvstore.directory import HASH_BYTES, PageHash
from baton_kvstore.tier import GroupTier
from baton_telemetry import KvstoreMetrics
from baton_transfer import Puller

log = logging.getLogger("baton.kvstore")

# Pages that wait for one holder; older ones are likelier to be gone by the time.
_WAITING_PAGES = 1 << 14
_PULLS_AT_ONCE = 2
# After a holder that could not be read, so that a dead one costs nothing.
_PAUSE_S = 1.0


class Offloader:
    """Pulls published pages of one cache group into its tier, in batches, bounded in bytes. The
    puller is its user's to close. On one event loop."""

    def __init__(
        self,
        tier: GroupTier,
        puller: Puller,
        metrics: KvstoreMetrics,
        *,
        in_flight_bytes: int,
        delay_s: float,
        room: Callable[[], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        """`room` is waited for before places are taken. `changed` is called when the pool has
        changes for the directory."""
        self._room = room
        self._tier = tier
        self._puller = puller
        self._metrics = metrics
        self._delay_s = delay_s
        self._changed = changed
        # Never more than half of DRAM: what came before is being saved there.
        most = min(in_flight_bytes // tier.arena.page_bytes, tier.pool.num_pages // 2)
        self._batch = max(1, most // _PULLS_AT_ONCE)
        self._slots = asyncio.Semaphore(_PULLS_AT_ONCE)
        self._waiting: dict[tuple[str, int], dict[PageHash, None]] = {}
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    def published(self, peer: Peer, added: Sequence[PageHash], removed: Sequence[PageHash]) -> None:
        """A worker has these pages, and has not those; what is admitted is taken. Never waits."""
        life = (peer.address, peer.epoch)
        waiting = self._waiting.setdefault(life, {})
        for page in removed:
            waiting.pop(page, None)
        for page in added:
            if not self._tier.pool.knows(page) and self._tier.judge.admits(page):
                waiting[page] = None
        while len(waiting) > _WAITING_PAGES:
            del waiting[next(iter(waiting))]
        if not waiting:
            if life not in self._tasks:
                del self._waiting[life]
        elif life not in self._tasks:
            holder = Peer(name=peer.name, address=peer.address, epoch=peer.epoch)
            self._tasks[life] = asyncio.create_task(self._drain(life, holder))

    def wanted(
        self, pages: Sequence[PageHash], holder_of: Callable[[PageHash], Peer | None]
    ) -> None:
        """These were used: those that are admitted now are taken from who has them."""
        by_life: dict[tuple[str, int], tuple[Peer, list[PageHash]]] = {}
        for page in pages:
            holder = None if self._tier.pool.knows(page) else holder_of(page)
            if holder is not None:
                by_life.setdefault((holder.address, holder.epoch), (holder, []))[1].append(page)
        for holder, theirs in by_life.values():
            self.published(holder, theirs, ())

    def unwanted(self, pages: Sequence[PageHash]) -> None:
        """Nobody wants these any more."""
        for waiting in self._waiting.values():
            for page in pages:
                waiting.pop(page, None)

    def gone(self, peer: Peer) -> None:
        """A holder died: what waits for it never comes."""
        waiting = self._waiting.get((peer.address, peer.epoch))
        if waiting is not None:
            waiting.clear()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing moves."""
        return not self._tasks

    async def close(self) -> None:
        """Ends every pull; afterwards nothing writes into the tier."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _drain(self, life: tuple[str, int], holder: Peer) -> None:
        waiting = self._waiting[life]
        try:
            await asyncio.sleep(self._delay_s)
            while waiting:
                async with self._slots:
                    await self._room()
                    pages = self._take(waiting)
                    whole = not pages or await self._offload(holder, pages)
                if not whole:
                    await asyncio.sleep(_PAUSE_S)
        finally:
            del self._tasks[life]
            del self._waiting[life]

    def _take(self, waiting: dict[PageHash, None]) -> list[PageHash]:
        pages: list[PageHash] = []
        while waiting and len(pages) < self._batch:
            page = next(iter(waiting))
            del waiting[page]
            # Another holder's copy may have come in the meantime.
            if not self._tier.pool.knows(page):
                pages.append(page)
        return pages

    async def _offload(self, holder: Peer, pages: list[PageHash]) -> bool:
        """Pulls these pages; False when the holder is better left alone for a while."""
        pool, arena = self._tier.pool, self._tier.arena
        started = time.monotonic()
        evicted = pool.evicted
        slots = pool.reserve(pages, started)
        self._metrics.evicted(self._tier.label, pool.evicted - evicted)
        wanted = pages[: len(slots)]
        self._again(holder, pages[len(slots) :])
        arrived = 0
        try:
            if not wanted:
                self._metrics.offload_failed("full")
                return False
            hashes = np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, HASH_BYTES)
            pulled = await self._puller.pull(holder, hashes, slots, group=self._tier.group)
            sums = await asyncio.to_thread(arena.checksums, slots[: pulled.arrived])
            for page, checksum in zip(wanted[: pulled.arrived], sums.tolist(), strict=True):
                pool.filled(page, checksum)
            arrived = pulled.arrived
        finally:
            # Terminal by now, also when cancelled: Puller.pull returns no earlier.
            for page in wanted[arrived:]:
                pool.unfilled(page)
            self._changed()
        if pulled.failure is not None:
            self._metrics.offload_failed(str(pulled.read_failure or pulled.failure))
            log.debug("offload from %s: %s %s", holder.name, pulled.failure, pulled.detail)
        if arrived:
            self._metrics.offloaded(
                self._tier.label,
                pages=arrived,
                moved_bytes=pulled.moved_bytes,
                seconds=time.monotonic() - started,
            )
        self._again(holder, wanted[arrived + 1 :] if pulled.failure == "not_held" else [])
        return pulled.failure in (None, "not_held")

    def _again(self, holder: Peer, pages: list[PageHash]) -> None:
        """A lease ends at the first page that the holder has lost; those after it may be there."""
        waiting = self._waiting.get((holder.address, holder.epoch))
        if waiting is not None:
            waiting.update(dict.fromkeys(pages))
