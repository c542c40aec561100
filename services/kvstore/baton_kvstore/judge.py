"""What is known of a page, as one opinion: is it taken, what is it worth, whose is it."""

from collections.abc import Callable, Sequence

from baton_kvstore.admission import Sightings, admitted
from baton_kvstore.directory import PageHash
from baton_kvstore.worth import worth
from baton_sessions import SessionTable

_ASSUMED_PAGE_TOKENS = 64


class Judge:
    """Sightings and sessions together. Used on one event loop."""

    def __init__(
        self,
        *,
        sightings: int,
        sessions: int,
        admit_all: bool = False,
        mine: Callable[[PageHash, bool], bool] = lambda page, hot: True,
        hot_uses: int = 8,
    ) -> None:
        """How many of each are remembered. `admit_all`: every page is taken whose group is known.
        `mine(page, hot)`: whether it is this kvstore that should."""
        self._mine = mine
        self._hot_uses = hot_uses
        self.sightings = Sightings(sightings)
        self.sessions = SessionTable(sessions)
        self.page_tokens = _ASSUMED_PAGE_TOKENS
        self.page_bytes = 1 << 20
        self.several_groups = False  # then a page is a token page only if a turn has had it
        self._admit_all = admit_all

    def admits(self, page: PageHash) -> bool:
        """Whether a tier takes the page."""
        sighting = self.sightings.of(page)
        if not self._mine(page, sighting.uses >= self._hot_uses):
            return False
        if self._admit_all and (sighting.uses or not self.several_groups):
            return True
        return admitted(sighting, self.sessions.live(page))

    def worth(self, page: PageHash, *, copy: bool) -> float:
        """Of keeping the page in a tier; `copy`: another tier has it too."""
        live = self.sessions.live(page)
        sighting = self.sightings.of(page)
        return worth(sighting, live, self.page_tokens, self.page_bytes, copy=copy)

    def tenant(self, page: PageHash) -> bytes:
        """Empty when nobody has said."""
        return self.sightings.of(page).tenant

    def turn(
        self,
        session: bytes,
        tenant: bytes,
        chain: Sequence[PageHash],
        now: float,
        ttl: float,
        family: bytes = b"",
    ) -> list[PageHash]:
        """A turn had this chain; `session` empty: of no session. Pages that are free now."""
        self.sightings.used(chain, tenant)
        if not session:
            return []
        freed = self.sessions.renew(session, chain, now, ttl, family=family)
        for page in chain:
            if self.sessions.shared(page):
                self.sightings.shared(page)
        return freed

    def over(self, pages: Sequence[PageHash]) -> list[PageHash]:
        """Sessions that had these are over: those that no other has, of which nothing is
        remembered either."""
        free = [p for p in pages if not self.sessions.live(p) and not self.sessions.shared(p)]
        for page in free:
            self.sightings.forget(page)
        return free
