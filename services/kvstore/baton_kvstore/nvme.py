"""The disk tier: copies of DRAM's pages in a file, written behind, read back when asked for.

Two threads, one for each direction, do what waits for the disk; everything that is known is known
on the event loop. A disk that fails or is full costs copies, never the service.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from baton_kvstore.directory import PageHash
from baton_kvstore.disk_files import FULL, DiskFiles
from baton_kvstore.disk_index import DiskIndex, DiskRecord
from baton_kvstore.groups import in_group
from baton_kvstore.judge import Judge
from baton_kvstore.pool import Move
from baton_kvstore.tier import GroupTier
from baton_telemetry import KvstoreMetrics

log = logging.getLogger("baton.kvstore")

Result = TypeVar("Result")

NVME = "nvme"
# The file grows by this much at a time, so that a large tier costs no minutes at its start.
_GROWTH_BYTES = 64 << 20
# After a refusal of the disk: it may have room again.
_PAUSE_S = 5.0
# Pins last as long as a load; this is for loads that never end.
_PIN_S = 60.0
# How long a load waits for places; its reader's patience is longer.
_PATIENCE_S = 3.0
_LAST_SAVES_S = 5.0


class NvmeTier:
    """Moves pages of one cache group between its tiers. Used on one event loop."""

    def __init__(
        self,
        files: DiskFiles,
        dram: GroupTier,
        judge: Judge,
        metrics: KvstoreMetrics,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when the pool has changes for the directory."""
        self.label = NVME + dram.suffix  # in metrics
        self._files = files
        self._pool = dram.pool
        self._group = dram.group
        self._judge = judge
        self._metrics = metrics
        self._changed = changed
        self._writing = ThreadPoolExecutor(1, "baton-nvme-write")
        self._reading = ThreadPoolExecutor(1, "baton-nvme-read")
        self._work = asyncio.Event()
        self._progress = asyncio.Event()
        self._loads: set[asyncio.Task[None]] = set()
        self._one_load = asyncio.Lock()
        self._remember(files.index)
        self._saver = asyncio.create_task(self._save_behind())

    def _remember(self, index: DiskIndex) -> None:
        """What an earlier life left."""
        self._pool.disk.grow(self._files.writer.slots)
        found = index.found
        for record in found:
            self._judge.sightings.recall(
                in_group(record.page, self._group),
                record.tenant,
                record.index,
                record.length,
                record.uses,
            )
        self._pool.found_on_disk((r.page, r.slot, r.checksum) for r in found)
        self._metrics.dropped(self.label, "torn_record", index.torn)
        log.info(
            "%s tier: up to %d pages by %s, %s; %d of an earlier life, %d torn",
            self.label,
            self._files.most_slots,
            self._files.writer.queue.name.lower(),
            "direct" if self._files.writer.direct else "through the page cache",
            len(found),
            index.torn,
        )

    def wake(self) -> None:
        """There may be pages to save or slots to erase."""
        self._work.set()

    def measure(self) -> None:
        """Tells the metrics how full it is."""
        disk = self._pool.disk
        self._metrics.tier(
            self.label,
            pages=len(disk),
            held_bytes=len(disk) * self._files.arena.page_bytes,
            capacity_pages=disk.capacity,
        )

    async def room(self) -> None:
        """Waits while most of DRAM waits for the disk: what came more would push it out unsaved."""
        while self._pool.disk_takes and 2 * self._pool.unsaved > self._pool.num_pages:
            self._progress.clear()
            await self._progress.wait()

    async def load(self, chain: Sequence[PageHash]) -> Callable[[], None]:
        """Brings what the disk has of the chain's held prefix into DRAM, as far as it fits.

        It stays there until the answer is called. Pages that are not what they were are dropped.
        """
        pins: list[int] = []
        if any(not self._pool.can_lease(page) for page in self._pool.held_prefix(chain)):
            task = asyncio.create_task(self._load(chain, pins))
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)
            try:
                # A reader that gives up does not stop the thread that fills the places.
                await asyncio.shield(task)
            except asyncio.CancelledError:
                task.add_done_callback(lambda _: self._unpin(pins))
                raise
        return lambda: self._unpin(pins)

    async def close(self) -> None:
        """Waits for what the threads do, then ends them. Unsaved pages are saved first, if the
        disk takes them in time."""
        self._work.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SAVES_S):
                while self._pool.unsaved and self._pool.disk_takes:
                    self._progress.clear()
                    await self._progress.wait()
        self._saver.cancel()
        await asyncio.wait([self._saver, *self._loads])
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._writing.shutdown(wait=True)
        self._reading.shutdown(wait=True)
        self._files.close()

    # ---- saving

    async def _save_behind(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._save_all()
                self._pool.disk_takes = True
            except OSError as error:
                self._pool.disk_takes = False
                self._count(error)
                self._progress.set()
                await asyncio.sleep(_PAUSE_S)
                self._work.set()

    async def _save_all(self) -> None:
        """Raises OSError when the disk refuses."""
        loop = asyncio.get_running_loop()
        while True:
            refusal = await self._grow()
            erased = self._pool.take_erased()
            if erased:
                await loop.run_in_executor(self._writing, self._files.erase, erased)
            moves = self._pool.to_save(self._files.writer.batch)
            if moves:
                await self._save(moves)
                self._changed()
                self._progress.set()
                # Within what it has, a full disk still keeps the best pages.
            elif refusal is not None and self._pool.unsaved:
                raise refusal
            else:
                return

    async def _grow(self) -> OSError | None:
        """Makes room for what waits; why not, when the disk has none."""
        disk, files = self._pool.disk, self._files
        wanted = min(files.most_slots, len(disk) + self._pool.unsaved)
        if wanted <= disk.capacity:
            return None
        step = max(1, _GROWTH_BYTES // files.arena.page_bytes)
        loop = asyncio.get_running_loop()
        try:
            slots = await loop.run_in_executor(self._writing, files.grow, disk.capacity + step)
        except OSError as error:
            self._count(error)
            return error
        disk.grow(slots)
        return None

    def _count(self, error: OSError) -> None:
        log.warning("%s tier of %d pages: %s", self.label, self._pool.disk.capacity, error)
        self._metrics.disk_refused("full" if error.errno in FULL else "failed")

    async def _save(self, moves: Sequence[Move]) -> None:
        started, whole = time.monotonic(), False
        records = [self._record(move) for move in moves]
        before = self._pool.evicted_from_disk
        writing = asyncio.wrap_future(self._writing.submit(self._files.save, moves, records))
        try:
            await _terminal(writing)
            whole = True
        finally:
            for move in moves:
                self._pool.saved(move.page, whole=whole)
        self._metrics.evicted(self.label, self._pool.evicted_from_disk - before)
        self._metrics.offloaded(
            self.label,
            pages=len(moves),
            moved_bytes=len(moves) * self._files.arena.page_bytes,
            seconds=time.monotonic() - started,
        )

    def _record(self, move: Move) -> DiskRecord:
        # Of what is not a token page, what is known of the one that it stands after.
        seen = self._judge.sightings.of(in_group(move.page, self._group))
        return DiskRecord(
            move.slot, move.page, move.checksum, seen.tenant, seen.index, seen.length, seen.uses
        )

    # ---- loading

    async def _load(self, chain: Sequence[PageHash], pins: list[int]) -> None:
        until = time.monotonic() + _PATIENCE_S
        # One at a time: there is one reading thread, and two would fight for places.
        async with self._one_load:
            self._pin(chain, pins)
            while True:
                moves = self._pool.to_load(chain, time.monotonic())
                for first in range(0, len(moves), self._files.reader.batch):
                    await self._read(moves[first : first + self._files.reader.batch], pins)
                if moves:
                    self._changed()
                missing = any(not self._pool.can_lease(p) for p in self._pool.held_prefix(chain))
                if not missing:
                    return
                # What was loaded may have pushed out what comes later in the chain: again.
                if not moves and not await self._saved_more(until):
                    return

    async def _saved_more(self, until: float) -> bool:
        """Waits for places: pages that are being saved may go once they are."""
        if not self._pool.unsaved or not self._pool.disk_takes:
            return False
        self._progress.clear()
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._progress.wait()
        except TimeoutError:
            return False
        return True

    async def _read(self, moves: Sequence[Move], pins: list[int]) -> None:
        whole = [False] * len(moves)
        reading = asyncio.wrap_future(self._reading.submit(self._files.load, moves))
        try:
            whole = await _terminal(reading)
        finally:
            for move, good in zip(moves, whole, strict=True):
                self._pool.loaded(move.page, whole=good)
        self._metrics.restored(self.label, sum(whole))
        self._metrics.dropped(self.label, "not_whole", len(whole) - sum(whole))
        self._pin([m.page for m, good in zip(moves, whole, strict=True) if good], pins)

    def _pin(self, pages: Sequence[PageHash], pins: list[int]) -> None:
        lease, _, _ = self._pool.grant(pages, time.monotonic(), _PIN_S)
        if lease:
            pins.append(lease)

    def _unpin(self, pins: list[int]) -> None:
        self._pool.release(pins, time.monotonic())
        pins.clear()


async def _terminal(future: "asyncio.Future[Result]") -> Result:
    """The future's end, however often we are cancelled: a thread works on the pages."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return future.result()
