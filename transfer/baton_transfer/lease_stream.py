"""The reader's end of one Lease stream: requests go out, answers come back in their order."""

import asyncio
from collections import deque

import grpc

from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_rpc import refusal_of


class Unreachable(Exception):
    """A holder's KvPeerService did not answer; the text says how."""


class LeaseStream:
    """One stream of one connection. Once it is `over`, take another one. Used on one event loop."""

    def __init__(self, stub: kv_pb2_grpc.KvPeerServiceStub, address: str) -> None:
        self._address = address
        self._call = stub.Lease()
        # A caller that lost patience leaves its future here: the answer still comes in its turn.
        self._waiting: deque[asyncio.Future[pb.LeaseResponse]] = deque()
        self._writing = asyncio.Lock()
        self._end: Exception | None = None
        self._reading = asyncio.create_task(self._read())

    @property
    def over(self) -> bool:
        """Whether it can carry no more."""
        return self._end is not None

    async def ask(self, request: pb.LeaseRequest, timeout: float) -> pb.LeaseResponse:
        """The answer. Raises Refusal (which ends the stream) and Unreachable."""
        answer: asyncio.Future[pb.LeaseResponse] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                async with self._writing:  # gRPC takes one write at a time
                    if self._end is not None:
                        raise self._end
                    self._waiting.append(answer)
                    await self._call.write(request)
                return await answer
        except TimeoutError as error:
            raise Unreachable(f"{self._address}: no answer within {timeout:g} s") from error
        except asyncio.InvalidStateError as error:  # the call ended; _read knows or will know why
            await self._reading
            raise self._end or Unreachable(f"{self._address}: the stream is over") from error
        except grpc.aio.AioRpcError as error:
            raise self._reason(error) from error

    async def close(self) -> None:
        """Ends the stream; whoever waits gets Unreachable."""
        self._call.cancel()
        await self._reading

    async def _read(self) -> None:
        try:
            async for answer in self._call:
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_result(answer)
            self._end = Unreachable(f"{self._address}: it ended the stream")
        except grpc.aio.AioRpcError as error:
            self._end = self._reason(error)
        except asyncio.CancelledError:
            self._end = Unreachable(f"{self._address}: the stream was closed")
        for left in self._waiting:
            if not left.done():
                left.set_exception(self._end)

    def _reason(self, error: grpc.aio.AioRpcError) -> Exception:
        return refusal_of(error) or Unreachable(f"{self._address}: {error.code().name}")
