"""The KV memory of one rank: one tensor per cache group, seen as pages of bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from baton.v1.kv_pb2 import CacheGroupIdentity
from baton_engine.groups import token_group
from baton_modeling.cache import CacheLayout
from baton_transfer import MemoryType, PageArena


class KvArena:
    """Arenas of every cache group, [pages of the group, layers, entries, entry_width] each.

    Zeroed at first: a page must not carry NaN into attention before it is written, and fresh
    zero pages cost no memory until they are touched.
    """

    def __init__(
        self, layout: CacheLayout, pages: Mapping[str, int], page_size: int, device: torch.device
    ) -> None:
        """pages: of each group, as `groups.group_pages` says."""
        self.layout = layout
        self.page_size = page_size
        self.device = device
        self.tokens = token_group(layout)
        self.num_pages = pages[self.tokens.name]
        self.tensors = layout.allocate(pages, page_size, device)

    def copy_pages(self, copies: NDArray[np.int32]) -> None:
        """Copy whole token pages; copies [C, 2]: source page, target page."""
        if not copies.size:
            return
        pairs = torch.from_numpy(copies.astype(np.int64)).to(self.device)
        tensor = self.tensors[self.tokens.name]
        tensor.index_copy_(0, pairs[:, 1], tensor.index_select(0, pairs[:, 0]))

    def exported(self) -> PageArena:
        """The memory of the token pages as the transfer sees it.

        Whether they may be leased is another question: `groups.why_not_exchanged`.
        """
        tensor = self.tensors[self.tokens.name]
        on_gpu = self.device.type == "cuda"
        return PageArena(
            tensor.data_ptr(),
            page_bytes=self.tokens.page_bytes(self.page_size),
            num_pages=self.num_pages,
            owner=tensor,
            memory_type=MemoryType.VRAM if on_gpu else MemoryType.DRAM,
            device=tensor.device.index or 0 if on_gpu else 0,
        )

    def group_identities(self) -> list[CacheGroupIdentity]:
        """What a peer must have in common to exchange pages."""
        return [
            CacheGroupIdentity(
                name=group.name,
                dtype=str(group.dtype).removeprefix("torch."),
                layers=group.layers,
                page_bytes=group.page_bytes(self.page_size),
            )
            for group in self.layout.groups
        ]


class PageChecksums:
    """xxh3-64 of sealed pages, computed when they are sealed or at the latest when leased.

    A sealed page does not change, so whoever computes its checksum first computes the same; a
    page that got new contents is forgotten before it can be leased again.
    """

    def __init__(self, arena: PageArena) -> None:
        if arena.memory_type is not MemoryType.DRAM:
            raise ValueError(
                "checksums need pages in host memory, these are on a GPU; set checksums: false"
            )
        self._arena = arena
        self._sums = np.zeros(arena.num_pages, np.uint64)
        self._known = np.zeros(arena.num_pages, np.bool_)

    def forget(self, pages: NDArray[np.int32]) -> None:
        """These pages got new contents. Called under the scheduler's lock."""
        self._known[pages] = False

    def of(self, pages: NDArray[np.int32]) -> NDArray[np.uint64]:
        """Checksums of sealed pages, computing those that are not known yet."""
        unknown = pages[~self._known[pages]]
        if unknown.size:
            self._sums[unknown] = self._arena.checksums(unknown)
            self._known[unknown] = True
        return self._sums[pages]
