"""Messages come whole and in order, however the stream is cut; absurd lengths end it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from baton_transfer.framing import FramedProtocol


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False

    def get_extra_info(self, name: str) -> "Wire":
        return self

    def setsockopt(self, *option: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


class Ear(FramedProtocol):
    def __init__(self, wire: Any, last: bytes | None = None) -> None:
        super().__init__()
        self.heard: list[bytes] = []
        self._last = last
        self.connection_made(wire)

    def received(self, message: bytes) -> None:
        self.heard.append(message)
        if message == self._last:
            self.abort()


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 9)))
def test_messages_come_as_they_were_sent(messages: list[bytes], cuts: list[int]) -> None:
    out, wire = Wire(), Wire()
    mouth, ear = Ear(out), Ear(wire)
    for message in messages:
        mouth.send(message)
    stream = out.written
    for cut in cuts:
        ear.data_received(stream[:cut])
        stream = stream[cut:]
    ear.data_received(stream)
    assert ear.heard == messages
    assert not wire.closing


def test_a_length_beyond_all_reason_ends_the_connection_before_it_is_waited_for() -> None:
    wire = Wire()
    ear = Ear(wire)
    ear.data_received(b"\x01\x00\x00\x00a" + b"\xff\xff\xff\xff")
    assert ear.heard == [b"a"]
    assert wire.closing


def test_after_the_end_nothing_more_is_heard() -> None:
    out, wire = Wire(), Wire()
    mouth, ear = Ear(out), Ear(wire, last=b"wrong ticket")
    for message in (b"wrong ticket", b"request"):
        mouth.send(message)
    ear.data_received(out.written)
    assert ear.heard == [b"wrong ticket"]
