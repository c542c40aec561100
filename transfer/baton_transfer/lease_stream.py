"""The reader's end of a lease connection: requests go out, answers come back in their order."""

import asyncio
from collections import deque
from collections.abc import Callable

from baton.v1 import kv_pb2 as pb
from baton_rpc import Refusal, host_of
from baton_transfer.framing import FramedProtocol


class Unreachable(Exception):
    """A holder did not answer; the text says how."""


Unheard = Callable[[pb.LeaseResponse], None]


class LeaseStream(FramedProtocol):
    """One connection. Once it is `over`, take another one. Used on one event loop."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self._loop = asyncio.get_running_loop()
        # A caller that lost patience leaves its future here: the answer still comes in its turn.
        self._waiting: deque[tuple[asyncio.Future[pb.LeaseResponse], Unheard | None]] = deque()
        self.over = False

    @classmethod
    async def dial(cls, address: str, port: int, ticket: bytes, timeout: float) -> "LeaseStream":
        """Connects to `port` on the host of `address`. Raises Unreachable."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, stream = await loop.create_connection(
                    lambda: cls(address), host_of(address), port
                )
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"{address}: no connection to its lease port {port}") from error
        stream.send(ticket)
        return stream

    async def ask(
        self, request: pb.LeaseRequest, timeout: float, unheard: Unheard | None = None
    ) -> pb.LeaseResponse:
        """The answer. Raises Refusal and Unreachable. `unheard` is told one that comes after the
        caller was cancelled or has lost patience."""
        if self.over:
            raise Unreachable(f"{self._address}: the lease connection is over")
        answer: asyncio.Future[pb.LeaseResponse] = self._loop.create_future()
        self._waiting.append((answer, unheard))
        self.send(request.SerializeToString())
        patience = self._loop.call_later(timeout, self._late, answer, timeout)
        try:
            told = await answer
        except asyncio.CancelledError:
            if unheard is not None and not answer.cancelled() and answer.exception() is None:
                unheard(answer.result())  # it came in the same turn of the loop
            raise
        finally:
            patience.cancel()
        if told.HasField("refused"):
            no = told.refused
            raise Refusal(no.reason, no.message, dict(no.metadata))
        return told

    def close(self) -> None:
        """Ends the connection; whoever waits gets Unreachable."""
        self.abort()

    def received(self, message: bytes) -> None:
        answer, unheard = self._waiting.popleft()
        told = pb.LeaseResponse.FromString(message)
        if not answer.done():
            answer.set_result(told)
        elif unheard is not None:
            unheard(told)

    def connection_lost(self, error: Exception | None) -> None:
        self.over = True
        end = Unreachable(f"{self._address}: the lease connection ended ({error or 'by its peer'})")
        for left, _ in self._waiting:
            if not left.done():
                left.set_exception(end)

    def _late(self, answer: "asyncio.Future[pb.LeaseResponse]", timeout: float) -> None:
        if not answer.done():
            answer.set_exception(Unreachable(f"{self._address}: no answer within {timeout:g} s"))
