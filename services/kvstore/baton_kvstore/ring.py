"""Which kvstore keeps which page: consistent hashing of page identities. Pure.

Each member has many points on a circle of 64-bit hashes; a page belongs to the member of the next
point, its second copy to the next other member. So a member that comes or goes moves only the
pages that are its own.
"""

from bisect import bisect_right
from collections.abc import Iterable

import xxhash

from baton_kvstore.directory import PageHash

_POINTS = 128


class HashRing:
    """Members by name; the same names give the same ring everywhere."""

    def __init__(self, members: Iterable[str]) -> None:
        """Raises ValueError without any."""
        self.members = frozenset(members)
        if not self.members:
            raise ValueError("a ring needs at least one member")
        points = sorted(
            (xxhash.xxh3_64_intdigest(f"{member}#{i}".encode()), member)
            for member in self.members
            for i in range(_POINTS)
        )
        self._hashes = [point for point, _ in points]
        self._owners = [member for _, member in points]

    def owners(self, page: PageHash, copies: int = 1) -> list[str]:
        """The page's first `copies` members, or all when there are fewer."""
        at = bisect_right(self._hashes, xxhash.xxh3_64_intdigest(page))
        found: list[str] = []
        wanted = min(copies, len(self.members))
        while len(found) < wanted:
            member = self._owners[at % len(self._owners)]
            if member not in found:
                found.append(member)
            at += 1
        return found
