"""Reads from one peer, one after another: its lanes, and the fence between a read and its end."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

from baton.v1.kv_pb2 import ExportedMemory
from baton_transfer.arena import MemoryType, PageArena
from baton_transfer.lane import Lane
from baton_transfer.outcome import ReadFailure, ReadOutcome
from baton_transfer.share import Ended, Read, SharedRead
from baton_transfer.ucx import post_copies

# What is copied and hashed in less time than two threads take to wake each other.
_QUICK_BYTES = 256 << 10

_Queued: TypeAlias = tuple[Read, Future[ReadOutcome]]


class PeerLink:
    """Reads from one peer's memory, on two threads of its own.

    A read of several batches goes through two lanes, each of which copies and verifies: what one
    hashes, the other copies meanwhile. After every failure both agents are destroyed before the
    failure is told, so that a read that has ended never writes again.
    """

    def __init__(self, reader: str, arena: PageArena, memory: ExportedMemory) -> None:
        self.pages = memory.pages
        self._arena = arena
        self._memory = memory
        self._first, self._second = (Lane(reader, arena, memory) for _ in range(2))
        name = f"baton-read-{memory.agent}"
        self._other = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._reads: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        # Who holds it uses the lanes: the thread, or whoever asks for so little that to wake the
        # thread and to be woken by it would take longer than the read.
        self._lanes = threading.Lock()
        at_once = arena.memory_type is MemoryType.DRAM and post_copies()
        self._quick_pages = _QUICK_BYTES // arena.page_bytes if at_once else 0
        self._closing = False
        self.fences = 0  # reads after which the agents were destroyed
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self, read: Read) -> ReadOutcome | Future[ReadOutcome]:
        """Queues a read, or does it at once."""
        future: Future[ReadOutcome]
        if not 0 < len(read.targets) <= self._quick_pages or not self._take_ready(read):
            future = Future()
            self._reads.put((read, future))
            return future
        started = time.monotonic()
        shared: SharedRead | None = None
        done = False
        try:
            done = self._first.at_once(read)
        except Ended as end:
            shared = self._shared(read, posted=True)
            shared.fail(end)
        finally:
            if done:
                self._lanes.release()
            else:  # it failed, or this transport does not copy in the post: do not wait here
                future = Future()
                future.set_running_or_notify_cancel()
                shared = shared or self._shared(read, posted=True)
                self._other.submit(self._carry_on, shared, future)
        if not done:
            return future
        moved = len(read.targets) * self._arena.page_bytes
        seconds = time.monotonic() - started
        verified = read.checksums is not None
        return ReadOutcome(len(read.targets), moved, seconds, verified=verified)

    @property
    def alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def close(self, *, wait: bool = True) -> None:
        """Ends the running read (CLOSED) and the queued ones, destroys the agents."""
        self._closing = True
        self._reads.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (queued := self._reads.get()) is not None:
            read, future = queued
            if not future.set_running_or_notify_cancel():
                continue
            with self._lanes:
                self._end(future, partial(self._do, read))
        with self._lanes:
            self._other.shutdown()
            self._fence()
        self._refuse_the_rest()

    def _carry_on(self, shared: SharedRead, future: Future[ReadOutcome]) -> None:
        """A read that was begun by who asked for it."""

        def rest() -> ReadOutcome:
            self._first.run(shared)
            return self._outcome(shared)

        try:
            self._end(future, rest)
        finally:
            self._lanes.release()

    def _end(self, future: Future[ReadOutcome], work: Callable[[], ReadOutcome]) -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  told to whoever waits
            # A bug here must not leave the caller waiting, nor a read running.
            self._fence()
            future.set_exception(error)

    def _refuse_the_rest(self) -> None:
        while True:
            try:
                queued = self._reads.get_nowait()
            except queue.Empty:
                return
            if queued is not None and queued[1].set_running_or_notify_cancel():
                queued[1].set_result(_closed())

    def _do(self, read: Read) -> ReadOutcome:
        shared = self._shared(read)
        if shared.batches == 1:
            self._first.run(shared)
        else:  # also none: both lanes connect
            other = self._other.submit(self._second.run, shared)
            try:
                self._first.run(shared)
            finally:
                other.result()
        return self._outcome(shared)

    def _outcome(self, shared: SharedRead) -> ReadOutcome:
        if shared.failed:
            self._fence()
        return shared.outcome()

    def _shared(self, read: Read, *, posted: bool = False) -> SharedRead:
        peer, closing = self._memory.agent, lambda: self._closing
        return SharedRead(read, self._arena, peer, closing, posted=posted)

    def _take_ready(self, read: Read) -> bool:
        """Takes the lanes, if nobody has them and a read can be posted without connecting."""
        if self._closing or read.seconds <= 0 or (read.stop is not None and read.stop.is_set()):
            return False
        if not self._lanes.acquire(blocking=False):
            return False
        if not self._first.connected:
            self._lanes.release()
            return False
        return True

    def _fence(self) -> None:
        fallen = [lane.fence() for lane in (self._first, self._second)]
        self.fences += any(fallen)


def _closed() -> ReadOutcome:
    return ReadOutcome(0, 0, 0.0, ReadFailure.CLOSED, "the reader was closed")
