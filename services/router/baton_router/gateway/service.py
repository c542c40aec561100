"""The TokenSpeed scheduler service of `smg-grpc-proto`: validate, run, translate."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray
from smg_grpc_proto.generated import common_pb2 as common
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as wire

from baton.v1 import errors_pb2 as errors
from baton_router.config import RouterConfig
from baton_router.gateway import about
from baton_router.gateway.answers import SampleAnswer
from baton_router.gateway.kv_events import KvEventLog
from baton_router.gateway.requests import samples, to_baton
from baton_router.gateway.tokenizer_bundle import TokenizerBundle
from baton_router.page_index import PageIndex
from baton_router.pool import WorkerPool
from baton_router.requests import RequestReader
from baton_router.running import RequestRunner
from baton_rpc import Refusal

_SILENCE_S: Final = 2.0

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class SchedulerServicer:
    """The cluster as one worker. StartProfile and StopProfile are UNIMPLEMENTED."""

    def __init__(
        self,
        config: RouterConfig,
        reader: RequestReader,
        runner: RequestRunner,
        pool: WorkerPool,
        index: PageIndex,
    ) -> None:
        self._config = config
        self._reader = reader
        self._runner = runner
        self._pool = pool
        self._started = datetime.now(UTC)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._bundle: TokenizerBundle | None = None
        self._cached = KvEventLog()
        runner.on_cached = self._note_cached
        index.on_gone = self._cached.removed

    async def Generate(self, request: wire.GenerateRequest, context: Context) -> None:
        if request.request_id in self._running:
            raise Refusal(
                errors.ERROR_REASON_DUPLICATE_REQUEST,
                f"request {request.request_id!r} is running already",
                {"request_id": request.request_id},
            )
        task = asyncio.create_task(self._generate(request, context))
        self._running[request.request_id] = task
        try:
            await asyncio.wait([task])
        finally:
            del self._running[request.request_id]
            task.cancel()
            await asyncio.wait([task])
        if task.cancelled():
            raise Refusal(
                errors.ERROR_REASON_CANCELLED, f"request {request.request_id!r} was aborted"
            )
        task.result()

    async def _generate(self, request: wire.GenerateRequest, context: Context) -> None:
        writer = _OneByOne(context)
        patience = asyncio.create_task(_break_silence(request, writer))
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(samples(request)):
                    group.create_task(self._sample(request, index, writer))
        except* Refusal as several:
            # The first to fail has ended the others; one status is all that a stream can have.
            raise _first(several) from None
        finally:
            patience.cancel()
            await asyncio.gather(patience, return_exceptions=True)

    async def _sample(self, request: wire.GenerateRequest, index: int, writer: "_OneByOne") -> None:
        with self._runner.books() as books:
            asked = to_baton(request, index)
            job = self._reader.job(await self._reader.prompt(asked), asked)
            await self._runner.run(job, SampleAnswer(request, index, job), writer, books)

    async def Abort(self, request: wire.AbortRequest, context: Context) -> wire.AbortResponse:
        task = self._running.get(request.request_id)
        if task is None:
            return wire.AbortResponse(
                success=False, message=f"request {request.request_id!r} is not running here"
            )
        task.cancel()
        return wire.AbortResponse(success=True)

    # ---- about the worker

    async def HealthCheck(
        self, request: wire.HealthCheckRequest, context: Context
    ) -> wire.HealthCheckResponse:
        if any(link.ready for link in self._pool.decode):
            return wire.HealthCheckResponse(healthy=True, message="ready")
        return wire.HealthCheckResponse(healthy=False, message="no decode worker is ready")

    async def GetModelInfo(
        self, request: wire.GetModelInfoRequest, context: Context
    ) -> wire.GetModelInfoResponse:
        return about.model_info(self._config, self._reader)

    async def GetServerInfo(
        self, request: wire.GetServerInfoRequest, context: Context
    ) -> wire.GetServerInfoResponse:
        return about.server_info(self._config, self._pool, self._started)

    async def GetLoads(
        self, request: wire.GetLoadsRequest, context: Context
    ) -> wire.GetLoadsResponse:
        return about.loads(self._pool)

    async def GetTokenizer(
        self, request: common.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[common.GetTokenizerChunk]:
        if self._bundle is None:
            path = self._config.model.path
            self._bundle = await asyncio.to_thread(TokenizerBundle.of_checkpoint, path)
        for chunk in self._bundle.chunks():
            yield chunk

    async def FlushCache(
        self, request: common.FlushCacheRequest, context: Context
    ) -> common.FlushCacheResponse:
        self._pool.forget_pages()
        self._cached.cleared()
        return common.FlushCacheResponse(
            success=True,
            message="this router reuses no page from before; workers evict them as they need room",
        )

    async def SubscribeKvEvents(
        self, request: common.SubscribeKvEventsRequest, context: Context
    ) -> AsyncIterator[common.KvEventBatch]:
        async for batch in self._cached.subscribe(request.start_sequence_number):
            yield batch

    def _note_cached(self, tokens: NDArray[np.int32], tenant: str) -> None:
        """A gateway's requests have no tenant: they find only pages of those that have none."""
        cache = self._pool.cache
        if not tenant and cache is not None:
            self._cached.stored(tokens, cache.page_size, self._pool.cache_key(tenant))


class _OneByOne:
    """Samples of one request share its stream, which takes one message at a time.

    Complete ones leave in the samples' order: SMG numbers the answers of a
    request that does not stream as they come, whatever index they carry.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._turn = asyncio.Lock()
        self._complete: dict[int, wire.GenerateResponse] = {}
        self._next = 0
        self.begun = False

    async def write(self, message: wire.GenerateResponse) -> None:
        self.begun = True
        async with self._turn:
            if not message.HasField("complete"):
                await self._context.write(message)
                return
            self._complete[message.complete.index] = message
            while self._next in self._complete:
                await self._context.write(self._complete.pop(self._next))
                self._next += 1


async def _break_silence(request: wire.GenerateRequest, writer: _OneByOne) -> None:
    """An empty chunk when the prompt takes long: gateways give up on a silent worker. Not before
    a constraint is known to compile, whose refusal should be a status."""
    if request.stream and request.sampling_params.WhichOneof("constraint") is None:
        await asyncio.sleep(_SILENCE_S)
        if not writer.begun:
            chunk = wire.GenerateStreamChunk(prompt_tokens=len(request.tokenized.input_ids))
            await writer.write(wire.GenerateResponse(request_id=request.request_id, chunk=chunk))


def _first(group: BaseExceptionGroup[Refusal]) -> Refusal:
    """The first refusal of a group, however nested."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
