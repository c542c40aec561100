"""Reads pages of any cache group of peers into the arenas of one rank."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from baton.v1.kv_pb2 import CacheGroupIdentity, ExportedCache
from baton_transfer.arena import MemoryType, PageArena, Pages
from baton_transfer.fragments import Cut, is_whole, plan
from baton_transfer.outcome import ReadFailure, ReadOutcome, ended_at_once, future_of
from baton_transfer.reader import FLOOR_BYTES_PER_S, PageReader
from baton_transfer.seals import SealView
from baton_transfer.share import Ended, Stop
from baton_transfer.staged import StagedReader


@dataclass(slots=True)
class _Group:
    """One cache group: our memory, and how it is read of each peer."""

    cut: Cut
    arena: PageArena
    direct: PageReader
    of_peers: dict[bytes, _Whole | StagedReader] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Whole:
    """A page here is a page of one rank there, as it lies."""

    memory: bytes
    row: int  # of the lease's checksums
    rows: int
    seals: SealView | None  # what is sealed there, if we can see it


class CacheReader:
    """Reads of every peer the parts of its ranks that this rank needs.

    Takes plain bytes and integers, so that every tensor-parallel rank can run one. Thread-safe.
    Groups are read side by side.
    """

    def __init__(
        self,
        name: str,
        groups: Sequence[CacheGroupIdentity],
        arenas: Sequence[PageArena],
        *,
        rank: int = 0,
        ranks: int = 1,
        floor_bytes_per_s: float = FLOOR_BYTES_PER_S,
    ) -> None:
        """groups, arenas: of every cache group, in order. `name`: see PageReader. ValueError when
        an arena's pages are not what this rank of so many has of them."""
        self._name = name
        self._rank, self._ranks = rank, ranks
        self._floor = floor_bytes_per_s
        self._lock = threading.Lock()
        self._closed = False
        self._groups: list[_Group] = []
        for group, arena in zip(groups, arenas, strict=True):
            cut = Cut.of(group)
            why = cut.why_not_over(ranks)
            if why or cut.page_bytes(ranks) != arena.page_bytes:
                raise ValueError(
                    f"cache group {group.name} over {ranks} ranks: pages of {arena.page_bytes} "
                    f"bytes, not {cut.page_bytes(ranks)}; {why}"
                )
            name = f"{self._name}-g{len(self._groups)}"
            direct = PageReader(name, arena, floor_bytes_per_s=floor_bytes_per_s)
            self._groups.append(_Group(cut, arena, direct))

    def submit(
        self,
        memory: bytes,
        group: int,
        sources: Sequence[int] | Pages,
        targets: Sequence[int] | Pages,
        checksums: Sequence[int] | NDArray[np.uint64] | None = None,
        *,
        seconds: float | None = None,
        stop: Stop | None = None,
    ) -> Future[ReadOutcome]:
        """As PageReader.submit, of a group's pages. memory: a serialised ExportedCache.

        checksums: of all pages on the first of the holder's ranks that are read from
        (Cut.sources), then on the next.
        """
        return future_of(
            self.begin(memory, group, sources, targets, checksums, seconds=seconds, stop=stop)
        )

    def begin(
        self,
        memory: bytes,
        group: int,
        sources: Sequence[int] | Pages,
        targets: Sequence[int] | Pages,
        checksums: Sequence[int] | NDArray[np.uint64] | None = None,
        *,
        seconds: float | None = None,
        stop: Stop | None = None,
    ) -> ReadOutcome | Future[ReadOutcome]:
        """As `submit`; the outcome itself when that is known at once (PageReader.begin)."""
        mine = self._groups[group]
        source_pages = np.ascontiguousarray(sources, np.int32)
        target_pages = np.ascontiguousarray(targets, np.int32)
        try:
            way = self._way(memory, group)
            sums = _rows(checksums, len(source_pages), way.rows)
        except Ended as end:
            return ended_at_once(end.failure, str(end))
        if isinstance(way, StagedReader):
            return way.begin(source_pages, target_pages, sums, seconds, stop)
        row = None if sums is None else sums[way.row]
        return mine.direct.begin(way.memory, source_pages, target_pages, row, seconds, stop)

    def begin_unleased(
        self,
        memory: bytes,
        group: int,
        identities: NDArray[np.uint8],
        targets: Pages,
        stop: Stop,
    ) -> ReadOutcome | Future[ReadOutcome] | None:
        """Reads pages [n, 16] by the peer's table of seals. None: nothing was read, lease them.

        No lease keeps them in their places, so of the outcome only what is verified is theirs;
        with CHECKSUM, another page was where one of them had been.
        """
        mine = self._groups[group]
        with self._lock:
            way = mine.of_peers.get(memory)
        if not isinstance(way, _Whole) or way.seals is None:
            return None
        found = way.seals.find(identities)
        if found is None:
            return None
        pages, checksums = found
        return mine.direct.begin(way.memory, pages, targets, checksums, None, stop)

    def forget(self, memory: bytes) -> None:
        """Ends what was made to read a peer that is gone; its reads that still run end too."""
        for mine in self._groups:
            with self._lock:
                way = mine.of_peers.pop(memory, None)
            if isinstance(way, StagedReader):
                way.close(wait=False)
            elif way is not None:
                mine.direct.forget(way.memory)

    def close(self) -> None:
        """Ends all reads (CLOSED) and destroys every agent. Idempotent."""
        for mine in self._groups:
            mine.direct.close()
            with self._lock:
                self._closed = True
                ways, mine.of_peers = mine.of_peers, {}
            for way in ways.values():
                if isinstance(way, StagedReader):
                    way.close()

    def _way(self, memory: bytes, group: int) -> _Whole | StagedReader:
        mine = self._groups[group]
        with self._lock:
            way = mine.of_peers.get(memory)
            if way is None:
                if self._closed:
                    raise Ended(ReadFailure.CLOSED, "the reader was closed")
                way = mine.of_peers[memory] = self._new_way(mine, memory, group)
            return way

    def _new_way(self, mine: _Group, memory: bytes, group: int) -> _Whole | StagedReader:
        memories = []
        for rank in _parsed(memory).ranks:
            if group >= len(rank.groups):
                raise _unreadable(f"the peer's memory description has no cache group {group}")
            memories.append(rank.groups[group])
        theirs = len(memories)
        try:
            parts = plan(mine.cut, theirs, self._ranks, self._rank)
        except ValueError as why:
            raise _unreadable(f"the peer's pages are of {theirs} ranks: {why}") from why
        readable = mine.cut.sources(theirs)
        if is_whole(mine.cut, parts, theirs, self._ranks):
            first = memories[parts[0].rank]
            # A table has the checksums of one rank. Those of VRAM cannot be verified.
            seen = len(readable) == 1 and mine.arena.memory_type is MemoryType.DRAM
            seals = SealView.open(first.seals) if seen and first.HasField("seals") else None
            first_bytes = first.SerializeToString(deterministic=True)
            return _Whole(first_bytes, readable.index(parts[0].rank), len(readable), seals)
        if mine.arena.memory_type is not MemoryType.DRAM:
            raise _unreadable(
                f"heads of {theirs} ranks are sorted to {self._ranks} in host memory, and these "
                "pages are on a GPU; give both workers the same tp"
            )
        name = f"{self._name}-g{group}"
        return StagedReader(name, mine.arena, mine.cut, parts, memories, self._floor)


def _rows(
    checksums: Sequence[int] | NDArray[np.uint64] | None, pages: int, rows: int
) -> NDArray[np.uint64] | None:
    """uint64 [rows, pages]: of each of the holder's ranks that are read from."""
    if checksums is None or len(checksums) == 0:
        return None
    if len(checksums) != rows * pages:
        raise _unreadable(f"{len(checksums)} checksums for {pages} pages of {rows} ranks")
    return np.asarray(checksums, np.uint64).reshape(rows, pages)


def _parsed(memory: bytes) -> ExportedCache:
    try:
        parsed = ExportedCache.FromString(memory)
    except DecodeError as error:
        raise _unreadable("the peer's memory description is not an ExportedCache") from error
    if not parsed.ranks:
        raise _unreadable("the peer's memory description is of no rank")
    return parsed


def _unreadable(detail: str) -> Ended:
    return Ended(ReadFailure.UNREADABLE, detail)
