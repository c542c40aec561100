"""Session leases: each names the pages that an agent's session will want again.

Pure: time comes with the calls, in seconds. A page is live while a lease names it; a lease's end
frees the pages that no other one names. A fork is a second lease on the same pages.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

PageHash = bytes  # 16 bytes
SessionKey = bytes  # 16 bytes: tenant and session id, hashed


@dataclass(slots=True)
class SessionLease:
    """One session, as far as its turns have been told."""

    chain: list[PageHash]  # page identities from the first one on
    deadline: float


class SessionTable:
    """Leases by session; at most `capacity`, the one that ends soonest goes first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._leases: dict[SessionKey, SessionLease] = {}
        self._named: Counter[PageHash] = Counter()  # by how many leases
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

    def chain(self, session: SessionKey) -> Sequence[PageHash]:
        """The session's pages; none of a session without a lease."""
        lease = self._leases.get(session)
        return lease.chain if lease is not None else ()

    def renew(
        self, session: SessionKey, chain: Sequence[PageHash], now: float, ttl: float
    ) -> list[PageHash]:
        """A turn had this chain. Pages that no lease names any more (an edited history's)."""
        freed = self.expire(now)
        lease = self._leases.get(session)
        if lease is None:
            lease = self._leases[session] = SessionLease([], 0.0)
        common = _common_prefix(lease.chain, chain)
        self._named.update(chain[common:])
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
        self.renew(child, list(self._leases[parent].chain), now, ttl)
        return True

    def close(self, session: SessionKey) -> list[PageHash]:
        """Ends a lease; the pages that no other one names, in chain order."""
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

    def _unname(self, pages: Sequence[PageHash]) -> list[PageHash]:
        freed = []
        for page in pages:
            self._named[page] -= 1
            if not self._named[page]:
                del self._named[page]
                freed.append(page)
        return freed


def _common_prefix(before: Sequence[PageHash], after: Sequence[PageHash]) -> int:
    count = 0
    for old, new in zip(before, after, strict=False):
        if old != new:
            break
        count += 1
    return count
