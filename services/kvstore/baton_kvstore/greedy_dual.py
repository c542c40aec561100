"""The order in which keys are evicted: least worth first, and what is not used ages.

Greedy-Dual-Size-Frequency (Cherkasova, HP Labs technical report HPL-98-69R1, 1998): a key's rank
is its worth plus the rank of the last victim, so that old worth fades without a clock. Pure;
O(log n) a touch.
"""

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class GreedyDual(Generic[Key]):
    """Keys by rank. `touch` adds a key or ranks it anew."""

    def __init__(self) -> None:
        self._entries: dict[Key, tuple[float, int]] = {}  # rank, and which touch gave it
        self._heap: list[tuple[float, int, Key]] = []  # touches that a later one replaced, too
        self._touches = 0
        self._age = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def touch(self, key: Key, worth: float) -> None:
        """The key is used now, and is worth this (>= 0). Among equals the oldest touch is first."""
        self._touches += 1
        entry = (self._age + worth, self._touches)
        self._entries[key] = entry
        heapq.heappush(self._heap, (*entry, key))
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [(*entry, key) for key, entry in self._entries.items()]
            heapq.heapify(self._heap)

    def discard(self, key: Key) -> None:
        """The key is not to be evicted any more."""
        self._entries.pop(key, None)

    def pop(self, evictable: Callable[[Key], bool]) -> Key | None:
        """Removes and returns the evictable key of lowest rank; None when there is none."""
        passed: list[tuple[float, int, Key]] = []
        victim: Key | None = None
        while self._heap:
            rank, touch, key = heapq.heappop(self._heap)
            if self._entries.get(key) != (rank, touch):
                continue
            if evictable(key):
                del self._entries[key]
                self._age = max(self._age, rank)
                victim = key
                break
            passed.append((rank, touch, key))
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return victim
