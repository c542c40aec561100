"""The places of one tier, shared among tenants. Pure.

Room that nobody else wants is anybody's. When there is none left, each tenant that has pages here
is entitled to an equal share: one that wants more than its share takes a place from itself, one
that has less takes it from whoever is furthest above theirs. So no tenant can push another below
its share.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from baton_kvstore.greedy_dual import GreedyDual

Key = TypeVar("Key", bound=Hashable)
Tenant = bytes


@dataclass(slots=True)
class _Part(Generic[Key]):
    """One tenant's pages."""

    order: GreedyDual[Key] = field(default_factory=GreedyDual)
    used: int = 0  # places, those of pages that are not evictable yet included


class Shelf(Generic[Key]):
    """`capacity` places, numbered from 0. A key has at most one place."""

    def __init__(self, capacity: int) -> None:
        self.capacity = 0
        self._free: list[int] = []
        self._places: dict[Key, tuple[int, Tenant]] = {}
        self._parts: dict[Tenant, _Part[Key]] = {}
        self.grow(capacity)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    @property
    def free(self) -> int:
        """Empty places."""
        return len(self._free)

    def place(self, key: Key) -> int | None:
        """Where the key is."""
        found = self._places.get(key)
        return None if found is None else found[0]

    def used_by(self, tenant: Tenant) -> int:
        """Places of one tenant."""
        part = self._parts.get(tenant)
        return 0 if part is None else part.used

    def share(self, tenant: Tenant) -> int:
        """Places that the tenant cannot be pushed below, as long as no other tenant comes."""
        tenants = len(self._parts) + (tenant not in self._parts)
        return max(1, self.capacity // tenants)

    def grow(self, capacity: int) -> None:
        """More places than before."""
        self._free[:0] = range(capacity - 1, self.capacity - 1, -1)
        self.capacity = max(self.capacity, capacity)

    def take(
        self, key: Key, tenant: Tenant, evictable: Callable[[Key], bool]
    ) -> tuple[int, Key | None] | None:
        """A place for a new key, and who had to leave it; None when nobody may be made to.

        The key cannot be evicted before it is ranked.
        """
        victim: Key | None = None
        if not self._free:
            victim = self._victim(tenant, evictable)
            if victim is None:
                return None
            self.remove(victim)
        place = self._free.pop()
        self._places[key] = (place, tenant)
        self._parts.setdefault(tenant, _Part()).used += 1
        return place, victim

    def fill(self, found: Iterable[tuple[Key, Tenant, int]]) -> None:
        """Keys that are known to be at free places (found there at a start). Not ranked yet."""
        for key, tenant, place in found:
            self._places[key] = (place, tenant)
            self._parts.setdefault(tenant, _Part()).used += 1
        taken = {place for place, _ in self._places.values()}
        self._free = [place for place in reversed(range(self.capacity)) if place not in taken]

    def rank(self, key: Key, worth: float) -> None:
        """The key is used, is worth this, and may be evicted from now on."""
        _, tenant = self._places[key]
        self._parts[tenant].order.touch(key, worth)

    def entrust(self, key: Key, tenant: Tenant) -> None:
        """The key is this tenant's. It must be ranked again."""
        place, before = self._places[key]
        if before != tenant:
            self._leave(key, before)
            self._places[key] = (place, tenant)
            self._parts.setdefault(tenant, _Part()).used += 1

    def remove(self, key: Key) -> int:
        """The key leaves; its place is free."""
        place, tenant = self._places.pop(key)
        self._leave(key, tenant)
        self._free.append(place)
        return place

    def _leave(self, key: Key, tenant: Tenant) -> None:
        part = self._parts[tenant]
        part.order.discard(key)
        part.used -= 1
        if not part.used:
            del self._parts[tenant]

    def _victim(self, tenant: Tenant, evictable: Callable[[Key], bool]) -> Key | None:
        share = self.share(tenant)
        if self.used_by(tenant) < share:
            # Who has most above the share gives; the tenant's own pages are the last resort.
            above = sorted(
                (t for t in self._parts if t != tenant and self._parts[t].used > share),
                key=lambda t: -self._parts[t].used,
            )
        else:
            above = []
        for giver in (*above, tenant):
            part = self._parts.get(giver)
            victim = part.order.pop(evictable) if part is not None else None
            if victim is not None:
                return victim
        return None
