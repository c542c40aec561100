"""Recurrent states: which snapshot a request continues from, and where it leaves its own."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

# Reading from here means starting from zeros: the request has no tokens behind it.
NO_STATE = -1


class StateRows:
    """B requests over an arena of state snapshots, described once a step and shared by every layer.

    query_starts int32 [B+1]  row r owns tokens query_starts[r]:query_starts[r+1]
    reads        int32 [B]    slot of the state before the row's first token, or NO_STATE
    writes       int32 [B]    slot that gets the state after the row's last token

    The two slots of a row may be the same. No row reads a slot that another row writes. A row
    without tokens neither reads nor writes.
    """

    def __init__(
        self, query_starts: Tensor, reads: Tensor, writes: Tensor, *, one_each: bool = False
    ) -> None:
        """one_each: every row is known to have one token, so nothing has to be looked up."""
        self.query_starts = query_starts
        self.one_each = one_each
        self.reads = reads
        self.writes = writes

    def __len__(self) -> int:
        return self.reads.shape[0]

    @cached_property
    def starts(self) -> list[int]:
        """query_starts on the host."""
        host: list[int] = self.query_starts.tolist()
        return host

    @cached_property
    def live(self) -> list[int]:
        """The rows that have tokens."""
        return [r for r in range(len(self)) if self.starts[r] < self.starts[r + 1]]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each live row."""
        return [self.starts[r + 1] - self.starts[r] for r in self.live]

    @cached_property
    def _live_rows(self) -> Tensor:
        return torch.tensor(self.live, dtype=torch.int64, device=self.reads.device)

    def _of_live(self, slots: Tensor) -> Tensor:
        return slots.long() if self.one_each else slots[self._live_rows].long()

    @cached_property
    def targets(self) -> Tensor:
        """The write slots of the live rows, int64."""
        return self._of_live(self.writes)

    @cached_property
    def _sources(self) -> tuple[Tensor, Tensor]:
        slots = self._of_live(self.reads)
        return slots.clamp(min=0), slots < 0

    def gather(self, state: Tensor) -> Tensor:
        """What the live rows continue from: a copy [live, ...] of ``state`` [slots, ...]."""
        slots, fresh = self._sources
        return state.index_select(0, slots).masked_fill_(
            fresh.view(-1, *[1] * (state.dim() - 1)), 0
        )

    def scatter(self, state: Tensor, values: Tensor) -> None:
        """Leave ``values`` [live, ...] in the live rows' write slots."""
        state.index_copy_(0, self.targets, values)
