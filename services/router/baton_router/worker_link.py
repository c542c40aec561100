"""One worker: its Connect stream, dialled again whenever it breaks.

Commands that are given within one turn of the event loop leave in one message;
a worker's step comes in as one message and is handed out to the executions it
is about. Whatever belongs to an execution that is not attached any more is
dropped: that is how late updates of abandoned attempts end.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import grpc

from baton.v1 import worker_pb2 as wire
from baton.v1 import worker_pb2_grpc
from baton_router.page_index import Holder
from baton_router.routing import WorkerView
from baton_rpc import Refusal, channel, refusal_of

log = logging.getLogger("baton.router")

WIRE_VERSION: Final = 1
# A batch of long prompts is cut here, far below the message limit of both ends.
_BATCH_BYTES: Final = 1 << 20
_FIRST_PAUSE_S: Final = 0.05
_HELLO_S: Final = 5.0

_Call: TypeAlias = "grpc.aio.StreamStreamCall[wire.ConnectRequest, wire.ConnectResponse]"
ExecutionKey = tuple[str, int]  # request id, attempt


class Listener(Protocol):
    """An execution at a worker. Called on the event loop; must not block."""

    def updated(self, link: "WorkerLink", update: wire.RequestUpdate) -> None:
        """The worker says something about it."""

    def lost(self, link: "WorkerLink") -> None:
        """The worker is gone, and the execution with it. Nothing more comes."""


class WorkerLink:
    """The router's end of one worker.

    `accept(hello)` raises ValueError when this worker cannot serve here;
    `changed(link)` is called when it comes, goes, drains or reports.
    """

    def __init__(
        self,
        address: str,
        role: wire.WorkerRole,
        router: str,
        *,
        accept: Callable[[wire.WorkerHello], None],
        changed: Callable[["WorkerLink"], None],
        reconnect_s: float = 1.0,
    ) -> None:
        self.address = address
        self.role = role
        self.hello: wire.WorkerHello | None = None  # while connected
        self.holder: Holder | None = None  # its present or last life
        self.pool = wire.PoolState()
        self.draining = False
        self.pending_tokens = 0  # given to it by us and not yet computed
        self._router = router
        self._accept = accept
        self._changed = changed
        self._reconnect_s = reconnect_s
        self._listeners: dict[ExecutionKey, Listener] = {}
        self._outbox: list[wire.Command] = []
        self._mail = asyncio.Event()

    @property
    def name(self) -> str:
        """The worker's own name, or its address until it has told it."""
        return self.holder.name if self.holder else self.address

    @property
    def epoch(self) -> int | None:
        """Its present or last life; None before the first."""
        return self.holder.epoch if self.holder else None

    @property
    def ready(self) -> bool:
        """Whether it takes new requests."""
        return self.hello is not None and not self.draining

    @property
    def executions(self) -> int:
        """How many executions of ours it has."""
        return len(self._listeners)

    def view(self) -> WorkerView:
        """For the routing policy. Only while connected."""
        if self.hello is None or self.holder is None:
            raise RuntimeError(f"worker {self.address} is not connected")
        pool = self.pool
        # What we have given it since its last report is not in its figures yet.
        unseen = max(0, len(self._listeners) - pool.running - pool.waiting)
        return WorkerView(
            name=self.name,
            holder=self.holder,
            max_context=self.hello.max_context,
            total_pages=pool.total_pages,
            free_pages=pool.free_pages,
            running=pool.running + unseen,
            waiting=pool.waiting,
            pending_tokens=self.pending_tokens,
        )

    # ---- commands

    def start(self, request: wire.StartRequest, listener: Listener) -> None:
        """Starts an execution; `listener` hears of it until `detach` or `lost`."""
        self._listeners[request.request_id, request.attempt] = listener
        self._send(wire.Command(start=request))

    def cancel(self, request_id: str, attempt: int, afterword: Listener | None = None) -> None:
        """Ends an execution. Its listener hears nothing more; `afterword` hears the rest, until
        `detach` or `lost`: the worker says a last word all the same."""
        self.detach(request_id, attempt)
        if afterword is not None and self.hello is not None:
            self._listeners[request_id, attempt] = afterword
        self._send(wire.Command(cancel=wire.CancelRequest(request_id=request_id, attempt=attempt)))

    def prefill_lost(self, request_id: str, attempt: int) -> None:
        """Tells a decode worker not to wait for the prefill worker any more."""
        self._send(
            wire.Command(prefill_lost=wire.PrefillLost(request_id=request_id, attempt=attempt))
        )

    def forget(self, hashes: bytes) -> None:
        """Nobody will ask for these pages again, n x 16 bytes."""
        for first in range(0, len(hashes), _BATCH_BYTES):
            part = hashes[first : first + _BATCH_BYTES]
            self._send(wire.Command(forget=wire.ForgetPages(page_hashes=part)))

    def detach(self, request_id: str, attempt: int) -> None:
        """Nobody listens to this execution any more."""
        self._listeners.pop((request_id, attempt), None)

    def _send(self, command: wire.Command) -> None:
        if self.hello is not None:  # a worker that is gone has forgotten everything anyway
            self._outbox.append(command)
            self._mail.set()

    # ---- the stream

    async def run(self) -> None:
        """Keeps the stream up. Ends by cancellation."""
        pause = _FIRST_PAUSE_S
        while True:
            if await self._session():
                pause = _FIRST_PAUSE_S
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, self._reconnect_s)

    async def _session(self) -> bool:
        """One life of the stream. Returns whether the worker was accepted."""
        accepted = False
        try:
            async with channel(self.address) as connection:
                stub = worker_pb2_grpc.WorkerServiceStub(connection)
                call = stub.Connect()
                # Our own writer task: grpc's, for a request iterator, outlives a broken stream
                # and would take the next one's commands.
                writer = asyncio.create_task(self._write(call))
                try:
                    self._welcome(await asyncio.wait_for(_read(call), _HELLO_S))
                    accepted = True
                    while True:
                        self._take((await _read(call)).step)
                finally:
                    writer.cancel()
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            if accepted or refusal is not None:
                log.warning("worker %s is lost: %s", self.name, error.details())
        except (Refusal, ValueError) as error:
            log.warning("worker at %s is not used: %s", self.address, error)
        except TimeoutError:
            log.warning("the worker at %s did not introduce itself", self.address)
        except EOFError:
            log.info("worker %s ended its stream", self.name)
        finally:
            self._break()
        return accepted

    def _welcome(self, first: wire.ConnectResponse) -> None:
        if first.WhichOneof("message") != "hello":
            raise ValueError("its first message is not a hello")
        hello = first.hello
        if hello.wire_version != WIRE_VERSION:
            raise ValueError(f"it speaks wire version {hello.wire_version}, not {WIRE_VERSION}")
        if hello.role != self.role:
            raise ValueError(
                f"it is configured as {wire.WorkerRole.Name(self.role)} "
                f"and says that it is {wire.WorkerRole.Name(hello.role)}"
            )
        self._accept(hello)
        peer = hello.peer
        self.holder = Holder(peer.name, peer.address, peer.epoch, storage=False)
        self.hello = hello
        self.pool = hello.pool
        self.draining = False
        log.info("worker %s at %s: epoch %x", hello.worker, self.address, hello.epoch)
        self._changed(self)

    def _take(self, step: wire.StepReport) -> None:
        if step.HasField("pool"):
            self.pool = step.pool
        turned = step.draining != self.draining
        self.draining = step.draining
        listeners = self._listeners
        for update in step.updates:
            listener = listeners.get((update.request_id, update.attempt))
            if listener is not None:
                listener.updated(self, update)
        if turned:
            self._changed(self)

    def _break(self) -> None:
        lost = list(self._listeners.values())
        was_connected = self.hello is not None
        self._listeners.clear()
        self._outbox.clear()
        self.hello = None
        self.draining = False
        self.pending_tokens = 0
        for listener in lost:
            listener.lost(self)
        if was_connected:
            self._changed(self)

    async def _write(self, call: _Call) -> None:
        hello = wire.RouterHello(router=self._router, wire_version=WIRE_VERSION)
        try:
            await call.write(wire.ConnectRequest(hello=hello))
            while True:
                await self._mail.wait()
                self._mail.clear()
                for batch in _batches(self._outbox):
                    await call.write(wire.ConnectRequest(commands=batch))
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The stream is broken; the reader sees it too, and says why.
            log.debug("cannot write to %s any more", self.address)


async def _read(call: _Call) -> wire.ConnectResponse:
    """The next message. Raises EOFError at the stream's good end."""
    response = await call.read()
    if isinstance(response, wire.ConnectResponse):
        return response
    raise EOFError


def _batches(outbox: list[wire.Command]) -> list[wire.CommandBatch]:
    """Empties the outbox into as few messages as their size allows."""
    batches: list[wire.CommandBatch] = []
    size = _BATCH_BYTES
    for command in outbox:
        bytes_ = command.ByteSize()
        if size + bytes_ > _BATCH_BYTES:
            batches.append(wire.CommandBatch())
            size = 0
        batches[-1].commands.append(command)
        size += bytes_
    outbox.clear()
    return batches
