"""Reads from one peer: its agent, its thread, and the fence between a read and its end."""

import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import ExportedMemory
from baton_transfer.agent import Agent, AgentError, XferState
from baton_transfer.arena import MemoryType, PageArena, Pages
from baton_transfer.outcome import ReadFailure, ReadOutcome
from baton_transfer.verification import Verifier

# Bounds what one post copies before the thread looks at deadlines and stops again.
_BATCH_BYTES = 4 << 20
# Batches posted before the first is waited for; hides round trips where posts return at once.
_BATCHES_IN_FLIGHT = 4
_SHORTEST_NAP_S, _LONGEST_NAP_S = 20e-6, 1e-3

_counter = itertools.count()


@dataclass(slots=True)
class Read:
    """One read as the link's thread gets it. Indices are checked already."""

    sources: Pages
    targets: Pages
    checksums: NDArray[np.uint64] | None
    seconds: float  # from its start on the link; past it the fence falls
    stop: threading.Event | None
    future: Future[ReadOutcome] = field(default_factory=Future)


@dataclass(slots=True)
class _Batch:
    first: int
    count: int
    handle: int
    state: XferState


class _Ended(Exception):
    def __init__(self, failure: ReadFailure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class PeerLink:
    """Reads from one peer's memory, one after another, on a thread of its own.

    The agent is made at the first read, and made anew after every failure: it
    is destroyed before the failure is told, so that a read that has ended
    never writes again.
    """

    def __init__(
        self, reader: str, arena: PageArena, memory: ExportedMemory, verifier: Verifier
    ) -> None:
        self._reader = reader
        self._arena = arena
        self._memory = memory
        self._verifier = verifier
        self._agent: Agent | None = None
        self._local = self._remote = 0
        self._reads: queue.SimpleQueue[Read | None] = queue.SimpleQueue()
        self._closing = False
        self.fences = 0  # agents destroyed because a read failed
        self._thread = threading.Thread(
            target=self._run, name=f"baton-read-{memory.agent}", daemon=True
        )
        self._thread.start()

    def submit(self, read: Read) -> None:
        """Queues a read; its future ends with a ReadOutcome."""
        self._reads.put(read)

    @property
    def alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def close(self, *, wait: bool = True) -> None:
        """Ends the running read (CLOSED) and the queued ones, destroys the agent."""
        self._closing = True
        self._reads.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (read := self._reads.get()) is not None:
            if not read.future.set_running_or_notify_cancel():
                continue
            try:
                read.future.set_result(self._do(read))
            except Exception as error:  # noqa: BLE001  told to whoever waits
                # A bug here must not leave the caller waiting, nor a read running.
                self._fence()
                read.future.set_exception(error)
        self._fence()
        self._refuse_the_rest()

    def _refuse_the_rest(self) -> None:
        while True:
            try:
                read = self._reads.get_nowait()
            except queue.Empty:
                return
            if read is not None and read.future.set_running_or_notify_cancel():
                read.future.set_result(_closed())

    def _do(self, read: Read) -> ReadOutcome:
        started = time.monotonic()
        whole = self._verifier.begin(read.targets, read.checksums)
        failure: ReadFailure | None = None
        detail = ""
        try:
            for batch in self._batches(read, started + read.seconds):
                whole.arrived(batch.first, batch.count)
        except _Ended as end:
            failure, detail = end.failure, str(end)
        if failure is not None:
            self._fence()
        arrived, bad = whole.result()
        if bad is not None:
            failure = ReadFailure.CHECKSUM
            detail = f"page {bad} of {len(read.targets)} from {self._memory.agent} is not whole"
        seconds = time.monotonic() - started
        moved = arrived * self._arena.page_bytes
        verified = read.checksums is not None
        return ReadOutcome(arrived, moved, seconds, failure, detail, verified)

    def _batches(self, read: Read, deadline: float) -> Iterator[_Batch]:
        """Posts everything, yields batches in order as they end. Raises _Ended."""
        agent = self._connected()
        step = max(1, _BATCH_BYTES // self._arena.page_bytes)
        running: deque[_Batch] = deque()
        for first in range(0, len(read.targets), step):
            if len(running) == _BATCHES_IN_FLIGHT:
                yield self._finished(agent, running.popleft(), read, deadline)
            self._check(read, deadline)
            targets = read.targets[first : first + step]
            sources = read.sources[first : first + step]
            try:
                handle, state = agent.read(self._local, targets, self._remote, sources)
            except AgentError as error:
                raise _Ended(ReadFailure.DISCONNECTED, str(error)) from error
            running.append(_Batch(first, len(targets), handle, state))
            while running and running[0].state is XferState.DONE:
                yield self._finished(agent, running.popleft(), read, deadline)
        while running:
            yield self._finished(agent, running.popleft(), read, deadline)

    def _finished(self, agent: Agent, batch: _Batch, read: Read, deadline: float) -> _Batch:
        nap = _SHORTEST_NAP_S
        try:
            while batch.state is XferState.RUNNING:
                self._check(read, deadline)
                time.sleep(nap)
                nap = min(nap * 1.5, _LONGEST_NAP_S)
                batch.state = agent.state(batch.handle)
            if batch.state is XferState.DONE:
                agent.release(batch.handle)
                return batch
        except AgentError as error:
            raise _Ended(ReadFailure.DISCONNECTED, str(error)) from error
        raise _Ended(ReadFailure.DISCONNECTED, f"NIXL reports an error from {self._memory.agent}")

    def _check(self, read: Read, deadline: float) -> None:
        if self._closing:
            raise _Ended(ReadFailure.CLOSED, "the reader was closed")
        if read.stop is not None and read.stop.is_set():
            raise _Ended(ReadFailure.STOPPED, "the caller gave the read up")
        if time.monotonic() > deadline:
            raise _Ended(
                ReadFailure.DEADLINE,
                f"{len(read.targets)} pages from {self._memory.agent} "
                f"took longer than {read.seconds:.1f} s",
            )

    def _connected(self) -> Agent:
        if self._agent is not None:
            return self._agent
        arena, memory = self._arena, self._memory
        # Unique: a peer must never take a rebuilt agent for the one before it.
        agent = Agent(f"{self._reader}-{os.getpid()}-{next(_counter)}", progress_thread=False)
        try:
            agent.register(arena.address, arena.size, arena.memory_type, arena.device)
            peer = agent.add_peer(memory.agent_metadata)
            self._local = agent.prepare(
                None, arena.address, arena.page_bytes, arena.num_pages, arena.memory_type,
                arena.device,
            )  # fmt: skip
            self._remote = agent.prepare(
                peer, memory.base, memory.page_bytes, memory.pages,
                MemoryType(memory.memory_type), memory.device,
            )  # fmt: skip
        except AgentError as error:
            agent.destroy()
            raise _Ended(ReadFailure.UNREADABLE, str(error)) from error
        self._agent = agent
        return agent

    def _fence(self) -> None:
        if self._agent is not None:
            self._agent.destroy()
            self._agent = None
            self.fences += 1


def _closed() -> ReadOutcome:
    return ReadOutcome(0, 0, 0.0, ReadFailure.CLOSED, "the reader was closed")
