"""Reading the same pages into the arenas of all ranks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from baton_engine.ranks.frames import PullOrder
from baton_engine.ranks.group import RankGroup
from baton_transfer import CacheReader, ReadOutcome, Stop, together

Pages = Sequence[int] | NDArray[np.int32]


class GroupReader:
    """A CacheReader over all ranks: a read has ended when it has ended on every one of them.

    A page has arrived when every rank has it.
    """

    def __init__(self, local: CacheReader, group: RankGroup) -> None:
        self._local = local
        self._group = group

    def begin(
        self,
        memory: bytes,
        group: int,
        sources: Pages,
        targets: Pages,
        checksums: Sequence[int] | NDArray[np.uint64] | None = None,
        *,
        seconds: float | None = None,
        stop: Stop | None = None,
    ) -> Future[ReadOutcome]:
        """As CacheReader.begin. `stop` ends rank 0's read early; the others' end by themselves."""
        sums = None
        if checksums is not None and len(checksums):
            sums = np.asarray(checksums, np.uint64)
        order = PullOrder(
            pull_id=0,  # given by the group
            seconds=seconds,
            group=group,
            memory=memory,
            source_pages=np.asarray(sources, np.int32),
            target_pages=np.asarray(targets, np.int32),
            checksums=sums,
        )
        local = self._local.submit(
            memory, group, sources, targets, sums, seconds=seconds, stop=stop
        )
        return all_ended([local, *self._group.pull(order)])

    def begin_unleased(
        self,
        memory: bytes,
        group: int,
        identities: NDArray[np.uint8],
        targets: NDArray[np.int32],
        stop: Stop,
    ) -> None:
        """As CacheReader.begin_unleased: what several ranks read is leased."""

    def forget(self, memory: bytes) -> None:
        """As CacheReader.forget, on every rank."""
        self._local.forget(memory)
        self._group.forget(memory)


def all_ended(futures: list[Future[ReadOutcome]]) -> Future[ReadOutcome]:
    """Ends when all have ended: with the worst of them, and the bytes of all."""
    joined: Future[ReadOutcome] = Future()
    left = len(futures)
    lock = threading.Lock()

    def one_ended(_: Future[ReadOutcome]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            joined.set_exception(errors[0])
            return
        joined.set_result(together([future.result() for future in futures]))

    for future in futures:
        future.add_done_callback(one_ended)
    return joined
