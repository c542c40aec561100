"""The router process: assembles the server, runs until it is told to stop."""

import asyncio
import logging

from baton.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from baton_router.config import RouterConfig
from baton_router.directory import DirectoryWatch
from baton_router.page_index import PageIndex
from baton_router.pool import WorkerPool
from baton_router.requests import RequestReader
from baton_router.running import RequestRunner
from baton_router.service import InferenceServicer
from baton_router.sessions import Sessions
from baton_rpc import Mount, Server, stop_signal
from baton_telemetry import RouterMetrics, serve_metrics

log = logging.getLogger("baton.router")


async def serve(config: RouterConfig) -> None:
    """Runs until SIGTERM or SIGINT, then drains.

    Raises CheckpointError for a checkpoint without what a router needs, OSError
    when an address is taken. Health is SERVING while a decode worker is there.
    """
    stop = stop_signal()
    metrics = RouterMetrics()
    index = PageIndex(config.limits.hinted_pages)
    changed = asyncio.Event()
    pool = WorkerPool(config, index, changed=changed.set)
    reader = RequestReader(config.model, pool)
    sessions = Sessions(
        pool,
        index,
        config.kvstore,
        capacity=config.limits.sessions,
        ttl_s=config.limits.session_ttl_s,
    )
    runner = RequestRunner(config, pool, index, sessions, metrics)
    servicer = InferenceServicer(reader, runner, pool, sessions)
    mounts: list[Mount] = [(servicer, add_InferenceServiceServicer_to_server)]
    if config.gateway is not None:
        mounts.append(_gateway_mount(config, reader, runner, pool, index))
    server = Server(config.listen, mounts)
    exposition = serve_metrics(config.metrics, metrics) if config.metrics else None
    report = asyncio.create_task(_report(server, pool, metrics, changed))
    tasks = [report]
    try:
        await server.start(serving=False)
        tasks.append(asyncio.create_task(pool.run()))
        tasks.append(asyncio.create_task(sessions.run()))
        if config.kvstore:
            watch = DirectoryWatch(
                config.kvstore,
                config.name,
                index,
                trusted=pool.trusted,
                reconnect_s=config.limits.reconnect_s,
            )
            tasks.append(asyncio.create_task(watch.run()))
        log.info("router %s serves %s on %s", config.name, reader.card.name, server.address)
        await _stopped(stop, tasks)
        log.info("draining for at most %g s", config.limits.drain_s)
        report.cancel()  # health stays down from here on
        await server.drain(config.limits.drain_s)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if exposition is not None:
            exposition.close()


def _gateway_mount(
    config: RouterConfig,
    reader: RequestReader,
    runner: RequestRunner,
    pool: WorkerPool,
    index: PageIndex,
) -> Mount:
    """SMG's worker protocol. Its messages come with the extra [gateway]."""
    try:
        from baton_router.gateway import SchedulerServicer, add_scheduler_to_server
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"router.gateway is {config.gateway!r} and {error.name} is not installed: "
            "pip install 'baton-serve[gateway]'"
        ) from error
    return SchedulerServicer(config, reader, runner, pool, index), add_scheduler_to_server


async def _stopped(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Waits for the signal. None of `tasks` ends by itself: if one fails, so does the router,
    loudly, rather than living on without its workers."""
    signal = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([signal, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        signal.cancel()


async def _report(
    server: Server, pool: WorkerPool, metrics: RouterMetrics, changed: asyncio.Event
) -> None:
    """Keeps health and the worker gauges true."""
    while True:
        changed.clear()
        for role, links in (("decode", pool.decode), ("prefill", pool.prefill)):
            metrics.workers.labels(role).set(sum(link.hello is not None for link in links))
        await server.set_serving(any(link.ready for link in pool.decode))
        await changed.wait()
