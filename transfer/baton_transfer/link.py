"""Reads from one peer, one after another: its lanes, and the fence between a read and its end."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from baton.v1.kv_pb2 import ExportedMemory
from baton_transfer.arena import MemoryType, PageArena
from baton_transfer.lane import Lane
from baton_transfer.outcome import ReadFailure, ReadOutcome
from baton_transfer.share import Read, SharedRead
from baton_transfer.ucx import post_copies

# What is copied and hashed in less time than two threads take to wake each other.
_QUICK_BYTES = 256 << 10


class PeerLink:
    """Reads from one peer's memory, on two threads of its own.

    A read of several batches goes through two lanes, each of which copies and verifies: what one
    hashes, the other copies meanwhile. After every failure both agents are destroyed before the
    failure is told, so that a read that has ended never writes again.
    """

    def __init__(self, reader: str, arena: PageArena, memory: ExportedMemory) -> None:
        self._arena = arena
        self._memory = memory
        self._first, self._second = (Lane(reader, arena, memory) for _ in range(2))
        name = f"baton-read-{memory.agent}"
        self._other = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._reads: queue.SimpleQueue[Read | None] = queue.SimpleQueue()
        # Who holds it uses the lanes: the thread, or whoever asks for so little that to wake the
        # thread and to be woken by it would take longer than the read.
        self._lanes = threading.Lock()
        self._closing = False
        self.fences = 0  # reads after which the agents were destroyed
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, read: Read) -> None:
        """Queues a read, or does it at once; its future ends with a ReadOutcome."""
        if not self._is_quick(read) or not self._lanes.acquire(blocking=False):
            self._reads.put(read)
            return
        read.future.set_running_or_notify_cancel()
        shared = self._shared(read)
        whole = False
        try:
            whole = self._first.at_once(shared)
        finally:
            if whole:
                self._lanes.release()
                read.future.set_result(shared.outcome())
            else:  # it failed, or this transport does not copy in the post: do not wait here
                self._other.submit(self._carry_on, read, shared)

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
        while (read := self._reads.get()) is not None:
            if not read.future.set_running_or_notify_cancel():
                continue
            with self._lanes:
                self._end(read, partial(self._do, read))
        with self._lanes:
            self._other.shutdown()
            self._fence()
        self._refuse_the_rest()

    def _carry_on(self, read: Read, shared: SharedRead) -> None:
        """A read that was begun by who asked for it."""

        def rest() -> ReadOutcome:
            self._first.run(shared)
            return self._outcome(shared)

        try:
            self._end(read, rest)
        finally:
            self._lanes.release()

    def _end(self, read: Read, work: Callable[[], ReadOutcome]) -> None:
        try:
            read.future.set_result(work())
        except Exception as error:  # noqa: BLE001  told to whoever waits
            # A bug here must not leave the caller waiting, nor a read running.
            self._fence()
            read.future.set_exception(error)

    def _refuse_the_rest(self) -> None:
        while True:
            try:
                read = self._reads.get_nowait()
            except queue.Empty:
                return
            if read is not None and read.future.set_running_or_notify_cancel():
                read.future.set_result(_closed())

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

    def _shared(self, read: Read) -> SharedRead:
        return SharedRead(read, self._arena, self._memory.agent, lambda: self._closing)

    def _is_quick(self, read: Read) -> bool:
        wanted = len(read.targets) * self._arena.page_bytes
        on_host = self._arena.memory_type is MemoryType.DRAM
        return 0 < wanted <= _QUICK_BYTES and on_host and self._first.connected and post_copies()

    def _fence(self) -> None:
        fallen = [lane.fence() for lane in (self._first, self._second)]
        self.fences += any(fallen)


def _closed() -> ReadOutcome:
    return ReadOutcome(0, 0, 0.0, ReadFailure.CLOSED, "the reader was closed")
