"""Session leases: each names the pages that an agent's session will want again.

Pure: time comes with the calls, in seconds. A page is live while a lease names it; a lease's end
frees the pages that no other one names. A fork is a second lease on the same pages, of the same
family. What two families have at the same time is shared, such as a system prompt: it outlives
both, since the next session will want it.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

PageHash = bytes  # 16 bytes
SessionKey = bytes  # 16 bytes: tenant and session id, hashed


@dataclass(slots=True)
class SessionLease:
    """One session, as far as its turns have been told."""

    chain: list[PageHash]  # page identities from the first one on
    deadline: float
    family: SessionKey


# Shared pages that are remembered; the longest known are forgotten first.
_SHARED = 65_536


class SessionTable:
    """Leases by session; at most `capacity`, the one that ends soonest goes first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._leases: dict[SessionKey, SessionLease] = {}
        self._named: Counter[PageHash] = Counter()  # by how many leases
        self._families: dict[PageHash, SessionKey] = {}  # who named a live page first
        self._shared: OrderedDict[PageHash, None] = OrderedDict()
        # Deadlines as they were when pushed; a renewed lease is found again when its old one pops.
        self._due: list[tuple[float, SessionKey]] = []

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, session: object) -> bool:
        return session in self._leases

    @property
    def pages(self) -> int:
        """Distinct live pages."""
        return len(self._named)

    def live(self, page: PageHash) -> int:
        """How many leases name the page."""
        return self._named[page]

    def shared(self, page: PageHash) -> bool:
        """Whether sessions that are no forks of each other have had the page at the same time."""
        return page in self._shared

    def family(self, session: SessionKey) -> SessionKey:
        """The first session of those that it and its relatives were forked from."""
        lease = self._leases.get(session)
        return session if lease is None else lease.family

    def chain(self, session: SessionKey) -> Sequence[PageHash]:
        """The session's pages; none of a session without a lease."""
        lease = self._leases.get(session)
        return lease.chain if lease is not None else ()

    def renew(
        self,
        session: SessionKey,
        chain: Sequence[PageHash],
        now: float,
        ttl: float,
        *,
        family: SessionKey = b"",
    ) -> list[PageHash]:
        """A turn had this chain. Pages that no lease names any more (an edited history's).

        `family`: of a new lease, when it is not the first of its own.
        """
        freed = self.expire(now)
        lease = self._leases.get(session)
        if lease is None:
            lease = self._leases[session] = SessionLease([], 0.0, family or session)
        common = _common_prefix(lease.chain, chain)
        self._name(chain[common:], lease.family)
        freed += self._unname(lease.chain[common:])
        lease.chain[common:] = chain[common:]
        lease.deadline = now + ttl
        heapq.heappush(self._due, (lease.deadline, session))
        if len(self._due) > 2 * len(self._leases) + 64:
            self._due = [(lease.deadline, key) for key, lease in self._leases.items()]
            heapq.heapify(self._due)
        while len(self._leases) > self._capacity:
            freed += self._end_first()
        return freed

    def fork(self, parent: SessionKey, child: SessionKey, now: float, ttl: float) -> bool:
        """A lease of its own for the child on the parent's pages; False: there is no parent."""
        self.expire(now)
        if parent not in self._leases:
            return False
        lease = self._leases[parent]
        self.renew(child, list(lease.chain), now, ttl, family=lease.family)
        return True

    def close(self, session: SessionKey) -> list[PageHash]:
        """Ends a lease; the pages that no other one names and that are not shared, in order."""
        lease = self._leases.pop(session, None)
        return [] if lease is None else self._unname(lease.chain)

    def expire(self, now: float) -> list[PageHash]:
        """Ends what is overdue; the pages that no lease names any more."""
        freed: list[PageHash] = []
        while self._due and self._due[0][0] <= now:
            freed += self._end_first()
        return freed

    def _end_first(self) -> list[PageHash]:
        deadline, session = heapq.heappop(self._due)
        lease = self._leases.get(session)
        if lease is None or lease.deadline != deadline:
            return []
        return self.close(session)

    def _name(self, pages: Sequence[PageHash], family: SessionKey) -> None:
        self._named.update(pages)
        for page in pages:
            if self._families.setdefault(page, family) != family:
                self._shared[page] = None
        while len(self._shared) > _SHARED:
            self._shared.popitem(last=False)

    def _unname(self, pages: Sequence[PageHash]) -> list[PageHash]:
        freed = []
        for page in pages:
            self._named[page] -= 1
            if not self._named[page]:
                del self._named[page]
                del self._families[page]
                if page not in self._shared:
                    freed.append(page)
        return freed


def _common_prefix(before: Sequence[PageHash], after: Sequence[PageHash]) -> int:
    count = 0
    for old, new in zip(before, after, strict=False):
        if old != new:
            break
        count += 1
    return count
