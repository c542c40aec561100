"""Debugging: pages that nobody holds are overwritten, so that a stale read changes tokens."""

import logging
from collections.abc import Sequence

import numpy as np

from baton_scheduler import Scheduler
from baton_transfer import PageArena
from baton_transfer.arena import Pages

log = logging.getLogger(__name__)

# Finite in every dtype (12.1 in float32 and bfloat16), and unlike any latent: attention to it
# gives other tokens, not NaN, which would be noticed anyway.
PATTERN = 0x41


class FreePagePoison:
    """Fills pages when they have become free. Costs a walk of the pool each step."""

    def __init__(self, arenas: Sequence[PageArena]) -> None:
        """arenas: of every cache group, by its number."""
        log.warning("debug_poison_free_pages is on: free pages are overwritten at every step")
        self._arenas = arenas
        self._poisoned = [np.zeros(arena.num_pages, np.bool_) for arena in arenas]

    def fill_free(self, scheduler: Scheduler) -> None:
        """Before a plan can give them away. Under the scheduler's lock."""
        for group, arena in enumerate(self._arenas):
            free = np.zeros(arena.num_pages, np.bool_)
            free[scheduler.free_pages(group)] = True
            arena.pages[np.flatnonzero(free & ~self._poisoned[group])] = PATTERN
            self._poisoned[group] = free

    def fill_targets(self, group: int, pages: Pages) -> None:
        """Before they are fetched: evicted for it a moment ago, they were never seen free."""
        self._arenas[group].pages[pages] = PATTERN
