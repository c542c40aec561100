"""One NIXL agent: a thin typed face on the bindings.

The wheel's own Python class fixes the progress thread's delay at 0 (a core
spinning while idle) and can pickle; this one does neither.
"""

import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np

from baton_transfer import binding
from baton_transfer.arena import MemoryType, Pages
from baton_transfer.ucx import progress_delay_us

_BACKEND = "UCX"
# sys.getrefcount of an object with one reference: that one and its own argument.
_ONLY_OURS = 2


class XferState(Enum):
    """State of a posted read."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"


class AgentError(RuntimeError):
    """NIXL refused or failed an operation; the message says which."""

    def __init__(self, message: str, *, by_backend: bool = False) -> None:
        """`by_backend`: UCX failed, as when nobody listens any more; not NIXL's own checks."""
        super().__init__(message)
        self.by_backend = by_backend


class Agent:
    """A NIXL agent with the UCX backend. Not thread-safe except for its own progress thread.

    `progress_thread`: needed by an agent that others read from; a reader makes
    progress by asking for the state of its reads and is silent otherwise.
    Destroying it is the fence: afterwards none of its reads writes any more.
    """

    def __init__(self, name: str, *, progress_thread: bool) -> None:
        nixl = binding.load()
        config = nixl.nixlAgentConfig()
        config.useProgThread = progress_thread
        config.useListenThread = False
        config.pthrDelay = progress_delay_us()
        # Measured to be the faster mode too.
        config.syncMode = nixl.NIXL_THREAD_SYNC_STRICT
        self.name = name
        self._nixl = nixl
        self._agent = self._try("create agent", nixl.nixlAgent, name, config)
        self._backend: int = self._try("create UCX", self._agent.createBackend, _BACKEND, {})
        self._backends = [self._backend]
        self._registered: list[Any] = []
        self._running: set[int] = set()  # handles not released yet

    @property
    def backend_options(self) -> Mapping[str, str]:
        """The UCX backend's options as they hold."""
        options: Mapping[str, str] = self._agent.getBackendParams(self._backend)[0]
        return options

    def register(self, address: int, size: int, memory_type: MemoryType, device: int) -> None:
        """Registers memory for reads from and into it."""
        regions = self._nixl.nixlRegDList(self._segment(memory_type), [(address, size, device, "")])
        self._try("register memory", self._agent.registerMem, regions, self._backends)
        self._registered.append(regions)

    def metadata(self) -> bytes:
        """What a peer needs to read from this agent's memory."""
        data: bytes = self._agent.getLocalMD()
        return data

    def add_peer(self, metadata: bytes) -> str:
        """Makes a peer known; its agent name."""
        name: str | bytes = self._try("load peer metadata", self._agent.loadRemoteMD, metadata)
        return name.decode() if isinstance(name, bytes) else name

    def prepare(
        self,
        peer: str | None,
        base: int,
        page_bytes: int,
        num_pages: int,
        memory_type: MemoryType,
        device: int,
    ) -> int:
        """A descriptor list of every page, once per peer; `peer` None is our own memory."""
        rows = np.empty((num_pages, 3), np.uint64)
        rows[:, 0] = base + np.arange(num_pages, dtype=np.uint64) * np.uint64(page_bytes)
        rows[:, 1] = page_bytes
        rows[:, 2] = device
        descriptors = self._nixl.nixlXferDList(self._segment(memory_type), rows)
        name = self._nixl.NIXL_INIT_AGENT if peer is None else peer
        handle: int = self._try(
            "prepare pages", self._agent.prepXferDlist, name, descriptors, [self._backend]
        )
        return handle

    def read(
        self, local: int, targets: Pages, remote: int, sources: Pages
    ) -> tuple[int, XferState]:
        """Posts a read of pages int32 [n]; handle and state. CMA copies inside, GIL released."""
        agent, nixl = self._agent, self._nixl
        try:
            handle: int = agent.makeXferReq(
                nixl.NIXL_READ, local, targets, remote, sources, "", self._backends, True
            )
            self._running.add(handle)
            return handle, self._state_of(agent.postXferReq(handle))
        except Exception as error:  # noqa: BLE001  NIXL's have no base that could be named
            message, by_backend = _said("read", error)
        del agent  # see _try
        raise AgentError(message, by_backend=by_backend)

    def state(self, handle: int) -> XferState:
        """The state of a posted read; asking makes it progress."""
        return self._state("read", self._agent.getXferStatus, handle)

    def release(self, handle: int) -> None:
        """Frees a read's handle. Does not stop a running read."""
        self._try("release read", self._agent.releaseXferReq, handle)
        self._running.discard(handle)

    def destroy(self) -> None:
        """The fence. Nothing of this agent runs or writes after it; it cannot be used again."""
        # The binding's destructor runs when the last reference goes; nobody else has one.
        self._registered.clear()
        for handle in list(self._running):
            self._abandon(handle)
        if sys.getrefcount(self._agent) > _ONLY_OURS:
            raise RuntimeError(f"agent {self.name} is still referenced: it would not be destroyed")
        del self._agent

    def _abandon(self, handle: int) -> None:
        # Stops nothing, but the destructor crashes on handles of a peer that died (NIXL 1.5.1).
        try:
            self.release(handle)
        except AgentError:
            self._running.discard(handle)

    def _segment(self, memory_type: MemoryType) -> Any:
        return self._nixl.VRAM_SEG if memory_type is MemoryType.VRAM else self._nixl.DRAM_SEG

    def _state(self, what: str, call: Any, handle: int) -> XferState:
        return self._state_of(self._try(what, call, handle))

    def _state_of(self, status: Any) -> XferState:
        if status == self._nixl.NIXL_SUCCESS:
            return XferState.DONE
        return XferState.RUNNING if status == self._nixl.NIXL_IN_PROG else XferState.FAILED

    def _try(self, what: str, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:  # noqa: BLE001  NIXL's have no base that could be named
            message, by_backend = _said(what, error)
        # A traceback that kept `call` would keep the agent alive past its destruction, and a
        # local name of the error would keep its traceback.
        del call
        raise AgentError(message, by_backend=by_backend)


def _said(what: str, error: Exception) -> tuple[str, bool]:
    """What NIXL says went wrong, and whether UCX says it. Anything else is raised as it is."""
    kind = type(error).__name__
    if not kind.startswith("nixl") and not isinstance(error, RuntimeError):
        raise error
    return f"{what}: {kind} {error}".rstrip(), kind == "nixlBackendError"
