"""Reads of a peer that cuts pages over another number of ranks: staged, proved, then sorted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import ExportedMemory
from baton_transfer.arena import PageArena, Pages
from baton_transfer.fragments import Cut, Part
from baton_transfer.outcome import ReadFailure, ReadOutcome, ended_at_once, together
from baton_transfer.reader import PageReader
from baton_transfer.share import Stop

# Of each rank of a peer; pages that fit are read at once and sorted before the next.
STAGING_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _Source:
    """One rank of the peer."""

    part: Part
    row: int  # of the lease's checksums
    memory: bytes
    staging: PageArena
    reader: PageReader


class StagedReader:
    """Reads pages of one peer and one cache group, one read after another, on a thread of its own.

    A checksum proves a rank's whole page, so whole pages are what is read, also where only some
    of their heads are wanted here. Nothing is written into the arena but what was proved, and only
    by this thread.
    """

    def __init__(
        self,
        name: str,
        arena: PageArena,
        cut: Cut,
        parts: Sequence[Part],
        memories: Sequence[ExportedMemory],
        floor_bytes_per_s: float,
    ) -> None:
        """parts: fragments.plan. memories: of every rank of the peer. arena: in host memory."""
        self._arena = arena
        self._cut = cut
        readable = cut.sources(len(memories))
        self.rows = len(readable)  # of a lease's checksums
        page_bytes = cut.page_bytes(len(memories))
        self._step = max(1, STAGING_BYTES // page_bytes)
        self._sources = []
        for part in parts:
            staging = PageArena.allocate(page_bytes=page_bytes, num_pages=self._step)
            reader = PageReader(
                f"{name}-s{part.rank}", staging, floor_bytes_per_s=floor_bytes_per_s
            )
            memory = memories[part.rank].SerializeToString(deterministic=True)
            self._sources.append(_Source(part, readable.index(part.rank), memory, staging, reader))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"baton-sort-{name}")

    def begin(
        self,
        sources: Pages,
        targets: Pages,
        checksums: NDArray[np.uint64] | None,
        seconds: float | None,
        stop: Stop | None,
    ) -> ReadOutcome | Future[ReadOutcome]:
        """As PageReader.begin; checksums [ranks that are read from, pages]."""
        self._arena.check_indices(targets)
        try:
            return self._thread.submit(self._read, sources, targets, checksums, seconds, stop)
        except RuntimeError:  # shut down
            return ended_at_once(ReadFailure.CLOSED, "the reader was closed")

    def close(self, *, wait: bool = True) -> None:
        """Ends the running read (CLOSED) and those that wait."""
        for source in self._sources:
            if wait:
                source.reader.close()
            else:
                source.reader.forget(source.memory)
        self._thread.shutdown(wait=wait)

    def _read(
        self,
        sources: Pages,
        targets: Pages,
        checksums: NDArray[np.uint64] | None,
        seconds: float | None,
        stop: Stop | None,
    ) -> ReadOutcome:
        started = time.monotonic()
        total = ReadOutcome(0, 0, 0.0, verified=checksums is not None)
        # An empty read connects.
        for first in range(0, max(1, len(targets)), self._step):
            some = slice(first, first + self._step)
            sums = None if checksums is None else checksums[:, some]
            left = None if seconds is None else seconds - (time.monotonic() - started)
            ended = self._stage(sources[some], sums, left, stop)
            self._sort(targets[some][: ended.arrived])
            total = ended._replace(
                arrived=total.arrived + ended.arrived,
                moved_bytes=total.moved_bytes + ended.moved_bytes,
                verified=checksums is not None,
            )
            if ended.failure is not None:
                break
        return total._replace(seconds=time.monotonic() - started)

    def _stage(
        self,
        pages: Pages,
        checksums: NDArray[np.uint64] | None,
        seconds: float | None,
        stop: Stop | None,
    ) -> ReadOutcome:
        """The pages of every rank that is needed, into the first places of its staging."""
        slots = np.arange(len(pages), dtype=np.int32)
        reads = [
            source.reader.submit(
                source.memory,
                pages,
                slots,
                None if checksums is None else checksums[source.row],
                seconds=seconds,
                stop=stop,
            )
            for source in self._sources
        ]
        return together([read.result() for read in reads])

    def _sort(self, targets: Pages) -> None:
        """Every fragment of the staged pages to its place."""
        shape = (-1, self._cut.entries, self._arena.page_bytes // self._cut.entries)
        ours = self._arena.pages.reshape(shape)
        for source in self._sources:
            theirs = source.staging.pages.reshape(len(source.staging.pages), shape[1], -1)
            for piece in source.part.fragments:
                taken = theirs[: len(targets), :, piece.source : piece.source + piece.size]
                ours[targets, :, piece.target : piece.target + piece.size] = taken
