"""The holder's end of lease connections: who shows the ticket is answered."""

import asyncio
import hmac
import logging
import secrets
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from baton.v1 import kv_pb2 as pb
from baton_rpc import Refusal
from baton_transfer.framing import LONGEST, FramedProtocol

log = logging.getLogger("baton.transfer")

# Whoever connects shows the ticket at once.
_TICKET_S = 5.0

# What needs no waiting is answered where it is heard: a task costs as much as the answer.
LeaseAnswer: TypeAlias = pb.LeaseResponse | Awaitable[pb.LeaseResponse]


class LeaseDesk:
    """Listens on a port of its own. Used on one event loop."""

    def __init__(self, answer: Callable[[pb.LeaseRequest], LeaseAnswer]) -> None:
        """`answer` may raise Refusal."""
        self.answer = answer
        self.ticket = secrets.token_bytes(16)
        self.port = 0  # known once it is open
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def open(self, host: str) -> None:
        """Listens on a free port of `host`. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, (address, *_) = found[0]
        both = address == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server((str(address), 0), family=family, dualstack_ipv6=both)
        self.port = listening.getsockname()[1]
        self._server = await loop.create_server(
            lambda: _Connection(self, self._connections), sock=listening
        )

    async def close(self) -> None:
        """Ends the port and every connection."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()
        self._server = None


class _Connection(FramedProtocol):
    """One reader's. Answers in the order of the requests."""

    def __init__(self, desk: LeaseDesk, all_of_them: "set[_Connection]") -> None:
        super().__init__(longest=len(desk.ticket))
        self._desk = desk
        self._all = all_of_them
        self._known = False  # whether it has shown the ticket
        self._slow: asyncio.Task[None] | None = None  # an answer that must be waited for
        self._behind: deque[bytes] = deque()  # requests that have come meanwhile

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._all.add(self)
        asyncio.get_running_loop().call_later(_TICKET_S, self._end_unless_known)

    def connection_lost(self, error: Exception | None) -> None:
        self._all.discard(self)
        if self._slow is not None:
            self._slow.cancel()

    def pause_writing(self) -> None:
        """A reader that does not take its answers is not heard either."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def received(self, message: bytes) -> None:
        if not self._known:
            self._known = hmac.compare_digest(message, self._desk.ticket)
            self.longest = LONGEST
            if not self._known:
                self.abort()
        elif self._slow is not None:
            self._behind.append(message)
        else:
            self._hear(message)

    def _end_unless_known(self) -> None:
        if not self._known:
            self.abort()

    def _hear(self, message: bytes) -> None:
        try:
            answer = self._desk.answer(pb.LeaseRequest.FromString(message))
        except Exception as error:  # noqa: BLE001  told to the reader, or logged
            self._failed(error)
            return
        if isinstance(answer, pb.LeaseResponse):
            self.send(answer.SerializeToString())
        else:
            self._slow = asyncio.ensure_future(self._wait_for(answer))

    async def _wait_for(self, answer: Awaitable[pb.LeaseResponse]) -> None:
        try:
            self.send((await answer).SerializeToString())
        except Exception as error:  # noqa: BLE001  told to the reader, or logged
            self._failed(error)
        self._slow = None
        while self._behind and self._slow is None:
            self._hear(self._behind.popleft())

    def _failed(self, error: Exception) -> None:
        if isinstance(error, Refusal):
            refused = pb.LeaseRefusal(
                reason=error.reason, message=error.message, metadata=error.metadata
            )
            self.send(pb.LeaseResponse(refused=refused).SerializeToString())
            return
        log.error("a lease request failed, its connection ends", exc_info=error)
        self.abort()
