"""One lane of a link: an agent of its own, and the batches of a read that it takes."""

import itertools
import os
import time
from collections import deque
from dataclasses import dataclass

from baton.v1.kv_pb2 import ExportedMemory
from baton_transfer.agent import Agent, AgentError, XferState
from baton_transfer.arena import MemoryType, PageArena
from baton_transfer.outcome import ReadFailure
from baton_transfer.share import Batch, Ended, Read, SharedRead

# Batches posted before the first is waited for; hides round trips where posts return at once.
_BATCHES_IN_FLIGHT = 4
_SHORTEST_NAP_S, _LONGEST_NAP_S = 20e-6, 1e-3

_counter = itertools.count()


@dataclass(slots=True)
class _Posted:
    batch: Batch
    handle: int
    state: XferState


class Lane:
    """Reads from one peer's memory through one connection. Used by one thread at a time.

    The agent is made at the first read, and made anew after a fence.
    """

    def __init__(self, reader: str, arena: PageArena, memory: ExportedMemory) -> None:
        self._reader = reader
        self._arena = arena
        self._memory = memory
        self._agent: Agent | None = None
        self._local = self._remote = 0
        self._posted: deque[_Posted] = deque()

    @property
    def connected(self) -> bool:
        """Whether a read can be posted without making an agent first."""
        return self._agent is not None

    def at_once(self, read: Read) -> bool:
        """A read of one batch by a connected lane. Where the post copies (CMA), and what it
        brought is whole, that was all; False: `run` must go on with it. Raises Ended."""
        agent, targets, sums = self._agent or self._connected(), read.targets, read.checksums
        try:
            handle, state = agent.read(self._local, targets, self._remote, read.sources)
            if state is XferState.DONE and (
                sums is None or self._arena.whole(targets, sums) == len(targets)
            ):
                agent.release(handle)
                return True
        except AgentError as error:
            raise Ended(ReadFailure.DISCONNECTED, str(error)) from error
        self._posted.append(_Posted(Batch(0, 0, read.sources, targets), handle, state))
        return False

    def run(self, read: SharedRead) -> None:
        """Takes batches until none is left, verifies each as it comes; tells `read` a failure."""
        try:
            agent, posted = self._connected(), self._posted
            while batch := read.take():
                posted.append(self._post(agent, batch))
                # Just copied (CMA copies inside the post), so still in this core's cache.
                while posted and posted[0].state is XferState.DONE:
                    self._finish(agent, posted.popleft(), read)
                if len(posted) == _BATCHES_IN_FLIGHT:
                    self._finish(agent, posted.popleft(), read)
            while posted:
                self._finish(agent, posted.popleft(), read)
        except Ended as end:
            read.fail(end)

    def fence(self) -> bool:
        """Destroys the agent: nothing of it writes any more. False: there was none."""
        if self._agent is None:
            return False
        self._posted.clear()
        self._agent.destroy()
        self._agent = None
        return True

    def _post(self, agent: Agent, batch: Batch) -> _Posted:
        try:
            handle, state = agent.read(self._local, batch.targets, self._remote, batch.sources)
        except AgentError as error:
            raise Ended(ReadFailure.DISCONNECTED, str(error)) from error
        return _Posted(batch, handle, state)

    def _finish(self, agent: Agent, posted: _Posted, read: SharedRead) -> None:
        nap = _SHORTEST_NAP_S
        try:
            while posted.state is XferState.RUNNING:
                read.check()
                time.sleep(nap)
                nap = min(nap * 1.5, _LONGEST_NAP_S)
                posted.state = agent.state(posted.handle)
            if posted.state is XferState.DONE:
                agent.release(posted.handle)
                read.arrived(posted.batch)
                return
        except AgentError as error:
            raise Ended(ReadFailure.DISCONNECTED, str(error)) from error
        raise Ended(ReadFailure.DISCONNECTED, f"NIXL reports an error from {self._memory.agent}")

    def _connected(self) -> Agent:
        if self._agent is not None:
            return self._agent
        arena, memory = self._arena, self._memory
        # Unique: a peer must never take a rebuilt agent for the one before it.
        name = f"{self._reader}-{os.getpid()}-{next(_counter)}"
        try:
            agent = Agent(name, progress_thread=False)
        except AgentError as error:  # UCX finds no way out of this machine
            raise Ended(ReadFailure.DISCONNECTED, str(error)) from error
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
            gone = error.by_backend  # its description is right, and nobody listens there any more
            failure = ReadFailure.DISCONNECTED if gone else ReadFailure.UNREADABLE
            raise Ended(failure, str(error)) from error
        self._agent = agent
        return agent
