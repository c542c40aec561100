"""A router that speaks WorkerService itself, so that tests see what a worker really says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from baton.v1 import worker_pb2 as wire
from baton.v1 import worker_pb2_grpc
from baton_rpc import channel

Key = tuple[str, int]


class RawRouter:
    """One Connect stream; collects what is told, by request."""

    def __init__(self, address: str, name: str = "raw-router") -> None:
        self._channel = channel(address)
        self._call: Any = worker_pb2_grpc.WorkerServiceStub(self._channel).Connect()
        self._name = name
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self.hello = wire.WorkerHello()
        self.reports: list[wire.StepReport] = []
        self.updates: dict[Key, list[wire.RequestUpdate]] = {}
        self.ended: str | None = None  # how the stream ended

    async def __aenter__(self) -> RawRouter:
        hello = wire.RouterHello(router=self._name, wire_version=1)
        await self._call.write(wire.ConnectRequest(hello=hello))
        first = await asyncio.wait_for(self._call.read(), 20)
        self.hello = first.hello
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self.reports.append(message.step)
                for update in message.step.updates:
                    key = (update.request_id, update.attempt)
                    self.updates.setdefault(key, []).append(update)
                self._news.set()
            self.ended = "end"
        except grpc.aio.AioRpcError as error:
            self.ended = error.code().name
        self._news.set()

    async def send(self, *commands: wire.Command) -> None:
        """All in one batch."""
        batch = wire.CommandBatch(commands=commands)
        await self._call.write(wire.ConnectRequest(commands=batch))

    async def start(self, *requests: wire.StartRequest) -> None:
        await self.send(*(wire.Command(start=request) for request in requests))

    async def cancel(self, request_id: str, attempt: int = 0) -> None:
        command = wire.CancelRequest(request_id=request_id, attempt=attempt)
        await self.send(wire.Command(cancel=command))

    async def until(self, what: Callable[[], object], seconds: float = 30) -> None:
        """Until `what` holds, looked at after every message."""
        async with asyncio.timeout(seconds):
            while not what():
                self._news.clear()
                await self._news.wait()

    async def over(self, request_id: str, attempt: int = 0) -> wire.RequestUpdate:
        """The request's last update."""
        await self.until(lambda: self.last(request_id, attempt) is not None)
        last = self.last(request_id, attempt)
        if last is None:
            raise AssertionError("unreachable: just waited for it")
        return last

    def last(self, request_id: str, attempt: int = 0) -> wire.RequestUpdate | None:
        for update in self.updates.get((request_id, attempt), []):
            if update.WhichOneof("update") in ("done", "failed"):
                return update
        return None

    def tokens(self, request_id: str, attempt: int = 0) -> list[int]:
        """Everything it said; positions must be without gap and repetition."""
        tokens: list[int] = []
        begun: int | None = None
        for update in self.updates.get((request_id, attempt), []):
            if update.HasField("tokens"):
                begun = update.tokens.first_position if begun is None else begun
                if update.tokens.first_position != begun + len(tokens):
                    raise AssertionError(f"{request_id}: a gap at {update.tokens.first_position}")
                tokens.extend(update.tokens.token_ids)
        return tokens


@asynccontextmanager
async def routers(*addresses: str) -> AsyncIterator[list[RawRouter]]:
    """One raw router with a stream to each address."""
    opened: list[RawRouter] = []
    try:
        for address in addresses:
            opened.append(await RawRouter(address).__aenter__())
        yield opened
    finally:
        for router in opened:
            await router.__aexit__()


def request(request_id: str, prompt: list[int], **fields: Any) -> wire.StartRequest:
    """Greedy, eos ignored, Compute; everything can be said otherwise."""
    if not {"prefill_for", "await_prefill", "compute"} & set(fields):
        fields["compute"] = wire.StartRequest.Compute()
    fields.setdefault("sampling", wire.ResolvedSampling(top_p=1.0, repetition_penalty=1.0))
    return wire.StartRequest(
        request_id=request_id,
        token_ids=prompt,
        prompt_tokens=fields.pop("prompt_tokens", len(prompt)),
        max_new_tokens=fields.pop("max_new_tokens", 8),
        cache_key=fields.pop("cache_key", b"integration-test"),
        **fields,
    )
