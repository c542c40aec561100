"""An engine that only remembers, and a router's end of a Connect stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from baton.v1 import worker_pb2 as wire
from baton.v1 import worker_pb2_grpc
from baton_engine import (
    EngineRefusal,
    EngineRequest,
    Event,
    Failed,
    FailReason,
    Grammar,
    PoolState,
    StepEvents,
)
from baton_rpc import Server, channel
from baton_transfer import WIRE_VERSION
from baton_worker.constraints import Constraints
from baton_worker.desk import Desk
from baton_worker.role import Role
from baton_worker.servicer import WorkerServicer

VOCAB = 1000


def pool(**fields: int) -> PoolState:
    names = set(PoolState.__dataclass_fields__) - {"beside"}
    return PoolState(**{name: fields.get(name, 0) for name in names})


@dataclass
class FakeEngine:
    """Takes what it is given; the test says what happens."""

    submitted: list[EngineRequest] = field(default_factory=list)
    cancelled: list[tuple[str, int]] = field(default_factory=list)
    lost: list[tuple[str, int]] = field(default_factory=list)
    forgotten: list[bytes] = field(default_factory=list)
    refuse: EngineRefusal | None = None
    failures: list[str] = field(default_factory=list)
    steps: int = 0

    def submit(self, request: EngineRequest) -> None:
        if self.refuse is not None:
            raise self.refuse
        if request.key in [r.key for r in self.submitted]:
            raise EngineRefusal(FailReason.DUPLICATE_REQUEST, f"{request.key} is already here")
        self.submitted.append(request)

    def cancel(self, request_id: str, attempt: int) -> bool:
        self.cancelled.append((request_id, attempt))
        return True

    def prefill_lost(self, request_id: str, attempt: int) -> bool:
        self.lost.append((request_id, attempt))
        return True

    def forget(self, hashes: np.ndarray) -> int:
        self.forgotten += [row.tobytes() for row in hashes]
        return len(hashes)

    def request_failed(self, reason: str) -> None:
        self.failures.append(reason)

    def step(self, *events: Event, **figures: int) -> StepEvents:
        self.steps += 1
        return StepEvents(step=self.steps, events=events, pool=pool(**figures))

    def cancellations(self) -> list[Event]:
        return [Failed(*key, FailReason.CANCELLED, "cancelled") for key in self.cancelled]


class Router:
    """Speaks WorkerService from the other side."""

    def __init__(self, address: str) -> None:
        self.channel = channel(address)
        self.call: Any = worker_pb2_grpc.WorkerServiceStub(self.channel).Connect()

    async def greet(self, name: str = "router", version: int = WIRE_VERSION) -> wire.WorkerHello:
        hello = wire.RouterHello(router=name, wire_version=version)
        await self.call.write(wire.ConnectRequest(hello=hello))
        return (await self.read()).hello

    async def send(self, *commands: wire.Command) -> None:
        batch = wire.CommandBatch(commands=commands)
        await self.call.write(wire.ConnectRequest(commands=batch))

    async def read(self) -> wire.ConnectResponse:
        answer = await asyncio.wait_for(self.call.read(), 10)
        if answer is grpc.aio.EOF:
            raise EOFError
        return answer  # type: ignore[no-any-return]

    async def updates(self, count: int) -> list[wire.RequestUpdate]:
        """The next `count` updates."""
        got: list[wire.RequestUpdate] = []
        while len(got) < count:
            got.extend((await self.read()).step.updates)
        return got

    async def leave(self) -> None:
        # Closing the channel alone leaves a call alive that no task is waiting for.
        self.call.cancel()
        await self.channel.close()


@dataclass
class Worker:
    """A server with a desk and a fake engine."""

    engine: FakeEngine
    desk: Desk
    server: Server

    async def router(self, name: str = "router") -> Router:
        router = Router(self.server.address)
        await router.greet(name)
        return router

    async def until(self, what: Any) -> None:
        async with asyncio.timeout(10):
            while not what():
                await asyncio.sleep(0.005)


class NoConstraints:
    """For tests that send none."""

    async def grammar(self, start: wire.StartRequest) -> Grammar:
        raise AssertionError("no constraint was expected")


@asynccontextmanager
async def worker(role: Role, constraints: Constraints | None = None) -> AsyncIterator[Worker]:
    engine = FakeEngine()
    desk = Desk(engine, role, VOCAB, engine, constraints or NoConstraints())
    hello = wire.WorkerHello(worker="w", role=role.wire, wire_version=WIRE_VERSION)
    mount = (
        WorkerServicer(desk, lambda: hello),
        worker_pb2_grpc.add_WorkerServiceServicer_to_server,
    )
    server = Server("127.0.0.1:0", [mount])
    await server.start()
    try:
        yield Worker(engine, desk, server)
    finally:
        await server.stop()


def start(request_id: str = "a", attempt: int = 0, **fields: Any) -> wire.Command:
    """A StartRequest that is in order, for a decode worker."""
    request = wire.StartRequest(
        request_id=request_id,
        attempt=attempt,
        token_ids=fields.pop("token_ids", [1, 2, 3]),
        prompt_tokens=3,
        max_new_tokens=5,
        cache_key=bytes(16),
        sampling=wire.ResolvedSampling(top_p=1.0, repetition_penalty=1.0),
    )
    if not any(key in fields for key in ("prefill_for", "await_prefill", "no_plan")):
        fields["compute"] = wire.StartRequest.Compute()
    fields.pop("no_plan", None)
    request.MergeFrom(wire.StartRequest(**fields))
    return wire.Command(start=request)


def cancel(request_id: str, attempt: int = 0) -> wire.Command:
    return wire.Command(cancel=wire.CancelRequest(request_id=request_id, attempt=attempt))
