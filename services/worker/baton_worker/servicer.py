"""WorkerService: one stream per router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton.v1 import worker_pb2_grpc
from baton_rpc import Refusal
from baton_transfer import WIRE_VERSION
from baton_worker.desk import Desk, Session

Context: TypeAlias = "grpc.aio.ServicerContext[wire.ConnectRequest, wire.ConnectResponse]"
Requests = AsyncIterator[wire.ConnectRequest]


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Speaks for the desk."""

    def __init__(self, desk: Desk, hello: Callable[[], wire.WorkerHello]) -> None:
        self._desk = desk
        self._hello = hello

    async def Connect(self, request_iterator: Requests, context: Context) -> None:
        session = self._desk.open(await _introduction(request_iterator))
        try:
            await context.write(wire.ConnectResponse(hello=self._hello()))
            await _first_to_end(self._listen(session, request_iterator), _report(session, context))
        finally:
            self._desk.close(session)

    async def _listen(self, session: Session, requests: Requests) -> None:
        """Ends when the router ends its side."""
        async for request in requests:
            if request.WhichOneof("message") != "commands":
                raise Refusal(
                    errors.ERROR_REASON_MISSING_FIELD,
                    "after its hello a router sends commands only",
                    {"field": "commands"},
                )
            for command in request.commands.commands:
                self._desk.obey(session, command)


async def _introduction(requests: Requests) -> str:
    """The name in the router's hello. Raises Refusal when the hello is not one."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "hello":
        raise Refusal(
            errors.ERROR_REASON_MISSING_FIELD,
            "the first message of a router is its hello",
            {"field": "hello"},
        )
    if first.hello.wire_version != WIRE_VERSION:
        raise Refusal(
            errors.ERROR_REASON_INCOMPATIBLE_PEER,
            f"router {first.hello.router!r} speaks wire version {first.hello.wire_version}, "
            f"this worker {WIRE_VERSION}; run one release of Baton in the cluster",
            {"field": "hello.wire_version", "value": str(first.hello.wire_version)},
        )
    return first.hello.router or "(unnamed)"


async def _report(session: Session, context: Context) -> None:
    """Ends when the worker has nothing more to say."""
    while (report := await session.mailbox.next()) is not None:
        await context.write(wire.ConnectResponse(step=report))


async def _first_to_end(*works: Coroutine[Any, Any, None]) -> None:
    """Runs both; the end of one, good or bad, ends the other and is ours."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
