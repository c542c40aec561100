"""Messages over TCP: a length in four bytes, little-endian, then the message."""

import asyncio
import socket
from abc import ABC, abstractmethod
from typing import cast

# A pull is cut by its credit: even pages of 2 KiB stay far below.
LONGEST = 64 << 20

# A host that vanished is noticed in about five seconds, and so is a cut cable: the kernel would
# try again for a quarter of an hour.
_DEAD_HOST = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class FramedProtocol(asyncio.Protocol, ABC):
    """One end of a connection: `send` and `received`. Without streams and tasks, which cost more
    than what they carry here: a round trip is a few microseconds and two wake-ups."""

    def __init__(self, longest: int = LONGEST) -> None:
        """A message of more than `longest` bytes ends the connection before it is gathered."""
        self.longest = longest
        self._transport: asyncio.Transport | None = None
        self._rest = b""  # the beginning of a message that has not come whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        for option in _DEAD_HOST:
            self._transport.get_extra_info("socket").setsockopt(*option)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        start = 0
        while len(data) - start >= 4:
            end = start + 4 + int.from_bytes(data[start : start + 4], "little")
            if end - start - 4 > self.longest:
                self.abort()
                return
            if end > len(data):
                break
            self.received(data[start + 4 : end])
            start = end
            if self._transport is None or self._transport.is_closing():
                return  # what follows is of nobody that we listen to
        self._rest = data[start:]

    @abstractmethod
    def received(self, message: bytes) -> None:
        """A message has come."""

    def send(self, message: bytes) -> None:
        """Never waits; nothing happens when the connection is over."""
        if self._transport is not None:
            self._transport.write(len(message).to_bytes(4, "little") + message)

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()
