"""Bringing up the ranks of one worker: processes, checkpoint, warm-up, exported memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from baton.v1.kv_pb2 import CacheIdentity, ExportedCache, ExportedRank, Peer
from baton_engine.arena import PageChecksums
from baton_engine.config import EngineConfig
from baton_engine.groups import side_groups
from baton_engine.rank_transfer import RankTransfer
from baton_engine.ranks.group import RankedRunner, RankGroup
from baton_engine.ranks.group_init import RankStore, join_group, leave_group
from baton_engine.ranks.group_reader import GroupReader
from baton_engine.ranks.launch import launcher
from baton_engine.runner import LoadProgress, ModelRunner, set_threads, single_place
from baton_engine.step_loop import StepRunner
from baton_transfer import (
    CacheReader,
    Cut,
    PageArena,
    Puller,
    PullSettings,
    cache_identity,
    configure_ucx,
)

T = TypeVar("T")

_READY_TIMEOUT_S = 600.0


@dataclass(slots=True)
class Ranks:
    """All ranks of a worker, loaded and warm."""

    local: ModelRunner
    group: RankGroup | None  # None without tensor parallelism
    runner: StepRunner
    transfer: RankTransfer  # of rank 0
    reader: CacheReader | GroupReader
    identity: CacheIdentity
    exported: ExportedCache

    @property
    def arenas(self) -> tuple[PageArena, ...]:
        """Rank 0's pages, of every cache group by its number."""
        return self.transfer.exporter.arenas

    def checksums(self) -> PageChecksums:
        """Of the pages of all ranks that others read from."""
        tables = self.transfer.tables
        if self.group is None:
            return PageChecksums(self.arenas, tables=tables)
        ranks = len(self.exported.ranks)
        sources = [Cut.of(group).sources(ranks) for group in self.identity.groups]
        return PageChecksums(self.arenas, sources, self.group.checksums, tables)

    def close(self) -> None:
        """End transfers, then the followers. No step may run."""
        self.transfer.close()
        if self.group is not None:
            self.group.stop()
            leave_group()


async def bring_up(
    config: EngineConfig,
    name: str,
    epoch: int,
    progress: LoadProgress | None,
    on_lost: Callable[[str], None],
) -> Ranks:
    """Load every rank, side by side. `on_lost` is called, from another thread, when a follower
    ends at any later time. ValueError: cannot be served; RanksLost: a rank did not come up.

    Call it on the main thread: followers die with the thread that starts them.
    """
    configure_ucx(config.transport)
    set_threads(config.threads)
    if config.tp == 1:
        local = await _in_thread(lambda: _load_alone(config, progress))
        return _with_transfer(local, config, name, epoch)
    starter = launcher(config.launcher)
    group = RankGroup(starter, config.tp - 1)
    try:
        store = RankStore(starter.host, config.tp)
        lost = asyncio.Event()
        reasons: list[str] = []
        loop = asyncio.get_running_loop()

        def note_lost(reason: str) -> None:
            reasons.append(reason)
            loop.call_soon_threadsafe(lost.set)
            on_lost(reason)

        group.greet(config, store.rendezvous, name, epoch, note_lost)
        loading = asyncio.create_task(_in_thread(lambda: _load_first(config, store, progress)))
        losing = asyncio.create_task(lost.wait())
        await asyncio.wait({loading, losing}, return_when=asyncio.FIRST_COMPLETED)
        losing.cancel()
        if reasons:  # rank 0 may be waiting for a rank that will never come
            raise RuntimeError(reasons[0])
        local = await loading
        others = await _in_thread(lambda: group.wait_ready(_READY_TIMEOUT_S))
        return _with_transfer(local, config, name, epoch, group, others)
    except BaseException:
        group.stop()
        raise


def _load_alone(config: EngineConfig, progress: LoadProgress | None) -> ModelRunner:
    runner = ModelRunner(config, single_place(), progress)
    runner.warm_up()
    return runner


def _load_first(
    config: EngineConfig, store: RankStore, progress: LoadProgress | None
) -> ModelRunner:
    place = join_group(store.rendezvous, store.store)
    runner = ModelRunner(config, place, progress)
    runner.warm_up()
    return runner


def _with_transfer(
    local: ModelRunner,
    config: EngineConfig,
    name: str,
    epoch: int,
    group: RankGroup | None = None,
    others: Sequence[ExportedRank] = (),
) -> Ranks:
    """others: the memory of the followers."""
    lists = config.lists_sealed_pages
    transfer = RankTransfer(name, epoch, local.arena, 0, config.tp, lists=lists)
    return Ranks(
        local=local,
        group=group,
        runner=local if group is None else RankedRunner(local, group),
        transfer=transfer,
        reader=transfer.reader if group is None else GroupReader(transfer.reader, group),
        identity=_identity(local, config),
        exported=ExportedCache(ranks=[transfer.exporter.exported, *others]),
    )


def _identity(local: ModelRunner, config: EngineConfig) -> CacheIdentity:
    groups = local.arena.group_identities()
    for group, side in zip(groups[1:], side_groups(local.arena.layout, config), strict=True):
        group.snapshot_every = side.tokens
    return cache_identity(local.fingerprint, config.page_size, groups)


def open_puller(me: Peer, ranks: Ranks, config: EngineConfig) -> Puller:
    """Pulls into the arenas of all ranks."""
    settings = PullSettings(ttl_ms=config.lease_ttl_ms)
    return Puller(me, ranks.identity, ranks.reader, settings=settings)


async def _in_thread(work: Callable[[], T]) -> T:
    """Run on a daemon thread: unlike an executor's, one that is stuck waiting for a dead rank does
    not keep the process from exiting."""
    future: Future[T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only unheard
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to whoever awaits
            future.set_exception(error)

    threading.Thread(target=run, name="baton-load", daemon=True).start()
    return await asyncio.wrap_future(future)
