"""A worker that speaks the real WorkerService over real gRPC and does what a test says.

Its "model": the token at position p of a sequence is `token_at(p)`, whatever
came before, so a stream that was taken over can be compared with one that was not.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton.v1 import kv_pb2 as kv
from baton.v1 import worker_pb2 as wire
from baton.v1 import worker_pb2_grpc
from baton_rpc.options import SERVER_OPTIONS

PAGE_SIZE = 16
_epochs = itertools.count(1)


def token_at(position: int) -> int:
    """The toy model's only opinion."""
    return 20 + (position * 37) % 300


@dataclass
class Run:
    """One StartRequest as the worker got it, and whether it was cancelled or orphaned."""

    start: wire.StartRequest
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    prefill_lost: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def plan(self) -> str:
        return str(self.start.WhichOneof("plan"))


Script = Callable[["FakeWorker", Run], Awaitable[None]]


class FakeWorker(worker_pb2_grpc.WorkerServiceServicer):
    """`script` is run for every StartRequest; the default one generates to the end."""

    def __init__(self, role: str, name: str, *, script: Script | None = None) -> None:
        self.role = role
        self.name = name
        self.script: Script = script or generate
        self.runs: list[Run] = []
        self.batches: list[int] = []  # commands in each message
        self.forgotten = b""  # identities, as told
        self.hello_changes: dict[str, object] = {}
        self.fingerprint = "toy"
        self.address = ""
        self.epoch = 0
        self.max_context = 4096
        self.connected = asyncio.Event()
        self._outbox: asyncio.Queue[wire.ConnectResponse] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> None:
        self.epoch = next(_epochs)
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def die(self) -> None:
        """Every stream breaks at once, as after kill -9."""
        self.connected.clear()
        for task in self._tasks:
            task.cancel()
        if (server := self._server) is not None:
            await server.stop(grace=None)
            # gRPC's destructor wants a running loop: not left to whoever collects it later.
            if self._server is server:
                self._server = None
        self._outbox = asyncio.Queue()

    @property
    def peer(self) -> kv.Peer:
        return kv.Peer(name=self.name, address=f"{self.name}:1", epoch=self.epoch)

    def hello(self) -> wire.WorkerHello:
        roles = {"prefill": wire.WORKER_ROLE_PREFILL, "decode": wire.WORKER_ROLE_DECODE}
        group = kv.CacheGroupIdentity(name="full", dtype="float32", layers=1, page_bytes=4096)
        return wire.WorkerHello(
            worker=self.name,
            role=roles[self.role],
            wire_version=1,
            epoch=self.epoch,
            peer=self.peer,
            cache=kv.CacheIdentity(
                wire_version=1,
                model_fingerprint=self.fingerprint,
                page_size=PAGE_SIZE,
                groups=[group],
            ),
            max_context=self.max_context,
            max_running=64,
            pool=wire.PoolState(total_pages=512, free_pages=512),
        )

    async def Connect(
        self,
        request_iterator: AsyncIterator[wire.ConnectRequest],
        context: grpc.aio.ServicerContext[wire.ConnectRequest, wire.ConnectResponse],
    ) -> AsyncIterator[wire.ConnectResponse]:
        reader = asyncio.create_task(self._read(request_iterator))
        # This life's: a handler that outlives die() must not take what the next life says.
        outbox = self._outbox
        try:
            yield wire.ConnectResponse(hello=self.hello())
            self.connected.set()
            while True:
                yield await outbox.get()
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[wire.ConnectRequest]) -> None:
        async for request in requests:
            commands = request.commands.commands
            if commands:
                self.batches.append(len(commands))
            for command in commands:
                self._obey(command)

    def _obey(self, command: wire.Command) -> None:
        kind = command.WhichOneof("command")
        if kind == "start":
            run = Run(command.start)
            self.runs.append(run)
            task = asyncio.ensure_future(self.script(self, run))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if kind == "forget":
            self.forgotten += command.forget.page_hashes
            return
        named = command.cancel if kind == "cancel" else command.prefill_lost
        for run in self.runs:
            if (run.start.request_id, run.start.attempt) == (named.request_id, named.attempt):
                (run.cancelled if kind == "cancel" else run.prefill_lost).set()

    # ---- what it says

    def say(self, *updates: wire.RequestUpdate, draining: bool = False) -> None:
        """One step report."""
        pool = wire.PoolState(total_pages=512, free_pages=512)
        step = wire.StepReport(updates=updates, pool=pool, draining=draining)
        self._outbox.put_nowait(wire.ConnectResponse(step=step))

    def update(self, run: Run, **kind: object) -> wire.RequestUpdate:
        return wire.RequestUpdate(
            request_id=run.start.request_id,
            attempt=run.start.attempt,
            **kind,  # type: ignore[arg-type]
        )

    def tokens(
        self, run: Run, position: int, count: int = 1, cost: wire.RequestCost | None = None
    ) -> wire.RequestUpdate:
        ids = [token_at(position + i) for i in range(count)]
        tokens = wire.RequestTokens(first_position=position, token_ids=ids, cost=cost)
        return self.update(run, tokens=tokens)

    def done(
        self,
        run: Run,
        reason: pb.FinishReason = pb.FINISH_REASON_LENGTH,
        cost: wire.RequestCost | None = None,
    ) -> wire.RequestUpdate:
        cost = cost or wire.RequestCost(computed_tokens=len(run.start.token_ids))
        return self.update(run, done=wire.RequestDone(reason=reason, cost=cost))

    def failed(
        self, run: Run, reason: errors.ErrorReason, message: str = "as scripted"
    ) -> wire.RequestUpdate:
        return self.update(run, failed=wire.RequestFailed(reason=reason, message=message))


def default_cost(run: Run) -> wire.RequestCost:
    """A decode worker that awaited everything, or computed everything."""
    tokens = len(run.start.token_ids)
    if run.plan == "await_prefill":
        first = kv.FirstToken(cached_tokens=0, pages_moved=0)
        return wire.RequestCost(
            fetched_tokens=tokens, pages_moved=-(-tokens // PAGE_SIZE), first_token=first
        )
    return wire.RequestCost(computed_tokens=tokens)


async def generate(worker: FakeWorker, run: Run) -> None:
    """Tokens one by one to the end, unless cancelled; a prefill worker just says it is done."""
    if run.plan == "prefill_for":
        worker.say(worker.done(run, pb.FINISH_REASON_UNSPECIFIED))
        return
    await generate_tokens(worker, run, run.start.max_new_tokens)
    if run.cancelled.is_set():
        worker.say(worker.failed(run, errors.ERROR_REASON_CANCELLED))
    else:
        worker.say(worker.done(run, cost=default_cost(run)))


async def generate_tokens(
    worker: FakeWorker, run: Run, count: int, *, pause_s: float = 0.002
) -> None:
    """The first `count` tokens, and no end."""
    position = len(run.start.token_ids)
    for i in range(count):
        if run.cancelled.is_set():
            return
        cost = default_cost(run) if i == 0 else None
        worker.say(worker.tokens(run, position + i, cost=cost))
        await asyncio.sleep(pause_s)
