"""Where the two workers of a request meet: at the prefill worker, by the gateway's room number.

Either may come first, and each waits for the other for `WAIT_S` at most. The
decode worker's stream stays open until the prompt is handed over: its end tells
each side of the other's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton.v1 import worker_pb2_grpc
from baton.v1.kv_pb2 import Peer
from baton_rpc import Refusal

WAIT_S: Final = 10.0

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Room:
    """One request at its prefill worker. Used on one event loop."""

    def __init__(self, number: int, request_id: str) -> None:
        self.number = number
        self.request_id = request_id
        self.on_left: Callable[[], None] = lambda: None  # the decode worker went before the end
        self._reader: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()

    async def reader(self) -> str:
        """The decode worker's name, once it is here. Raises Refusal (NO_WORKER)."""
        try:
            async with asyncio.timeout(WAIT_S):
                return await self._reader
        except TimeoutError:
            raise Refusal(
                errors.ERROR_REASON_NO_WORKER,
                f"no decode worker came to room {self.number} within {WAIT_S:g} s",
            ) from None

    def end(self, refusal: Refusal | None) -> None:
        """The prompt is handed over, or will not be."""
        if not self._end.done():
            self._end.set_result(refusal)

    async def enter(self, reader: str) -> AsyncIterator[None]:
        """The decode worker's visit: yields once it is known, ends with the hand-over."""
        if self._reader.done():
            raise Refusal(
                errors.ERROR_REASON_DUPLICATE_REQUEST, f"room {self.number} is taken by another"
            )
        self._reader.set_result(reader)
        try:
            yield
            refusal = await asyncio.shield(self._end)
            if refusal is not None:
                raise refusal
        finally:
            if not self._end.done():
                self.on_left()


class Rooms(worker_pb2_grpc.RendezvousServiceServicer):
    """The prefill worker's rooms, and the service by which decode workers find them."""

    def __init__(self, me: Peer) -> None:
        self._me = me
        self._rooms: dict[int, Room] = {}
        self._opened = asyncio.Event()

    @contextmanager
    def open(self, number: int, request_id: str) -> Iterator[Room]:
        """A room for as long as the block runs."""
        if number in self._rooms:
            raise Refusal(errors.ERROR_REASON_DUPLICATE_REQUEST, f"room {number} is open already")
        room = self._rooms[number] = Room(number, request_id)
        opened, self._opened = self._opened, asyncio.Event()
        opened.set()
        try:
            yield room
        finally:
            del self._rooms[number]
            room.end(Refusal(errors.ERROR_REASON_CANCELLED, "the prefill worker's call has ended"))

    async def Meet(
        self, request: wire.MeetRequest, context: Context
    ) -> AsyncIterator[wire.MeetResponse]:
        room = await self._find(request.room)
        async for _ in room.enter(request.reader):
            yield wire.MeetResponse(prefill=self._me, request_id=room.request_id)

    async def _find(self, number: int) -> Room:
        try:
            async with asyncio.timeout(WAIT_S):
                while number not in self._rooms:
                    await self._opened.wait()
        except TimeoutError:
            raise Refusal(
                errors.ERROR_REASON_NO_WORKER,
                f"no request came to room {number} within {WAIT_S:g} s",
            ) from None
        return self._rooms[number]
