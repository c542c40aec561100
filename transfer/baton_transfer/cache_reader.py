"""Reads pages of any cache group of peers into the arenas of one rank."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from baton.v1.kv_pb2 import ExportedCache, ExportedMemory
from baton_transfer.arena import PageArena, Pages
from baton_transfer.outcome import ReadFailure, ReadOutcome
from baton_transfer.reader import FLOOR_BYTES_PER_S, PageReader


class CacheReader:
    """One PageReader per cache group, so that groups are read side by side.

    Takes plain bytes and integers, so that every tensor-parallel rank can run one. Thread-safe.
    """

    def __init__(
        self,
        name: str,
        arenas: Sequence[PageArena],
        *,
        floor_bytes_per_s: float = FLOOR_BYTES_PER_S,
    ) -> None:
        """arenas: of every cache group, in order. `name`: see PageReader."""
        self._readers = [
            PageReader(f"{name}-g{group}", arena, floor_bytes_per_s=floor_bytes_per_s)
            for group, arena in enumerate(arenas)
        ]

    def submit(
        self,
        memory: bytes,
        group: int,
        sources: Sequence[int] | Pages,
        targets: Sequence[int] | Pages,
        checksums: Sequence[int] | NDArray[np.uint64] | None = None,
        *,
        seconds: float | None = None,
        stop: threading.Event | None = None,
    ) -> Future[ReadOutcome]:
        """As PageReader.submit, of a group's pages; memory: a serialised ExportedCache."""
        reader = self._readers[group]
        theirs = _memory(memory, group)
        if theirs is None:
            return _unreadable(f"the peer's memory description has no cache group {group}")
        return reader.submit(
            theirs.SerializeToString(deterministic=True),
            sources,
            targets,
            checksums,
            seconds=seconds,
            stop=stop,
        )

    def forget(self, memory: bytes) -> None:
        """As PageReader.forget."""
        for group, reader in enumerate(self._readers):
            theirs = _memory(memory, group)
            if theirs is not None:
                reader.forget(theirs.SerializeToString(deterministic=True))

    def close(self) -> None:
        """As PageReader.close."""
        for reader in self._readers:
            reader.close()


def _memory(data: bytes, group: int) -> ExportedMemory | None:
    try:
        ranks = ExportedCache.FromString(data).ranks
    except DecodeError:
        return None
    if not ranks or group >= len(ranks[0].groups):
        return None
    return ranks[0].groups[group]


def _unreadable(detail: str) -> Future[ReadOutcome]:
    future: Future[ReadOutcome] = Future()
    future.set_result(ReadOutcome(0, 0, 0.0, ReadFailure.UNREADABLE, detail))
    return future
