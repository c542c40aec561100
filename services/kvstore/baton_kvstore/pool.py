"""The tiers' pages: which are held where, and which places may be given away.

Pure: time comes with the calls, in seconds. DRAM is what readers lease; the disk below it, when
there is one, keeps copies, so that a page that leaves DRAM is still held. A page is being filled
(an offload writes its DRAM place), saved (DRAM to disk) or loaded (disk to DRAM), or it rests; only
resting pages are evicted, and none under a lease.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton_kvstore.directory import PageHash
from baton_kvstore.groups import PageJudge
from baton_kvstore.shelf import Shelf
from baton_transfer import LeaseBook


@dataclass(frozen=True, slots=True)
class Move:
    """A page between its DRAM place and its disk slot. `checksum`: xxh3-64 of its bytes."""

    page: PageHash
    place: int
    slot: int
    checksum: int


class PagePool:
    """`take_changes` is what the directory must be told next, `take_erased` the disk."""

    def __init__(
        self, num_pages: int, judge: PageJudge, *, first_lease: int = 1, saves: bool = False
    ) -> None:
        """`saves`: there is a disk; `disk.grow` says how many slots it has."""
        self.num_pages = num_pages
        self.disk: Shelf[PageHash] = Shelf(0)
        self.evicted = 0  # pages that left DRAM for others
        self.evicted_from_disk = 0
        self.disk_takes = saves  # False while it refuses: then DRAM does not wait for it
        self._saves = saves
        self._judge = judge
        self._dram: Shelf[PageHash] = Shelf(num_pages)
        self._sums: dict[PageHash, int] = {}  # of everything held
        self._filling: set[PageHash] = set()
        self._saving: set[PageHash] = set()
        self._loading: set[PageHash] = set()
        self._doomed: set[PageHash] = set()  # not held any more, but in use
        self._unsaved: dict[PageHash, None] = {}
        self._book = LeaseBook(first_lease, self._let_go)
        self._in_place: dict[int, PageHash] = {}
        self._added: list[PageHash] = []
        self._removed: list[PageHash] = []
        self._erased: list[int] = []

    @property
    def held(self) -> int:
        """Pages that are held, in whatever tier."""
        return len(self._sums)

    @property
    def in_dram(self) -> int:
        """Pages that can be leased at once."""
        return len(self._in_place)

    @property
    def free(self) -> int:
        """Empty DRAM places."""
        return self._dram.free

    @property
    def filling(self) -> int:
        """DRAM places that an offload writes into."""
        return len(self._filling)

    @property
    def leased(self) -> int:
        """DRAM places under a lease."""
        return self._book.leased_pages

    @property
    def unsaved(self) -> int:
        """Pages that wait for the disk, or are being written to it."""
        return len(self._unsaved) + len(self._saving)

    def knows(self, page: PageHash) -> bool:
        """Whether a page is held, on its way, or still in somebody's hands."""
        return page in self._sums or page in self._dram or page in self.disk

    def can_lease(self, page: PageHash) -> bool:
        """Whether a page is in DRAM, whole."""
        return page in self._sums and page in self._dram and page not in self._loading

    def held_prefix(self, chain: Sequence[PageHash]) -> list[PageHash]:
        """The leading pages of a chain that are held, in whatever tier."""
        return list(itertools.takewhile(self._sums.__contains__, chain))

    # ---- filling

    def reserve(self, pages: Sequence[PageHash], now: float) -> NDArray[np.int32]:
        """Places to fill with the leading m of `pages` (none of them known); int32 [m].

        Evicts what is worth least; m < n when nothing may be evicted for them.
        """
        self._book.expire(now)
        places: list[int] = []
        for page in pages:
            if self.knows(page):
                raise ValueError(f"page {page.hex()} is held or filling already")
            place = self._take_place(page)
            if place is None:
                break
            self._filling.add(page)
            places.append(place)
        return np.array(places, np.int32)

    def filled(self, page: PageHash, checksum: int) -> None:
        """A reserved page is whole; it is held from now on."""
        if page in self._doomed:
            self._doomed.remove(page)
            self.unfilled(page)
            return
        self._filling.remove(page)
        self._sums[page] = checksum
        self._in_place[self._place(page)] = page
        self._added.append(page)
        if self._saves:
            self._unsaved[page] = None
        self._rank_dram(page)

    def unfilled(self, page: PageHash) -> None:
        """A reserved page did not come, and nothing writes into its place any more."""
        self._doomed.discard(page)
        self._filling.remove(page)
        self._dram.remove(page)

    # ---- leasing

    def grant(
        self, chain: Sequence[PageHash], now: float, ttl: float
    ) -> tuple[int, NDArray[np.int32], NDArray[np.uint64]]:
        """A lease (0: none) on the longest prefix in DRAM, its places and checksums."""
        leading = self._leading_in_dram(chain)
        places = np.array([self._place(page) for page in leading], np.int32)
        sums = np.array([self._sums[page] for page in leading], np.uint64)
        if not leading:
            return 0, places, sums
        # Leading pages are shared by more prompts: used last, so they go last.
        for page in reversed(leading):
            self._rank(page)
        return self._book.grant(places, now, ttl), places, sums

    def renew(self, leases: Sequence[int], now: float, ttl: float) -> list[int]:
        """See LeaseBook.renew."""
        return self._book.renew(leases, now, ttl)

    def release(self, leases: Sequence[int], now: float) -> list[bool]:
        """See LeaseBook.release."""
        return self._book.release(leases, now)

    def expire(self, now: float) -> int:
        """Ends overdue leases; how many."""
        return self._book.expire(now)

    # ---- knowing better

    def judged_anew(self, pages: Iterable[PageHash]) -> None:
        """These were used, or their session has ended: they are worth more, or less."""
        for page in pages:
            if page not in self._sums:
                continue
            tenant = self._judge.tenant(page)
            for shelf in (self._dram, self.disk):
                if page in shelf:
                    shelf.entrust(page, tenant)
            self._rank(page)

    def drop(self, pages: Iterable[PageHash]) -> int:
        """These are not held any more; how many were. What is in use is free after its use."""
        dropped = 0
        for page in pages:
            if page in self._sums:
                dropped += 1
                self._forget(page)
                self._doomed.add(page)
                self._bury(page)
            elif page in self._filling:
                self._doomed.add(page)
        return dropped

    # ---- disk

    def found_on_disk(self, found: Iterable[tuple[PageHash, int, int]]) -> None:
        """Pages of an earlier life: (page, slot, checksum). Their slots exist."""
        known = list(found)
        self.disk.fill((page, self._judge.tenant(page), slot) for page, slot, _ in known)
        for page, _, checksum in known:
            self._sums[page] = checksum
            self._added.append(page)
            self._rank_disk(page)

    def to_save(self, most: int) -> list[Move]:
        """Pages to copy to the disk, oldest first; each ends with `saved`."""
        moves: list[Move] = []
        for page in list(self._unsaved)[: 2 * most]:
            if len(moves) == most:
                break
            taken = self.disk.take(page, self._judge.tenant(page), self._rests_on_disk)
            if taken is None:
                if not self.disk.capacity:
                    break
                del self._unsaved[page]  # it lives in DRAM alone
                continue
            slot, victim = taken
            if victim is not None:
                self.evicted_from_disk += 1
                if victim in self._dram:
                    self._rank_dram(victim)
                else:
                    self._forget(victim)
            del self._unsaved[page]
            self._saving.add(page)
            moves.append(Move(page, self._place(page), slot, self._sums[page]))
        return moves

    def saved(self, page: PageHash, *, whole: bool) -> None:
        """The copy is on the disk, or could not be made."""
        self._saving.remove(page)
        if not whole:
            self._erased.append(self.disk.remove(page))
        if page in self._doomed:
            self._bury(page)
            return
        if whole:
            self._rank_disk(page)
        self._rank_dram(page)

    def to_load(self, chain: Sequence[PageHash], now: float) -> list[Move]:
        """Of the chain's held prefix, what is on the disk alone; each ends with `loaded`.

        Fewer when DRAM has no places for them. Pages of the chain that are in DRAM already stay
        there as long as the caller leases them first.
        """
        self._book.expire(now)
        moves: list[Move] = []
        for page in chain:
            if page not in self._sums:
                break
            if page in self._dram:
                if page in self._loading:
                    break
                continue
            # First: a page that is being loaded is not evicted from the disk.
            self._loading.add(page)
            place = self._take_place(page)
            if place is None:
                self._loading.remove(page)
                break
            moves.append(Move(page, place, self._slot(page), self._sums[page]))
        return moves

    def loaded(self, page: PageHash, *, whole: bool) -> None:
        """The page is in its place, or its bytes were not what they should be: it is dropped."""
        self._loading.remove(page)
        if page in self._doomed:
            self._bury(page)
        elif whole:
            self._in_place[self._place(page)] = page
            self._rank(page)
        else:
            self._dram.remove(page)
            self._erased.append(self.disk.remove(page))
            self._forget(page)

    # ---- what others must hear

    def take_changes(self) -> tuple[list[PageHash], list[PageHash]]:
        """(added, removed) since the last call: what is held, and what is not any more."""
        added = [page for page in dict.fromkeys(self._added) if page in self._sums]
        removed = [page for page in dict.fromkeys(self._removed) if page not in self._sums]
        self._added, self._removed = [], []
        return added, removed

    def take_erased(self) -> list[int]:
        """Disk slots whose records mean nothing any more. Erase them before the next save."""
        erased, self._erased = self._erased, []
        return erased

    def held_pages(self) -> list[PageHash]:
        """Everything held."""
        return list(self._sums)

    # ---- inside

    def _leading_in_dram(self, chain: Sequence[PageHash]) -> list[PageHash]:
        return list(itertools.takewhile(self.can_lease, chain))

    def _place(self, page: PageHash) -> int:
        place = self._dram.place(page)
        if place is None:
            raise KeyError(f"page {page.hex()} is not in DRAM")
        return place

    def _slot(self, page: PageHash) -> int:
        slot = self.disk.place(page)
        if slot is None:
            raise KeyError(f"page {page.hex()} is not on the disk")
        return slot

    def _take_place(self, page: PageHash) -> int | None:
        taken = self._dram.take(page, self._judge.tenant(page), self._rests_in_dram)
        if taken is None:
            return None
        place, victim = taken
        if victim is not None:
            self.evicted += 1
            self._in_place.pop(place, None)
            self._unsaved.pop(victim, None)
            if victim not in self.disk:
                self._forget(victim)
        return place

    def _rests_in_dram(self, page: PageHash) -> bool:
        busy = page in self._saving or page in self._loading
        busy = busy or (self.disk_takes and page in self._unsaved)
        return not busy and not self._book.is_leased(self._place(page))

    def _rests_on_disk(self, page: PageHash) -> bool:
        return page not in self._loading

    def _rank(self, page: PageHash) -> None:
        self._rank_dram(page)
        self._rank_disk(page)

    def _rank_dram(self, page: PageHash) -> None:
        if page in self._dram and page not in self._loading:
            copy = page in self.disk and page not in self._saving
            self._dram.rank(page, self._judge.worth(page, copy=copy))

    def _rank_disk(self, page: PageHash) -> None:
        if page in self.disk and page not in self._saving:
            self.disk.rank(page, self._judge.worth(page, copy=False))

    def _forget(self, page: PageHash) -> None:
        del self._sums[page]
        self._unsaved.pop(page, None)
        self._removed.append(page)

    def _bury(self, page: PageHash) -> None:
        """A doomed page leaves its places as soon as nobody uses them."""
        if page in self._saving or page in self._loading:
            return
        if page in self.disk:
            self._erased.append(self.disk.remove(page))
        place = self._dram.place(page)
        if place is not None:
            if self._book.is_leased(place):
                return
            self._in_place.pop(place, None)
            self._dram.remove(page)
        self._doomed.remove(page)

    def _let_go(self, places: list[int]) -> None:
        for place in places:
            page = self._in_place.get(place)
            if page in self._doomed:
                self._bury(page)
