"""Which pages a tier takes: those that are likely to be wanted again. Pure.

A page is taken when it has been used twice, when it belongs to a live session (whose next turn
will want it), or when it is a shared system prompt. Everything else would only push those out.
"""

from collections import OrderedDict
from collections.abc import Sequence

from baton_kvstore.directory import PageHash
from baton_kvstore.worth import Sighting


def admitted(sighting: Sighting, live_sessions: int) -> bool:
    """Whether the page is worth a place."""
    return sighting.uses >= 2 or live_sessions > 0 or sighting.shared


class Sightings:
    """What has been seen of the pages seen last; at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: OrderedDict[PageHash, Sighting] = OrderedDict()
        self._unknown = Sighting()

    def __len__(self) -> int:
        return len(self._seen)

    def of(self, page: PageHash) -> Sighting:
        """Not to be written to."""
        return self._seen.get(page, self._unknown)

    def used(self, chain: Sequence[PageHash], tenant: bytes) -> None:
        """A turn had this chain, from its first page on."""
        for index, page in enumerate(chain):
            sighting = self._seen_again(page)
            sighting.uses += 1
            sighting.tenant = tenant
            sighting.index = index
            sighting.length = max(sighting.length, len(chain))
        self._forget()

    def asked(self, page: PageHash) -> None:
        """A reader wanted the page, or a holder has it again."""
        self._seen_again(page).uses += 1
        self._forget()

    def recall(self, page: PageHash, tenant: bytes, index: int, length: int, uses: int) -> None:
        """An earlier life has seen this of the page."""
        self._seen.setdefault(page, Sighting(uses, False, tenant, index, length))
        self._forget()

    def shared(self, page: PageHash) -> None:
        """Sessions that are no forks of each other have the page."""
        self._seen_again(page).shared = True

    def forget(self, page: PageHash) -> None:
        """What it was used for is over."""
        self._seen.pop(page, None)

    def _seen_again(self, page: PageHash) -> Sighting:
        sighting = self._seen.get(page)
        if sighting is None:
            sighting = self._seen[page] = Sighting()
        else:
            self._seen.move_to_end(page)
        return sighting

    def _forget(self) -> None:
        while len(self._seen) > self._limit:
            self._seen.popitem(last=False)
