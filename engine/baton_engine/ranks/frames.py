"""What rank 0 and a follower say to each other: framed structs and raw int32, nothing to execute.

A frame is (kind: u8, length: u32 little endian, payload). Both ends are the same build on
machines of the same byte order, so arrays travel as their bytes.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from baton_engine.batch import StepInput
from baton_engine.guessing import DraftOrder
from baton_transfer import ReadFailure, ReadOutcome

_HEADER = struct.Struct("<BI")
_STEP = struct.Struct("<6I")  # rows, tokens, deltas, resets, copies, states
_PULL = struct.Struct("<QdIIII")  # id, seconds (NaN: default), group, memory bytes, pages, sums
_HASH = struct.Struct("<QI")  # id, group; then pages, int32
_HASHED = struct.Struct("<Q")  # id; then checksums, uint64
_PULLED = struct.Struct("<QIQd?")  # id, arrived, bytes moved, seconds, verified; then texts


class Kind(IntEnum):
    """What a frame is. Numbers are the wire's."""

    HELLO = 1  # rank 0 -> follower: the follower's start parameters, JSON
    READY = 2  # follower -> rank 0: the model is loaded and warm; its ExportedRank
    STEP = 3
    PULL = 4
    PULLED = 5
    STOP = 6
    FAILED = 7  # follower -> rank 0: why it is about to exit, text
    STEPPED = 8  # follower -> rank 0: one more step or draft is over, what it wrote is in memory
    HASH = 9  # rank 0 -> follower: which pages' checksums it wants
    HASHED = 10
    FORGET = 11  # rank 0 -> follower: a serialised ExportedCache that is not read again
    DRAFT = 12  # rank 0 -> follower: after a STEP, what became of its rows; raw int32 [R, 3]


class PeerGone(ConnectionError):
    """The other end of the frame socket is closed."""


class FrameSocket:
    """A stream socket that carries frames. Sending is thread-safe; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()

    def send(self, kind: Kind, *parts: bytes | memoryview) -> None:
        """Raises PeerGone when the other end is closed."""
        payload = b"".join(parts)
        try:
            with self._sending:
                self._sock.sendall(_HEADER.pack(kind, len(payload)) + payload)
        except OSError as error:
            raise PeerGone(f"cannot send {kind.name}: {error}") from error

    def receive(self) -> tuple[Kind, bytes]:
        """The next frame. Raises PeerGone when there will be none, ValueError for a bad one."""
        kind, length = _HEADER.unpack(self._exactly(_HEADER.size))
        return Kind(kind), self._exactly(length)

    def close(self) -> None:
        """End both directions; a blocked receive returns PeerGone."""
        with contextlib.suppress(OSError):  # the other end was faster
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            try:
                count = self._sock.recv_into(view[filled:])
            except OSError as error:
                raise PeerGone(f"receive failed: {error}") from error
            if count == 0:
                raise PeerGone("the other end closed the connection")
            filled += count
        return bytes(data)


def pack_step(step: StepInput) -> list[bytes]:
    """The parts of a STEP frame."""
    arrays = (
        step.rows,
        step.token_ids,
        step.page_deltas,
        step.slot_resets,
        step.copies,
        step.states,
    )
    return [_STEP.pack(*(len(array) for array in arrays)), *(array.tobytes() for array in arrays)]


def unpack_step(payload: bytes) -> StepInput:
    """ValueError when the payload's size is not what its counts say."""
    counts = _STEP.unpack_from(payload)
    widths = (6, 1, 3, 1, 2, 2)
    ints = np.frombuffer(payload, np.int32, offset=_STEP.size)
    ends = np.cumsum([count * width for count, width in zip(counts, widths, strict=True)])
    if len(ints) != ends[-1]:
        raise ValueError(f"a step frame of {len(ints)} ints announces {ends[-1]}")
    rows, tokens, deltas, resets, copies, states = np.split(ints, ends[:-1])
    return StepInput(
        rows.reshape(-1, 6),
        tokens,
        deltas.reshape(-1, 3),
        resets,
        copies.reshape(-1, 2),
        states.reshape(-1, 2),
    )


def unpack_draft(payload: bytes) -> DraftOrder:
    """ValueError when the payload is not whole rows. It is packed as its bytes."""
    return DraftOrder(np.frombuffer(payload, np.int32).reshape(-1, 3))


@dataclass(frozen=True, slots=True)
class PullOrder:
    """Read pages of a peer's exported cache into this rank's arena of a cache group."""

    pull_id: int
    seconds: float | None  # as CacheReader.submit
    group: int
    memory: bytes  # a serialised baton.v1.ExportedCache
    source_pages: NDArray[np.int32]
    target_pages: NDArray[np.int32]
    checksums: NDArray[np.uint64] | None


def pack_pull(order: PullOrder) -> list[bytes]:
    """The parts of a PULL frame."""
    sums = np.empty(0, np.uint64) if order.checksums is None else order.checksums
    head = _PULL.pack(
        order.pull_id,
        math.nan if order.seconds is None else order.seconds,
        order.group,
        len(order.memory),
        len(order.source_pages),
        len(sums),
    )
    return [
        head,
        order.memory,
        order.source_pages.astype(np.int32).tobytes(),
        order.target_pages.astype(np.int32).tobytes(),
        sums.astype(np.uint64).tobytes(),
    ]


def unpack_pull(payload: bytes) -> PullOrder:
    """The order in a PULL frame; ValueError when it is cut short."""
    pull_id, seconds, group, memory_bytes, pages, sums = _PULL.unpack_from(payload)
    at = _PULL.size
    memory = payload[at : at + memory_bytes]
    at += memory_bytes
    sources = np.frombuffer(payload, np.int32, pages, at)
    targets = np.frombuffer(payload, np.int32, pages, at + 4 * pages)
    checksums = np.frombuffer(payload, np.uint64, sums, at + 8 * pages) if sums else None
    limit = None if math.isnan(seconds) else seconds
    return PullOrder(pull_id, limit, group, memory, sources, targets, checksums)


def pack_pulled(pull_id: int, outcome: ReadOutcome) -> list[bytes]:
    """The parts of a PULLED frame."""
    failure = outcome.failure.value if outcome.failure is not None else ""
    head = _PULLED.pack(
        pull_id, outcome.arrived, outcome.moved_bytes, outcome.seconds, outcome.verified
    )
    return [head, f"{failure}\n{outcome.detail}".encode()]


def unpack_pulled(payload: bytes) -> tuple[int, ReadOutcome]:
    """The pull's id and its terminal outcome, from a PULLED frame."""
    pull_id, arrived, moved_bytes, seconds, verified = _PULLED.unpack_from(payload)
    failure, detail = payload[_PULLED.size :].decode().split("\n", 1)
    reason = ReadFailure(failure) if failure else None
    return pull_id, ReadOutcome(arrived, moved_bytes, seconds, reason, detail, verified)


@dataclass(frozen=True, slots=True)
class HashOrder:
    """Tell the checksums of these pages of a cache group."""

    hash_id: int
    group: int
    pages: NDArray[np.int32]


def pack_hash(order: HashOrder) -> list[bytes]:
    """The parts of a HASH frame."""
    return [_HASH.pack(order.hash_id, order.group), order.pages.astype(np.int32).tobytes()]


def unpack_hash(payload: bytes) -> HashOrder:
    """The order in a HASH frame."""
    hash_id, group = _HASH.unpack_from(payload)
    return HashOrder(hash_id, group, np.frombuffer(payload, np.int32, -1, _HASH.size))


def pack_hashed(hash_id: int, checksums: NDArray[np.uint64]) -> list[bytes]:
    """The parts of a HASHED frame."""
    return [_HASHED.pack(hash_id), checksums.tobytes()]


def unpack_hashed(payload: bytes) -> tuple[int, NDArray[np.uint64]]:
    """The order's id and the checksums, from a HASHED frame."""
    return _HASHED.unpack_from(payload)[0], np.frombuffer(payload, np.uint64, -1, _HASHED.size)
