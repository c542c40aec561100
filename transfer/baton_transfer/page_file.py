"""Pages in a file, moved by NIXL's POSIX backend. Synchronous: one thread uses one PageFile.

Bytes pass through a staging buffer of the file's own. A request that failed may still be running
in the kernel, so its buffer is given up with its agent, and no page of an arena is ever the
target of a read that has not ended well.
"""

import logging
import mmap
import os
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baton_transfer import binding
from baton_transfer.agent import AgentError

log = logging.getLogger("baton.transfer")

# What direct I/O wants of addresses, offsets and lengths on every disk we know.
_BLOCK = 4096
_STAGING_BYTES = 8 << 20
# The extent that is registered; the file may grow up to it.
_FILE_BYTES = 1 << 48
_SHORTEST_NAP_S, _LONGEST_NAP_S = 20e-6, 1e-3


class FileQueue(StrEnum):
    """How requests reach the kernel, best first. The values are NIXL's option names."""

    IO_URING = "use_uring"
    AIO = "use_aio"
    POSIX_AIO = "use_posix_aio"


class PageFileError(OSError):
    """The disk or NIXL failed a request: none of its pages can be relied on."""


class _Lane:
    """An agent, its staging buffer, and descriptors for every page of both."""

    def __init__(self, descriptor: int, stride: int, staged: int, queue: FileQueue) -> None:
        nixl = self._nixl = binding.load()
        config = nixl.nixlAgentConfig()
        config.useProgThread = False
        config.useListenThread = False
        config.syncMode = nixl.NIXL_THREAD_SYNC_STRICT
        self._name = f"file-{descriptor}"
        self._agent = nixl.nixlAgent(self._name, config)
        options = {queue.value: "true", "ios_pool_size": str(max(staged, 16))}
        self._backend: int = self._agent.createBackend("POSIX", options)
        self._descriptor = descriptor
        self._stride = stride
        # mmap: aligned to blocks, as direct I/O wants it.
        block = mmap.mmap(-1, staged * stride)
        self.staging: NDArray[np.uint8] = np.frombuffer(block, np.uint8).reshape(staged, stride)
        regions = nixl.nixlRegDList(
            nixl.DRAM_SEG, [(self.staging.ctypes.data, self.staging.nbytes, 0, "")]
        )
        self._agent.registerMem(regions, [self._backend])
        files = nixl.nixlRegDList(nixl.FILE_SEG, [(0, _FILE_BYTES, descriptor, "")])
        self._agent.registerMem(files, [self._backend])

    def move(self, operation: Any, slots: Sequence[int]) -> None:
        """Staged page i <-> slot i, all of them or an error of NIXL's."""
        nixl, count = self._nixl, len(slots)
        stride = np.uint64(self._stride)
        memory = np.empty((count, 3), np.uint64)
        memory[:, 0] = self.staging.ctypes.data + np.arange(count, dtype=np.uint64) * stride
        memory[:, 1] = stride
        memory[:, 2] = 0
        file = memory.copy()
        file[:, 0] = np.array(slots, np.uint64) * stride
        file[:, 2] = self._descriptor
        request = self._agent.createXferReq(
            operation,
            nixl.nixlXferDList(nixl.DRAM_SEG, memory),
            nixl.nixlXferDList(nixl.FILE_SEG, file),
            self._name,
            "",
            [self._backend],
        )
        status = self._agent.postXferReq(request)
        nap = _SHORTEST_NAP_S
        while status == nixl.NIXL_IN_PROG:
            time.sleep(nap)
            nap = min(nap * 1.5, _LONGEST_NAP_S)
            status = self._agent.getXferStatus(request)
        self._agent.releaseXferReq(request)


class PageFile:
    """Fixed-size slots in one file. Created when missing; grown by `reserve`."""

    def __init__(self, path: Path, page_bytes: int, *, queue: FileQueue | None = None) -> None:
        """Raises OSError for the path, AgentError when NIXL can move no files here."""
        self.page_bytes = page_bytes
        self._stride = -(-page_bytes // _BLOCK) * _BLOCK
        self._staged = max(1, _STAGING_BYTES // self._stride)
        self._path = path
        self._descriptor, self.direct = _open(path)
        self._lane: _Lane | None = None
        # Of lanes that failed: the kernel may still write there. Kept until the end.
        self._given_up: list[_Lane] = []
        try:
            self.queue = self._first_working(queue)
        except AgentError:
            os.close(self._descriptor)
            raise

    @property
    def slots(self) -> int:
        """Pages that the file has room for."""
        return os.fstat(self._descriptor).st_size // self._stride

    def reserve(self, slots: int) -> None:
        """Makes room for `slots` pages in all, on the disk and not only in name. OSError."""
        size = os.fstat(self._descriptor).st_size
        if slots * self._stride > size:
            os.posix_fallocate(self._descriptor, size, slots * self._stride - size)

    def truncate(self, slots: int) -> None:
        """Room for at most `slots` pages from now on. OSError."""
        if slots < self.slots:
            os.ftruncate(self._descriptor, slots * self._stride)

    def write(self, slots: Sequence[int], pages: Sequence[NDArray[np.uint8]]) -> None:
        """Writes whole pages, uint8 [page_bytes] each. PageFileError."""
        for first in range(0, len(slots), self._staged):
            part = slots[first : first + self._staged]
            lane = self._working()
            for i, page in enumerate(pages[first : first + self._staged]):
                lane.staging[i, : self.page_bytes] = page
            self._move(lane, binding.load().NIXL_WRITE, part)

    def read(self, slots: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Copies of at most `batch` pages; whether they are whole is the caller's to check.

        The arrays are valid until the next call. PageFileError.
        """
        if len(slots) > self._staged:
            raise ValueError(f"{len(slots)} pages at once; the file stages {self._staged}")
        lane = self._working()
        self._move(lane, binding.load().NIXL_READ, slots)
        return [lane.staging[i, : self.page_bytes] for i in range(len(slots))]

    @property
    def batch(self) -> int:
        """Pages that one request moves at most."""
        return self._staged

    def close(self) -> None:
        """Destroys the agent, closes the file. Idempotent."""
        self._lane = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _first_working(self, queue: FileQueue | None) -> FileQueue:
        refused = []
        for option in FileQueue if queue is None else (queue,):
            try:
                self._lane = _Lane(self._descriptor, self._stride, self._staged, option)
                return option
            except Exception as error:
                if not type(error).__name__.startswith("nixl"):
                    raise
                refused.append(f"{option.name}: {type(error).__name__}")
        raise AgentError(f"NIXL's POSIX backend cannot start here ({', '.join(refused)})")

    def _working(self) -> _Lane:
        if self._lane is None:
            self._lane = _Lane(self._descriptor, self._stride, self._staged, self.queue)
        return self._lane

    def _move(self, lane: _Lane, operation: Any, slots: Sequence[int]) -> None:
        try:
            lane.move(operation, slots)
        except Exception as error:
            if not type(error).__name__.startswith("nixl"):
                raise
            self._given_up.append(lane)
            self._lane = None
            raise PageFileError(
                f"{self._path}: NIXL failed to move {len(slots)} pages: {type(error).__name__}"
            ) from None


def _open(path: Path) -> tuple[int, bool]:
    """The descriptor, and whether it bypasses the page cache."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError as error:
        log.info("%s: no direct I/O (%s); reads and writes are cached", path, error.strerror)
    return os.open(path, flags, 0o600), False
