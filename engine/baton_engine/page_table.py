"""Which pages each scheduler slot owns, kept by the executor and changed by deltas only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# What a void entry holds. Never a page: a step that would write through it is refused.
VOID = -1


class PageTable:
    """int32 [slots, pages]: entry (s, i) is the page of tokens [i * page_size, ...) of slot s."""

    def __init__(self, slots: int, pages_per_slot: int) -> None:
        self._table = np.full((slots, max(1, pages_per_slot)), VOID, np.int32)

    def apply(self, resets: NDArray[np.int32], deltas: NDArray[np.int32]) -> None:
        """Void the slots in `resets` [S], then write `deltas` [D, 3] (slot, page index, page)."""
        if resets.size:
            self._reach(int(resets.max()), 0)
            self._table[resets] = VOID
        if deltas.size:
            self._reach(int(deltas[:, 0].max()), int(deltas[:, 1].max()))
            self._table[deltas[:, 0], deltas[:, 1]] = deltas[:, 2]

    def rows(self, slots: NDArray[np.int32], width: int) -> NDArray[np.int32]:
        """int32 [len(slots), width], a copy."""
        self._reach(0, width - 1)
        return self._table[slots, :width]

    def pages(self, slots: NDArray[np.int32], indices: NDArray[np.int64]) -> NDArray[np.int32]:
        """The pages at (slots[i], indices[i]). IndexError when one of them is void."""
        pages: NDArray[np.int32] = self._table[slots, indices]
        if pages.size and int(pages.min()) < 0:
            at = int(np.argmin(pages))
            raise IndexError(
                f"slot {int(slots[at])} has no page {int(indices[at])}, but the step writes to it: "
                f"the scheduler's deltas and the page table disagree"
            )
        return pages

    def holds(self, slots: NDArray[np.int32], indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether there is a page at (slots[i], indices[i])."""
        if slots.size:
            self._reach(int(slots.max()), int(indices.max()))
        held: NDArray[np.bool_] = self._table[slots, indices] != VOID
        return held

    def _reach(self, slot: int, index: int) -> None:
        slots, pages = self._table.shape
        if slot < slots and index < pages:
            return
        grown = np.full((max(slots, slot + 1), max(pages, index + 1)), VOID, np.int32)
        grown[:slots, :pages] = self._table
        self._table = grown
