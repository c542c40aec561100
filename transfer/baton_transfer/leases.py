"""Leases on pages, by a clock that the caller owns."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton_transfer.arena import Pages


@dataclass(slots=True)
class _Lease:
    pages: Pages
    deadline: float


class LeaseBook:
    """Which pages are leased until when. Pure: time comes with each call, in seconds.

    A page may be in several leases; it is free again when the last one ends.
    `let_go` is told the pages that no lease holds any more, once each time.
    """

    def __init__(self, first_id: int, let_go: Callable[[list[int]], None]) -> None:
        """`first_id` >= 1; take another one in each life, so that old ids mean nothing."""
        if first_id < 1:
            raise ValueError(f"lease ids start at 1 or more, not at {first_id}")
        self._next = first_id
        self._let_go = let_go
        self._leases: dict[int, _Lease] = {}
        self._claims: NDArray[np.int32] = np.zeros(0, np.int32)  # leases on each page
        # Deadlines as they were when pushed; a renewed lease is found again when its old one pops.
        self._due: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def leased_pages(self) -> int:
        """Distinct pages under a lease."""
        return int(np.count_nonzero(self._claims))

    def is_leased(self, page: int) -> bool:
        """Whether any lease holds the page."""
        return page < len(self._claims) and bool(self._claims[page])

    def grant(self, pages: Pages, now: float, ttl: float) -> int:
        """A lease on `pages`, all different, until now + ttl; its id."""
        lease = self._next
        self._next += 1
        held = np.array(pages, np.int32)
        self._leases[lease] = _Lease(held, now + ttl)
        missing = int(held.max(initial=-1)) + 1 - len(self._claims)
        if missing > 0:
            self._claims = np.pad(self._claims, (0, max(missing, len(self._claims))))
        self._claims[held] += 1
        heapq.heappush(self._due, (now + ttl, lease))
        return lease

    def renew(self, leases: Sequence[int], now: float, ttl: float) -> list[int]:
        """Moves deadlines to now + ttl, never back; those that are over or unknown are returned."""
        self.expire(now)
        gone = []
        for lease in leases:
            held = self._leases.get(lease)
            if held is None:
                gone.append(lease)
            else:
                held.deadline = max(held.deadline, now + ttl)
        return gone

    def release(self, leases: Sequence[int], now: float) -> list[bool]:
        """Ends leases; for each whether it still held, so that its pages could not change."""
        self.expire(now)
        return [self._end(lease) for lease in leases]

    def expire(self, now: float) -> int:
        """Ends the leases whose deadline has passed; how many."""
        ended = 0
        while self._due and self._due[0][0] <= now:
            _, lease = heapq.heappop(self._due)
            held = self._leases.get(lease)
            if held is None:
                continue
            if held.deadline > now:
                heapq.heappush(self._due, (held.deadline, lease))
            else:
                self._end(lease)
                ended += 1
        return ended

    def _end(self, lease: int) -> bool:
        held = self._leases.pop(lease, None)
        if held is None:
            return False
        self._claims[held.pages] -= 1
        free = held.pages[self._claims[held.pages] == 0]
        if free.size:
            self._let_go(free.tolist())
        return True
