"""Rows of a paged cache: which pages hold which tokens of which request, for one step."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


class PagedRows:
    """B requests over a paged cache, described once a step and shared by every layer.

    query_starts   int32 [B+1]  row r owns query tokens query_starts[r]:query_starts[r+1]
    context_tokens int32 [B]    tokens of the row in the cache, this step's included
    page_tables    int32 [B, P] pages in order; entries past the last used one are never read

    The last query token of a row stands at position context_tokens - 1; query i of n sees the
    first ``context - n + i + 1`` tokens. Derived values are computed on first use.
    """

    def __init__(
        self, query_starts: Tensor, context_tokens: Tensor, page_tables: Tensor, page_size: int
    ) -> None:
        self.query_starts = query_starts
        self.context_tokens = context_tokens
        self.page_tables = page_tables
        self.page_size = page_size

    def __len__(self) -> int:
        return self.context_tokens.shape[0]

    @cached_property
    def contexts(self) -> list[int]:
        """context_tokens on the host."""
        host: list[int] = self.context_tokens.tolist()
        return host

    @cached_property
    def starts(self) -> list[int]:
        """query_starts on the host."""
        host: list[int] = self.query_starts.tolist()
        return host

    @cached_property
    def page_counts(self) -> list[int]:
        """Pages in use per row."""
        return [-(-context // self.page_size) for context in self.contexts]

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Where each row's tokens begin and end in a copy of `flat_pages`, counted in tokens."""
        sizes = [pages * self.page_size for pages in self.page_counts]
        firsts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        return [(first, first + n) for first, n in zip(firsts, self.contexts, strict=True)]

    def row_pages(self, row: int) -> Tensor:
        """The used pages of a row, int32 [n]."""
        return self.page_tables[row, : self.page_counts[row]]

    @cached_property
    def flat_pages(self) -> Tensor:
        """The used pages of every row, one row after another: int32 [sum of page_counts]."""
        counts = torch.tensor(self.page_counts, device=self.page_tables.device)
        columns = torch.arange(self.page_tables.shape[1], device=counts.device)
        return self.page_tables[columns[None, :] < counts[:, None]]
