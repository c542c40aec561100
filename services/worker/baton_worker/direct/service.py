"""The scheduler protocol at a worker: one leg of a request, or all of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import grpc
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as smg

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton.v1 import worker_pb2_grpc
from baton.v1.kv_pb2 import Peer
from baton_rpc import Refusal, channel, refusal_of
from baton_worker.desk import Desk, Session
from baton_worker.direct.answers import Answer
from baton_worker.direct.requests import ATTEMPT, Served, start_request, unsupported
from baton_worker.direct.rooms import WAIT_S, Rooms
from baton_worker.updates import refused

log = logging.getLogger("baton.worker")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class DirectServicer:
    """Each call is a session at the desk, as a router's stream is; its end ends the request."""

    def __init__(
        self,
        role: Literal["prefill", "decode"],
        desk: Desk,
        served: Served,
        me: Peer,
        rooms: Rooms,
        pool: Callable[[], wire.PoolState],
    ) -> None:
        self._role = role
        self._desk = desk
        self._served = served
        self._me = me
        self._rooms = rooms
        self._pool = pool
        self._running: dict[str, asyncio.Task[None]] = {}

    async def Generate(self, request: smg.GenerateRequest, context: Context) -> None:
        start = start_request(request, self._served)
        # The gateway's id may be anything, and both legs' is the same: ours is the room's.
        start.request_id = f"direct-{secrets.token_hex(8)}"
        leg = self._prefill if self._role == "prefill" else self._decode
        task = asyncio.create_task(leg(request, start, context))
        self._running[request.request_id] = task
        try:
            await asyncio.wait([task])
        finally:
            self._running.pop(request.request_id, None)
            task.cancel()
            await asyncio.wait([task])
        if task.cancelled():
            raise Refusal(errors.ERROR_REASON_CANCELLED, f"{request.request_id} was aborted")
        task.result()

    # ---- legs

    async def _prefill(
        self, request: smg.GenerateRequest, start: wire.StartRequest, context: Context
    ) -> None:
        if not request.HasField("kv_bootstrap_info"):
            raise unsupported("kv_bootstrap_info", "is missing; a prefill worker needs a reader")
        answer = Answer(request, start)
        with self._rooms.open(request.kv_bootstrap_info.bootstrap_room, start.request_id) as room:
            # A prefill that is silent for 3 s is given up.
            await context.write(answer.sign_of_life())
            start.prefill_for.reader = await room.reader()
            with self._session() as session:
                left = refused(
                    start.request_id, ATTEMPT, errors.ERROR_REASON_CANCELLED, "the reader has left"
                )
                room.on_left = lambda: session.mailbox.put(left)
                self._desk.obey(session, wire.Command(start=start))
                try:
                    async for update in _updates(session):
                        if update.HasField("done"):
                            break
                except Refusal as refusal:
                    room.end(refusal)
                    raise
            room.end(None)
        await context.write(answer.complete(update.done))

    async def _decode(
        self, request: smg.GenerateRequest, start: wire.StartRequest, context: Context
    ) -> None:
        if not request.HasField("kv_bootstrap_info"):
            start.compute.SetInParent()
            await self._run(request, start, context, None)
            return
        info = request.kv_bootstrap_info
        async with channel(f"{info.bootstrap_host}:{info.bootstrap_port}") as prefill:
            stub = worker_pb2_grpc.RendezvousServiceStub(prefill)
            visit = stub.Meet(wire.MeetRequest(room=info.bootstrap_room, reader=self._me.name))
            met = await _met(visit, info)
            start.request_id = met.request_id
            start.await_prefill.prefill.CopyFrom(met.prefill)
            await self._run(request, start, context, visit)

    async def _run(
        self,
        request: smg.GenerateRequest,
        start: wire.StartRequest,
        context: Context,
        visit: Any | None,
    ) -> None:
        answer = Answer(request, start)
        with self._session() as session:
            self._desk.obey(session, wire.Command(start=start))
            watch = asyncio.create_task(self._watch(visit, session, start.request_id))
            try:
                async for update in _updates(session):
                    if update.HasField("done"):
                        break
                    if update.HasField("tokens"):
                        message = answer.tokens(update.tokens)
                        if message is not None:
                            await context.write(message)
            finally:
                watch.cancel()
        await context.write(answer.complete(update.done))

    async def _watch(self, visit: Any | None, session: Session, request_id: str) -> None:
        """The prefill worker's end before the hand-over: compute what has not arrived."""
        if visit is None:
            return
        try:
            await visit.read()  # its good end
        except grpc.aio.AioRpcError as error:
            log.info("%s: the prefill worker is lost: %s", request_id, error.details())
            lost = wire.PrefillLost(request_id=request_id, attempt=ATTEMPT)
            self._desk.obey(session, wire.Command(prefill_lost=lost))

    @contextmanager
    def _session(self) -> Iterator[Session]:
        session = self._desk.open("a gateway")
        try:
            yield session
        finally:
            self._desk.close(session)

    # ---- about the worker

    async def Abort(self, request: smg.AbortRequest, context: Context) -> smg.AbortResponse:
        task = self._running.get(request.request_id)
        if task is None:
            return smg.AbortResponse(success=False, message=f"{request.request_id} is not here")
        task.cancel()
        return smg.AbortResponse(success=True)

    async def HealthCheck(
        self, request: smg.HealthCheckRequest, context: Context
    ) -> smg.HealthCheckResponse:
        return smg.HealthCheckResponse(healthy=True, message=f"{self._role} worker")

    async def GetModelInfo(
        self, request: smg.GetModelInfoRequest, context: Context
    ) -> smg.GetModelInfoResponse:
        path = str(self._served.checkpoint.resolve())
        return smg.GetModelInfoResponse(
            model_path=path,
            tokenizer_path=path,
            served_model_name=self._served.checkpoint.resolve().name,
            max_context_length=self._served.max_context,
            max_req_input_len=self._served.max_context - 1,
            vocab_size=self._served.vocab_size,
            eos_token_ids=self._served.eos_token_ids,
        )

    async def GetServerInfo(
        self, request: smg.GetServerInfoRequest, context: Context
    ) -> smg.GetServerInfoResponse:
        return smg.GetServerInfoResponse(active_requests=len(self._running))

    async def GetLoads(
        self, request: smg.GetLoadsRequest, context: Context
    ) -> smg.GetLoadsResponse:
        pool = self._pool()
        usage = 1 - pool.free_pages / pool.total_pages if pool.total_pages else 0.0
        load = smg.SchedulerLoad(
            num_running_reqs=pool.running,
            num_waiting_reqs=pool.waiting,
            num_total_reqs=pool.running + pool.waiting,
            token_usage=usage,
            active_token_usage=usage,
        )
        return smg.GetLoadsResponse(dp_rank_count=1, loads=[load])


async def _met(visit: Any, info: smg.KvBootstrapInfo) -> wire.MeetResponse:
    """Raises Refusal when the prefill worker does not come."""
    where = f"{info.bootstrap_host}:{info.bootstrap_port}"
    try:
        async with asyncio.timeout(WAIT_S + 1):
            met = await visit.read()
    except TimeoutError:
        met, why = None, f"no answer within {WAIT_S + 1:g} s"
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        met, why = None, refusal.message if refusal is not None else str(error.details())
    else:
        why = "its stream ended"
    if not isinstance(met, wire.MeetResponse):
        with contextlib.suppress(asyncio.InvalidStateError):
            visit.cancel()
        raise Refusal(
            errors.ERROR_REASON_NO_WORKER, f"the prefill worker at {where} is not there: {why}"
        )
    return met


async def _updates(session: Session) -> AsyncIterator[wire.RequestUpdate]:
    """What happens to the session's one request; `done` is the last. Raises Refusal."""
    while (report := await session.mailbox.next()) is not None:
        for update in report.updates:
            if update.HasField("failed"):
                raise Refusal(update.failed.reason, update.failed.message)
            yield update
    raise Refusal(errors.ERROR_REASON_DRAINING, "this worker is shutting down; take another one")
