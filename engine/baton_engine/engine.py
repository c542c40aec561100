"""The engine: scheduler, model, page arena and fetching, behind one thread-safe object."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

import baton_scheduler as scheduling
from baton.v1.kv_pb2 import CacheIdentity, ExportedCache, Peer
from baton_engine.config import EngineConfig
from baton_engine.core import EngineCore, now_us
from baton_engine.events import FailReason, Hashes, PoolState, StepEvents
from baton_engine.fetching import Fetcher
from baton_engine.groups import side_groups
from baton_engine.handover_board import HandoverBoard
from baton_engine.holder import EngineHolder
from baton_engine.loading import Ranks, bring_up, open_puller
from baton_engine.poison import FreePagePoison
from baton_engine.refusal import EngineRefusal, refuse_admission, validate
from baton_engine.request import Await, EngineRequest, Generate, HandOver
from baton_engine.runner import LoadProgress, resolve_max_context
from baton_engine.sampling import TokenSampler
from baton_engine.step_loop import Published, StepLoop
from baton_engine.stops import TokenStopMatcher
from baton_transfer import PageArena, PageHolder, new_epoch

log = logging.getLogger(__name__)

Role = Literal["prefill", "decode", "fused"]

_ROLES = {
    "prefill": scheduling.Role.PREFILL,
    "decode": scheduling.Role.DECODE,
    "fused": scheduling.Role.FUSED,
}
_GOALS = {
    Generate: scheduling.Goal.GENERATE,
    HandOver: scheduling.Goal.HAND_OVER,
    Await: scheduling.Goal.AWAIT,
}


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """What a worker tells a router in its hello. Available once loaded."""

    identity: CacheIdentity
    max_context: int
    max_running: int
    vocab_size: int
    pool: PoolState


@dataclass(slots=True)
class _Loaded:
    """All that exists once the checkpoint is loaded."""

    core: EngineCore
    ranks: Ranks
    board: HandoverBoard
    holder: EngineHolder
    max_context: int


@dataclass(slots=True)
class _Running:
    """All that exists once the engine steps."""

    loop: StepLoop
    fetcher: Fetcher
    peer: Peer
    on_events: Callable[[StepEvents], None]


class Engine:
    """One worker's execution plane (rank 0 of its tensor-parallel group).

    Life: `await load()` -> build the servicer on `holder`, `exported`, `description` ->
    `start(address, on_events)` -> submit / cancel ... -> `drain()` -> `await stop()`.

    The model runs on the engine's own thread. Every other method is called on the event
    loop and answers within microseconds, also while the model computes. Everything that
    happens is told through `on_events`, called on the event loop once per step.
    """

    def __init__(
        self, config: EngineConfig, *, role: Role, name: str, epoch: int | None = None
    ) -> None:
        """`name`: this worker's, unique in the cluster. `epoch`: of this life, new by default."""
        self.config = config
        self.role = role
        self.name = name
        self.epoch = new_epoch() if epoch is None else epoch
        self._loaded_state: _Loaded | None = None
        self._running: _Running | None = None
        self._lost: str | None = None  # a rank ended, perhaps before loading had
        self._failed = asyncio.Event()
        self._quiet = asyncio.Event()

    # -- life -------------------------------------------------------------------------------

    async def load(self, progress: LoadProgress | None = None) -> None:
        """Start the other ranks, read the checkpoint, allocate the arena, run one tiny step.

        Raises ValueError for a checkpoint or config that cannot be served, RuntimeError when
        a rank did not come up. Call it on the main thread.
        """
        max_context = resolve_max_context(self.config)
        ranks = await bring_up(self.config, self.name, self.epoch, progress, self._rank_lost)
        config, layout = self.config, ranks.local.arena.layout
        beside = side_groups(layout, config)
        scheduler = scheduling.Scheduler(
            scheduling.Config(
                role=_ROLES[self.role],
                page_size=config.page_size,
                num_pages=config.num_pages,
                max_running=config.max_running,
                max_step_tokens=config.max_step_tokens,
                max_chunk_tokens=config.max_chunk_tokens,
                max_context=max_context,
                max_waiting=config.max_waiting,
                hold_us=config.hold_ms * 1000,
                max_draft_tokens=config.draft_tokens,
                side_groups=beside,
            )
        )
        checksums = ranks.checksums() if config.keeps_checksums else None
        core = EngineCore(scheduler, config.page_size, checksums, groups=1 + len(beside))
        core.failure = self._lost
        board = HandoverBoard(linger_s=config.hold_ms / 1000)
        holder = EngineHolder(core, board, max_ttl_ms=2 * config.lease_ttl_ms)
        self._loaded_state = _Loaded(core, ranks, board, holder, max_context)

    def start(self, address: str, on_events: Callable[[StepEvents], None]) -> Peer:
        """Begin to step. `address`: host:port where others reach this worker's KvPeerService.

        Returns this worker as others see it.
        """
        loaded = self._loaded
        peer = Peer(name=self.name, address=address, epoch=self.epoch)
        event_loop = asyncio.get_running_loop()

        def publish(published: Published) -> None:
            event_loop.call_soon_threadsafe(self._deliver, published)

        slots = self.config.max_running
        loop = StepLoop(
            loaded.core,
            loaded.ranks.runner,
            TokenSampler(loaded.ranks.local.vocab_size, slots, self.config.device),
            TokenStopMatcher.of_checkpoint(self.config.model_path, slots),
            publish,
            max_slots=slots,
            poison=(
                FreePagePoison(loaded.ranks.arenas) if self.config.debug_poison_free_pages else None
            ),
            drafts=self.config.speculative is not None,
            captures=self.config.execution == "graphs",
        )
        puller = open_puller(peer, loaded.ranks, self.config)
        fetcher = Fetcher(loaded.core, puller, self.config)
        loaded.holder.ends_fetches_by(
            lambda handle: fetcher.end(handle, "the reader wants nothing more")
        )
        self._running = _Running(loop, fetcher, peer, on_events)
        loop.start()
        return peer

    def drain(self) -> None:
        """Refuse new attempts from now on; the live ones go on."""
        core = self._loaded.core
        with core.lock:
            core.draining = True
            idle = not len(core.ledger)
        if idle:
            self._quiet.set()

    async def drained(self) -> None:
        """After `drain()`: return when no attempt is live any more."""
        await self._quiet.wait()

    async def failed(self) -> str:
        """Return, with the reason, when the engine cannot go on (a rank died).

        All live attempts have had their Failed by then; the process should exit non-zero.
        """
        await self._failed.wait()
        return self._loaded.core.failure or "unknown"

    async def stop(self) -> None:
        """Fail what is live (CANCELLED), end fetches, thread and ranks. Idempotent."""
        loaded, running = self._loaded_state, self._running
        if loaded is None:
            return
        self._loaded_state = None
        core = loaded.core
        with core.lock:
            core.draining = True
            for live in core.ledger:
                core.cancel(live, FailReason.CANCELLED, "the worker stops")
        if running is not None:
            await running.fetcher.close()
            with core.lock:
                core.stopping = True
                core.wake()
            await asyncio.to_thread(running.loop.join)
            await asyncio.sleep(0)  # the thread's last words
        await asyncio.to_thread(loaded.ranks.close)

    # -- requests ---------------------------------------------------------------------------

    def submit(self, request: EngineRequest) -> None:
        """Take an attempt; its events follow, ending in exactly one Done or Failed.

        Raises EngineRefusal (no events follow): INVALID_PROMPT, PROMPT_TOO_LONG, OUT_OF_PAGES
        (could never fit the pool), OVERLOADED (the queue is full), DUPLICATE_REQUEST,
        DRAINING, INTERNAL (the engine has failed).
        """
        loaded = self._loaded
        validate(request, loaded.ranks.local.vocab_size)
        core = loaded.core
        with core.lock:
            if core.failure is not None:
                raise EngineRefusal(FailReason.INTERNAL, core.failure)
            if core.draining:
                raise EngineRefusal(FailReason.DRAINING, f"worker {self.name} is draining")
            if request.key in core.ledger:
                raise EngineRefusal(
                    FailReason.DUPLICATE_REQUEST, f"attempt {request.key} is already here"
                )
            handle, now = core.ledger.new_handle(), now_us()
            admission = core.scheduler.submit(
                handle,
                np.ascontiguousarray(request.token_ids, np.int32),
                max_new_tokens=request.max_new_tokens,
                key=request.cache_key,
                goal=_GOALS[type(request.goal)],
                fetch_pages=max((source.pages for source in request.sources), default=0),
                now_us=now,
            )
            if admission is not scheduling.Admission.ACCEPTED:
                raise refuse_admission(admission, request, self.config, loaded.max_context)
            core.ledger.add(handle, request, now)
            core.wake()
        loaded.board.open(request)

    def cancel(self, request_id: str, attempt: int) -> bool:
        """End an attempt with Failed(CANCELLED); False when it is unknown or over."""
        core = self._loaded.core
        with core.lock:
            live = core.ledger.find((request_id, attempt))
            if live is None:
                return False
            core.cancel(live, FailReason.CANCELLED, "cancelled")
        if self._running is not None:
            self._running.fetcher.end(live.handle, "the request was cancelled")
        return True

    def forget(self, hashes: Hashes) -> int:
        """Nobody will ask for these pages again, uint8 [n, 16]; how many were held.

        They leave the index now and the pool with their last user; `evicted` tells of them.
        """
        core = self._loaded.core
        with core.lock:
            held = core.scheduler.forget(np.ascontiguousarray(hashes, np.uint8))
            if held:
                core.wake()
        return held

    def prefill_lost(self, request_id: str, attempt: int) -> bool:
        """An Await attempt computes what has not arrived; False when it is not awaiting."""
        core = self._loaded.core
        with core.lock:
            live = core.ledger.find((request_id, attempt))
            if live is None or not live.awaiting:
                return False
            live.prefill_lost = True
        if self._running is not None:
            self._running.fetcher.end(live.handle, "the router lost the prefill worker")
        return True

    # -- as a holder of pages, and what is known of it ----------------------------------------

    @property
    def holder(self) -> PageHolder:
        """For KvPeerServicer."""
        return self._loaded.holder

    @property
    def exported(self) -> ExportedCache:
        """For KvPeerServicer."""
        return self._loaded.ranks.exported

    @property
    def arenas(self) -> tuple[PageArena, ...]:
        """The pages of rank 0, of every cache group by its number."""
        return self._loaded.ranks.arenas

    @property
    def description(self) -> EngineDescription:
        """Identity, limits and pool state."""
        loaded = self._loaded
        with loaded.core.lock:
            pool = loaded.core.pool()
        return EngineDescription(
            identity=loaded.ranks.identity,
            max_context=loaded.max_context,
            max_running=self.config.max_running,
            vocab_size=loaded.ranks.local.vocab_size,
            pool=pool,
        )

    @property
    def rank_pids(self) -> list[int]:
        """Process ids of ranks 1..n-1, for operators and tests; empty where Ray placed them."""
        group = self._loaded.ranks.group
        return [] if group is None else group.pids

    def held_hashes(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """uint8 [n, 16]: every full page that can be leased, for a directory's resync."""
        core = self._loaded.core
        with core.lock:
            return core.scheduler.held_hashes().copy()

    # -- inside -----------------------------------------------------------------------------

    @property
    def _loaded(self) -> _Loaded:
        if self._loaded_state is None:
            raise RuntimeError(f"engine {self.name} is not loaded, or was stopped")
        return self._loaded_state

    def _deliver(self, published: Published) -> None:
        """On the event loop, once per step."""
        loaded, running = self._loaded_state, self._running
        if running is None:
            return
        if loaded is not None:
            loaded.board.update(published.events.events)
            with loaded.core.lock:
                failure = loaded.core.failure
                quiet = loaded.core.draining and not len(loaded.core.ledger)
            if failure is not None:
                self._failed.set()
            if quiet:
                self._quiet.set()
        running.fetcher.begin(published.fetches)
        running.on_events(published.events)

    def _rank_lost(self, reason: str) -> None:
        """From a thread of the rank group."""
        self._lost = reason
        loaded = self._loaded_state
        if loaded is not None:
            with loaded.core.lock:
                loaded.core.failure = loaded.core.failure or reason
                loaded.core.wake()
