"""One worker: engine, desk, server and publisher, from start to orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from baton.v1 import kv_pb2, kv_pb2_grpc, worker_pb2_grpc
from baton.v1 import worker_pb2 as wire
from baton_engine import Engine, GrammarCompiler, StepEvents
from baton_rpc import Mount, Server, host_of, stop_signal
from baton_scheduler import cache_key
from baton_telemetry import WorkerMetrics, serve_metrics
from baton_transfer import WIRE_VERSION, DirectoryPublisher, KvPeerServicer
from baton_worker.config import WorkerConfig
from baton_worker.constraints import CompiledConstraints
from baton_worker.desk import Desk
from baton_worker.measuring import Measuring
from baton_worker.role import Role
from baton_worker.servicer import WorkerServicer
from baton_worker.updates import pool_message

log = logging.getLogger("baton.worker")

_WATCH_S = 0.5
_LAST_WORDS_S = 2.0


class EngineLost(RuntimeError):
    """The engine ended by itself; the process should be replaced."""


async def serve_worker(config: WorkerConfig, role: Role) -> None:
    """Runs until SIGTERM or SIGINT, then drains. Raises EngineLost when the engine fails,
    ValueError for a checkpoint that cannot be served, OSError for an address in use."""
    stop = stop_signal()
    metrics = WorkerMetrics()
    exposition = serve_metrics(config.metrics, metrics) if config.metrics else None
    engine = Engine(config.engine, role=role.name, name=config.name)
    try:
        if await _loaded(engine, stop):
            await _Worker(config, role, engine, metrics).run(stop)
    finally:
        await engine.stop()
        if exposition is not None:
            exposition.close()
    log.info("%s worker %s has ended", role.name, config.name)


async def _loaded(engine: Engine, stop: asyncio.Event) -> bool:
    """False when the signal came first."""
    begun = time.monotonic()
    loading = asyncio.create_task(engine.load(_progress()))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            return False
        loading.result()
    finally:
        for task in (loading, stopping):
            task.cancel()
        await asyncio.gather(loading, stopping, return_exceptions=True)
    log.info("engine loaded in %.2f s", time.monotonic() - begun)
    return True


def _progress() -> Callable[[str, float], None]:
    """Logs quarters: a large checkpoint takes minutes and has thousands of tensors."""
    told = 0

    def progress(what: str, fraction: float) -> None:
        nonlocal told
        quarter = int(4 * fraction)
        if quarter > told:
            told = quarter
            log.info("loading: %d %% (%s)", 25 * quarter, what)

    return progress


class _Worker:
    """All that exists once the engine is loaded."""

    def __init__(
        self, config: WorkerConfig, role: Role, engine: Engine, metrics: WorkerMetrics
    ) -> None:
        self._config = config
        self._role = role
        self._engine = engine
        self._measuring = Measuring(metrics)
        self._about = engine.description
        constraints = CompiledConstraints(
            GrammarCompiler(config.engine.model_path, self._about.vocab_size)
        )
        self._desk = Desk(engine, role, self._about.vocab_size, self._measuring, constraints)
        # Its address is known once the port is; everybody below holds this one object.
        self._me = kv_pb2.Peer(name=config.name, epoch=engine.epoch)
        self._peer = KvPeerServicer(engine.holder, self._me, self._about.identity, engine.exported)
        mounts: list[Mount] = [
            (
                WorkerServicer(self._desk, self._hello),
                worker_pb2_grpc.add_WorkerServiceServicer_to_server,
            ),
            (self._peer, kv_pb2_grpc.add_KvPeerServiceServicer_to_server),
        ]
        if config.gateway is not None:
            mounts += self._direct_mounts()
        self._server = Server(config.listen, mounts)
        self._publishers: list[DirectoryPublisher] = []
        self._pool = self._about.pool  # as routers and metrics know it

    def _direct_mounts(self) -> list[Mount]:
        """For a gateway that drives us itself. Its messages come with the extra [gateway]."""
        try:
            from baton_worker.direct import DirectServicer, Rooms, add_scheduler_to_server
            from baton_worker.direct.requests import Served, eos_token_ids
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"gateway is {self._config.gateway!r} and {error.name} is not installed: "
                "pip install 'baton-serve[gateway]'"
            ) from error
        about, path = self._about, self._config.engine.model_path
        served = Served(
            checkpoint=path,
            max_context=about.max_context,
            vocab_size=about.vocab_size,
            eos_token_ids=eos_token_ids(path),
            cache_key=cache_key(about.identity.model_fingerprint, ""),
        )
        rooms = Rooms(self._me)
        direct = DirectServicer(
            self._role.name, self._desk, served, self._me, rooms, lambda: pool_message(self._pool)
        )
        return [
            (direct, add_scheduler_to_server),
            (rooms, worker_pb2_grpc.add_RendezvousServiceServicer_to_server),
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop`, then drains."""
        await self._peer.open_leases(host_of(self._config.listen))
        await self._server.start(serving=False)
        self._me.address = self._config.advertise or self._server.address
        try:
            self._engine.start(self._me.address, self._on_events)
            self._start_publishing()
            self._measuring.pool(self._about.pool)
            watching = asyncio.create_task(self._watch_pool())
            await self._server.set_serving(True)
            log.info("%s worker %s serves at %s", self._role.name, self._me.name, self._me.address)
            try:
                await self._until(stop)
                await self._drain()
            except EngineLost:
                await self._say_last_words()
                raise
            finally:
                watching.cancel()
        finally:
            for publisher in self._publishers:
                await publisher.stop()
            await self._server.stop()
            await self._peer.close_leases()

    def _start_publishing(self) -> None:
        for address in self._config.kvstore:
            publisher = DirectoryPublisher(
                address, self._me, self._about.identity, self._engine.held_hashes
            )
            publisher.start()
            self._publishers.append(publisher)

    async def _until(self, stop: asyncio.Event) -> None:
        """Raises EngineLost."""
        failed = asyncio.create_task(self._engine.failed())
        asked = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([failed, asked], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise EngineLost(f"worker {self._me.name}: the engine is lost: {failed.result()}")
        finally:
            for task in (failed, asked):
                task.cancel()
            await asyncio.gather(failed, asked, return_exceptions=True)

    async def _drain(self) -> None:
        log.info("draining for up to %g s", self._config.drain_s)
        await self._server.set_serving(False)
        self._engine.drain()
        self._desk.drain()
        try:
            async with asyncio.timeout(self._config.drain_s):
                await self._engine.drained()
                await self._desk.finish()
        except TimeoutError:
            log.warning("requests are still running after %g s; they end now", self._config.drain_s)

    async def _say_last_words(self) -> None:
        """The engine has failed every request: let the routers hear it before the streams end."""
        await self._server.set_serving(False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._desk.finish()

    async def _watch_pool(self) -> None:
        """What changes between steps: leases of peers end, fetches of cancelled requests do."""
        while True:
            pool = self._engine.description.pool
            if pool != self._pool:
                self._pool = pool
                self._measuring.pool(pool)
                self._desk.note_pool(pool_message(pool))
            self._measuring.directory(sum(p.failures for p in self._publishers))
            await asyncio.sleep(_WATCH_S)

    def _on_events(self, events: StepEvents) -> None:
        """On the event loop, once per step."""
        self._pool = events.pool
        self._desk.deliver(events)
        self._measuring.step(events)
        if len(events.sealed) or len(events.evicted):
            for publisher in self._publishers:
                publisher.publish(events.sealed, events.evicted)

    def _hello(self) -> wire.WorkerHello:
        return wire.WorkerHello(
            worker=self._me.name,
            role=self._role.wire,
            wire_version=WIRE_VERSION,
            epoch=self._me.epoch,
            peer=self._me,
            cache=self._about.identity,
            max_context=self._about.max_context,
            max_running=self._about.max_running,
            pool=pool_message(self._engine.description.pool),
        )
