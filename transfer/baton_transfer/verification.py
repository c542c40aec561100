"""Checks pages against their checksums while later pages are still on their way."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from baton_transfer.arena import PageArena, Pages

# Handing a batch to the other thread costs more than hashing this much.
_INLINE_BYTES = 1 << 20


class Verifier:
    """One thread that hashes what has arrived; shared by all links of a reader."""

    def __init__(self, arena: PageArena) -> None:
        self._arena = arena
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="baton-verify")

    def begin(self, targets: Pages, checksums: NDArray[np.uint64] | None) -> "Verification":
        """The verification of one read; checksums None accepts every page."""
        return Verification(self._arena, self._pool, targets, checksums)

    def close(self) -> None:
        """Waits for what is being hashed."""
        self._pool.shutdown(wait=True)


class Verification:
    """Which leading pages of one read are whole. Used by the link's thread."""

    def __init__(
        self,
        arena: PageArena,
        pool: ThreadPoolExecutor,
        targets: Pages,
        checksums: NDArray[np.uint64] | None,
    ) -> None:
        self._arena = arena
        self._pool = pool
        self._targets = targets
        self._checksums = checksums
        self._arrived = 0
        self._inline = len(targets) * arena.page_bytes <= _INLINE_BYTES
        self._bad: list[Future[int | None]] = []

    def arrived(self, first: int, count: int) -> None:
        """Pages [first:first+count] of the read are in memory; called in order."""
        self._arrived = first + count
        if self._checksums is None:
            return
        if self._inline:
            done: Future[int | None] = Future()
            done.set_result(self._first_bad(first, count))
            self._bad.append(done)
        else:
            self._bad.append(self._pool.submit(self._first_bad, first, count))

    def result(self) -> tuple[int, int | None]:
        """(leading whole pages, index of the first page that is not whole or None)."""
        bad = next((b for check in self._bad if (b := check.result()) is not None), None)
        return (self._arrived if bad is None else bad), bad

    def _first_bad(self, first: int, count: int) -> int | None:
        if self._checksums is None:
            return None
        got = self._arena.checksums(self._targets[first : first + count])
        wrong = np.nonzero(got != self._checksums[first : first + count])[0]
        return first + int(wrong[0]) if wrong.size else None
