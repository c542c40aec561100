"""The DRAM tier: pages by identity, least recently used first out, leased ones stay.

Pure: time comes with the calls, in seconds. Page states: free, filling (an
offload writes into it), held (indexed, leasable).
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baton_kvstore.directory import PageHash
from baton_transfer import LeaseBook


class PagePool:
    """Slots of an arena. `take_changes` is what the directory must be told next."""

    def __init__(self, num_pages: int, first_lease: int = 1) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._held: OrderedDict[PageHash, int] = OrderedDict()  # oldest first
        self._sums = np.zeros(num_pages, np.uint64)
        self._filling: dict[PageHash, int] = {}
        self._book = LeaseBook(first_lease, lambda pages: None)
        self._added: list[PageHash] = []
        self._removed: list[PageHash] = []
        self.evicted = 0  # pages that had to go, since the start

    @property
    def held(self) -> int:
        """Pages that can be leased."""
        return len(self._held)

    @property
    def free(self) -> int:
        """Empty slots."""
        return len(self._free)

    @property
    def filling(self) -> int:
        """Slots that an offload writes into."""
        return len(self._filling)

    @property
    def leased(self) -> int:
        """Slots under a lease."""
        return self._book.leased_pages

    def knows(self, page: PageHash) -> bool:
        """Whether a page is held or on its way."""
        return page in self._held or page in self._filling

    # ---- filling

    def reserve(self, pages: Sequence[PageHash], now: float) -> NDArray[np.int32]:
        """Slots to fill with the leading m of `pages` (none of them known); int32 [m].

        Evicts what is least recently used and under no lease; m < n when
        everything else is leased or filling.
        """
        self._book.expire(now)
        slots: list[int] = []
        for page in pages:
            if self.knows(page):
                raise ValueError(f"page {page.hex()} is held or filling already")
            slot = self._free.pop() if self._free else self._evict()
            if slot is None:
                break
            self._filling[page] = slot
            slots.append(slot)
        return np.array(slots, np.int32)

    def filled(self, page: PageHash, checksum: int) -> None:
        """A reserved page is whole; it is held from now on."""
        slot = self._filling.pop(page)
        self._sums[slot] = checksum
        self._held[page] = slot
        self._added.append(page)

    def unfilled(self, page: PageHash) -> None:
        """A reserved page did not come, and nothing writes into its slot any more."""
        self._free.append(self._filling.pop(page))

    # ---- leasing

    def grant(
        self, chain: Sequence[PageHash], now: float, ttl: float
    ) -> tuple[int, NDArray[np.int32], NDArray[np.uint64]]:
        """A lease (0: none) on the longest held prefix, its slots and checksums."""
        slots: list[int] = []
        for page in chain:
            slot = self._held.get(page)
            if slot is None:
                break
            slots.append(slot)
        pages = np.array(slots, np.int32)
        if not slots:
            return 0, pages, self._sums[pages]
        # Leading pages are shared by more prompts: used last, so they go last.
        for page in reversed(chain[: len(slots)]):
            self._held.move_to_end(page)
        return self._book.grant(pages, now, ttl), pages, self._sums[pages]

    def renew(self, leases: Sequence[int], now: float, ttl: float) -> list[int]:
        """See LeaseBook.renew."""
        return self._book.renew(leases, now, ttl)

    def release(self, leases: Sequence[int], now: float) -> list[bool]:
        """See LeaseBook.release."""
        return self._book.release(leases, now)

    def expire(self, now: float) -> int:
        """Ends overdue leases; how many."""
        return self._book.expire(now)

    def touch(self, page: PageHash) -> None:
        """A worker published the page again: it is in use."""
        if page in self._held:
            self._held.move_to_end(page)

    def take_changes(self) -> tuple[list[PageHash], list[PageHash]]:
        """(added, removed) since the last call: what is held, and what is not any more."""
        added = [page for page in dict.fromkeys(self._added) if page in self._held]
        removed = [page for page in dict.fromkeys(self._removed) if page not in self._held]
        self._added, self._removed = [], []
        return added, removed

    def held_pages(self) -> list[PageHash]:
        """Everything held."""
        return list(self._held)

    def _evict(self) -> int | None:
        for page, slot in self._held.items():
            if not self._book.is_leased(slot):
                del self._held[page]
                self._removed.append(page)
                self.evicted += 1
                return slot
        return None
