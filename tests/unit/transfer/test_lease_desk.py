"""Who has not shown the ticket is neither heard nor waited for, and costs no memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from baton.v1 import kv_pb2 as pb
from baton_transfer import lease_desk
from baton_transfer.lease_desk import LeaseDesk


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "little") + message


@asynccontextmanager
async def desk() -> AsyncIterator[tuple[LeaseDesk, list[pb.LeaseRequest]]]:
    heard: list[pb.LeaseRequest] = []

    def answer(request: pb.LeaseRequest) -> pb.LeaseResponse:
        heard.append(request)
        return pb.LeaseResponse(acquire=pb.AcquireResponse(lease_id=7))

    opened = LeaseDesk(answer)
    await opened.open("127.0.0.1")
    try:
        yield opened, heard
    finally:
        await opened.close()


async def answer_to(opened: LeaseDesk, *sent: bytes) -> bytes:
    """What comes back until the connection ends, or until a whole answer is there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
    try:
        writer.write(b"".join(sent))
        async with asyncio.timeout(5):
            size = int.from_bytes(await reader.readexactly(4), "little")
            return await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""
    finally:
        writer.close()


async def test_with_the_ticket_a_long_request_is_answered() -> None:
    async with desk() as (opened, heard):
        long = pb.LeaseRequest(acquire=pb.AcquireRequest(page_hashes=bytes(16 * 10_000)))
        told = await answer_to(opened, framed(opened.ticket), framed(long.SerializeToString()))
        assert pb.LeaseResponse.FromString(told).acquire.lease_id == 7
        assert heard == [long]


@pytest.mark.parametrize("size", [17, 1 << 20])
async def test_a_first_message_that_is_longer_than_a_ticket_is_not_gathered(size: int) -> None:
    async with desk() as (opened, heard):
        # Its length says enough: nothing more of it is sent, and yet the connection ends.
        assert await answer_to(opened, size.to_bytes(4, "little")) == b""
        assert heard == []


async def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_desk, "_TICKET_S", 0.05)
    async with desk() as (opened, _):
        assert await answer_to(opened) == b""
        assert await answer_to(opened, framed(opened.ticket[:8])) == b""
