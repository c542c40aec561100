"""Reads pages of peers into an arena."""

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from baton.v1.kv_pb2 import ExportedMemory
from baton_transfer.arena import MemoryType, PageArena, Pages, within
from baton_transfer.link import PeerLink
from baton_transfer.outcome import ReadFailure, ReadOutcome, ended_at_once, future_of
from baton_transfer.share import Read, Stop

# A transfer slower than this is stuck, not slow: TCP on a bad day is ten times faster.
FLOOR_BYTES_PER_S = 50e6
_GRACE_S = 2.0


class PageReader:
    """Reads pages of many peers into one arena, with two NIXL agents and two threads per peer.

    Standalone: takes plain bytes and integers, so that every tensor-parallel
    rank can run one. Thread-safe. `configure_ucx` must have run before.

    Checksums are verified in host memory; for an arena in VRAM they are
    ignored, and the lease's verdict is the only proof.
    """

    def __init__(
        self, name: str, arena: PageArena, *, floor_bytes_per_s: float = FLOOR_BYTES_PER_S
    ) -> None:
        """`name` is the start of the agents' names; make it unique in the cluster."""
        self._name = name
        self._arena = arena
        self._floor = floor_bytes_per_s
        self._verifies = arena.memory_type is MemoryType.DRAM
        self._links: dict[bytes, PeerLink] = {}
        self._forgotten: list[PeerLink] = []
        self._lock = threading.Lock()
        self._closed = False
        # Also at the interpreter's end: UCX crashes when it outlives what it uses.
        self._end = weakref.finalize(self, _end, self._links, self._forgotten)

    def submit(
        self,
        memory: bytes,
        sources: Sequence[int] | Pages,
        targets: Sequence[int] | Pages,
        checksums: Sequence[int] | NDArray[np.uint64] | None = None,
        *,
        seconds: float | None = None,
        stop: Stop | None = None,
    ) -> Future[ReadOutcome]:
        """Starts reading pages `sources` of a peer into pages `targets` of the arena.

        memory: a serialised ExportedMemory. checksums: xxh3-64 per page; None
        or empty: none. seconds: counted from the read's start on its peer's
        thread (reads of one peer run one after another); past it the peer's
        agent is destroyed and the read ends with DEADLINE. The default is
        bytes / floor bandwidth + 2 s. stop: ends the read early when set.

        The outcome is terminal: until the future is done the target pages may
        be written at any time, and nothing but the future says so. Raises
        ValueError for indices outside our arena or lists of unequal length.
        """
        pages = _indices(sources), _indices(targets)
        return future_of(self.begin(memory, *pages, _sums(checksums), seconds, stop))

    def begin(
        self,
        memory: bytes,
        sources: Pages,
        targets: Pages,
        checksums: NDArray[np.uint64] | None,
        seconds: float | None,
        stop: Stop | None,
    ) -> ReadOutcome | Future[ReadOutcome]:
        """As `submit`, of contiguous arrays; the outcome itself when that is known at once, as of a
        small read that its post has copied."""
        self._check(sources, targets, checksums)
        if seconds is None:
            seconds = len(targets) * self._arena.page_bytes / self._floor + _GRACE_S
        read = Read(sources, targets, checksums if self._verifies else None, seconds, stop)
        with self._lock:
            if self._closed:
                return ended_at_once(ReadFailure.CLOSED, "the reader was closed")
            link = self._links.get(memory)
            if link is None:
                parsed = _parse(memory)
                unreadable = self._unreadable(parsed)
                if parsed is None or unreadable:
                    return ended_at_once(ReadFailure.UNREADABLE, unreadable)
                link = self._links[memory] = PeerLink(self._name, self._arena, parsed)
            if not within(sources, link.pages):
                return ended_at_once(
                    ReadFailure.UNREADABLE, f"a leased page is outside the {link.pages} of its peer"
                )
            return link.begin(read)

    def read(
        self,
        memory: bytes,
        sources: Sequence[int] | Pages,
        targets: Sequence[int] | Pages,
        checksums: Sequence[int] | NDArray[np.uint64] | None = None,
        *,
        seconds: float | None = None,
        stop: Stop | None = None,
    ) -> ReadOutcome:
        """As `submit`, and waits for the end."""
        future = self.submit(memory, sources, targets, checksums, seconds=seconds, stop=stop)
        return future.result()

    def forget(self, memory: bytes) -> None:
        """Ends the link to a peer that is gone; reads that still run there end with CLOSED."""
        with self._lock:
            link = self._links.pop(memory, None)
            self._forgotten[:] = [old for old in self._forgotten if old.alive]
            if link is not None:
                link.close(wait=False)
                self._forgotten.append(link)

    @property
    def links(self) -> int:
        """Peers with a link now."""
        return len(self._links)

    def close(self) -> None:
        """Ends all reads (CLOSED) and destroys every agent. Idempotent."""
        with self._lock:
            self._closed = True
        self._end()

    def _check(self, sources: Pages, targets: Pages, checksums: NDArray[np.uint64] | None) -> None:
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} source pages for {len(targets)} target pages")
        if checksums is not None and len(checksums) != len(targets):
            raise ValueError(f"{len(checksums)} checksums for {len(targets)} pages")
        self._arena.check_indices(targets)

    def _unreadable(self, memory: ExportedMemory | None) -> str:
        if memory is None:
            return "the peer's memory description is not an ExportedMemory"
        if memory.memory_type not in list(MemoryType):
            return f"memory type {memory.memory_type!r} of {memory.agent} is neither DRAM nor VRAM"
        if memory.page_bytes != self._arena.page_bytes:
            return (
                f"pages of {memory.agent} have {memory.page_bytes} bytes, "
                f"ours {self._arena.page_bytes}"
            )
        return ""


def _end(links: dict[bytes, PeerLink], forgotten: list[PeerLink]) -> None:
    for link in (*links.values(), *forgotten):
        link.close()
    links.clear()
    forgotten.clear()


def _indices(pages: Sequence[int] | Pages) -> Pages:
    return np.ascontiguousarray(pages, dtype=np.int32)


def _sums(checksums: Sequence[int] | NDArray[np.uint64] | None) -> NDArray[np.uint64] | None:
    if checksums is None or len(checksums) == 0:
        return None
    return np.asarray(checksums, dtype=np.uint64)


def _parse(memory: bytes) -> ExportedMemory | None:
    try:
        return ExportedMemory.FromString(memory)
    except DecodeError:
        return None
