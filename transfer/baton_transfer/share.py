"""One read, cut into batches that lanes take in order, and what became of them."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton_transfer.arena import PageArena, Pages
from baton_transfer.outcome import ReadFailure, ReadOutcome

# Bounds what one post copies before deadlines and stops are looked at again, and fits a core's
# cache, so that hashing what was just copied costs a fifth of the copy.
_BATCH_BYTES = 2 << 20


class Stop:
    """Ends a read early, once set. Nobody waits for it, so it is no threading.Event: those cost
    more than the rest of a small read's bookkeeping."""

    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """From any thread."""
        self._set = True

    def is_set(self) -> bool:
        """Whether it has been."""
        return self._set


@dataclass(slots=True)
class Read:
    """One read as a link gets it. Indices are checked already."""

    sources: Pages
    targets: Pages
    checksums: NDArray[np.uint64] | None
    seconds: float  # from its start on the link; past it the fence falls
    stop: Stop | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages [first, first + len(targets)) of a read, taken by one lane."""

    number: int
    first: int
    sources: Pages
    targets: Pages


class Ended(Exception):
    """A read ends before its pages have come."""

    def __init__(self, failure: ReadFailure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class SharedRead:
    """Thread-safe. The first failure counts; after it no lane takes or waits for anything."""

    def __init__(
        self,
        read: Read,
        arena: PageArena,
        peer: str,
        closing: Callable[[], bool],
        *,
        posted: bool = False,
    ) -> None:
        """`posted`: all of it is taken already (Lane.at_once)."""
        self._read = read
        self._arena = arena
        self._peer = peer
        self._closing = closing
        self._started = time.monotonic()
        self._step = max(1, _BATCH_BYTES // arena.page_bytes)
        self._lock = threading.Lock()
        self._batches = iter(()) if posted else self._cut()
        self._arrived: dict[int, int] = {}  # batch -> leading whole pages
        self._bad: int | None = None  # the first page seen that is not whole
        # Not the exception itself: its frames would keep the agent alive past its destruction.
        self._end: tuple[ReadFailure, str] | None = None

    @property
    def batches(self) -> int:
        """How many there are to take."""
        return -(-len(self._read.targets) // self._step)

    @property
    def failed(self) -> bool:
        """Whether reads may still run, so that a fence is needed."""
        return self._end is not None

    def take(self) -> Batch | None:
        """The next batch, None when there is none. Raises Ended."""
        self.check()
        with self._lock:
            return None if self._bad is not None else next(self._batches, None)

    def arrived(self, batch: Batch) -> None:
        """Its bytes are in memory: verifies them."""
        whole = len(batch.targets)
        sums = self._read.checksums
        if sums is not None:
            whole = self._arena.whole(batch.targets, sums[batch.first : batch.first + whole])
            if whole < len(batch.targets):
                with self._lock:
                    bad = batch.first + whole
                    self._bad = bad if self._bad is None else min(bad, self._bad)
        self._arrived[batch.number] = whole

    def fail(self, end: Ended) -> None:
        """Some batch did not come."""
        with self._lock:
            self._end = self._end or (end.failure, str(end))

    def check(self) -> None:
        """Raises Ended when there is no point in going on."""
        read = self._read
        if self._end is not None:
            raise Ended(*self._end)
        if self._closing():
            raise Ended(ReadFailure.CLOSED, "the reader was closed")
        if read.stop is not None and read.stop.is_set():
            raise Ended(ReadFailure.STOPPED, "the caller gave the read up")
        if time.monotonic() > self._started + read.seconds:
            raise Ended(
                ReadFailure.DEADLINE,
                f"{len(read.targets)} pages from {self._peer} took longer "
                f"than {read.seconds:.1f} s",
            )

    def outcome(self) -> ReadOutcome:
        """When every lane has ended, and the fence has fallen if it must."""
        pages, failure, detail = 0, None, ""
        for number in range(self.batches):
            whole = self._arrived.get(number, 0)
            pages += whole
            if whole < self._step:
                break
        if self._end is not None:
            failure, detail = self._end
        if pages == self._bad:
            failure = ReadFailure.CHECKSUM
            detail = f"page {pages} of {len(self._read.targets)} from {self._peer} is not whole"
        seconds = time.monotonic() - self._started
        moved = pages * self._arena.page_bytes
        verified = self._read.checksums is not None
        return ReadOutcome(pages, moved, seconds, failure, detail, verified)

    def _cut(self) -> Iterator[Batch]:
        sources, targets, step = self._read.sources, self._read.targets, self._step
        for number, first in enumerate(range(0, len(targets), step)):
            part = slice(first, first + step)
            yield Batch(number, first, sources[part], targets[part])
