"""The KV memory of one rank: one tensor per cache group, seen as pages of bytes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from baton.v1.kv_pb2 import CacheGroupIdentity
from baton_modeling.cache import CacheGroup, CacheLayout
from baton_transfer import MemoryType, PageArena


class KvArena:
    """Arenas of every cache group, [num_pages, layers, page_size, entry_width] each.

    Zeroed at first: a page must not carry NaN into attention before it is written, and fresh
    zero pages cost no memory until they are touched.
    """

    def __init__(
        self, layout: CacheLayout, num_pages: int, page_size: int, device: torch.device
    ) -> None:
        self.layout = layout
        self.page_size = page_size
        self.num_pages = num_pages
        self.device = device
        self.tensors = layout.allocate(num_pages, page_size, device)

    def copy_pages(self, copies: NDArray[np.int32]) -> None:
        """Copy whole pages in every group; copies [C, 2]: source page, target page."""
        if not copies.size:
            return
        pairs = torch.from_numpy(copies.astype(np.int64)).to(self.device)
        for tensor in self.tensors.values():
            tensor.index_copy_(0, pairs[:, 1], tensor.index_select(0, pairs[:, 0]))

    @property
    def exchanged_group(self) -> CacheGroup:
        """The one group that pages are exchanged of.

        ValueError when the model has several: a reader could then be left with some of a request's
        groups and not with others, which the exchange does not guard against yet; or when ranks
        hold different bytes, since every rank reads rank 0's.
        """
        groups = self.layout.groups
        if len(groups) != 1 or not groups[0].replicated:
            raise ValueError(
                f"the model keeps cache groups {[(g.name, g.replicated) for g in groups]} (name, "
                f"same on every rank); this build exchanges pages of models with exactly one group "
                f"that is the same on every rank"
            )
        return groups[0]

    def exported(self) -> PageArena:
        """The exchanged group's memory as the transfer sees it. ValueError as above."""
        group = self.exchanged_group
        tensor = self.tensors[group.name]
        on_gpu = self.device.type == "cuda"
        return PageArena(
            tensor.data_ptr(),
            page_bytes=group.page_bytes(self.page_size),
            num_pages=self.num_pages,
            owner=tensor,
            memory_type=MemoryType.VRAM if on_gpu else MemoryType.DRAM,
            device=tensor.device.index or 0 if on_gpu else 0,
        )

    def group_identity(self) -> CacheGroupIdentity:
        """What a peer must have in common to exchange pages."""
        group = self.exchanged_group
        return CacheGroupIdentity(
            name=group.name,
            dtype=str(group.dtype).removeprefix("torch."),
            layers=group.layers,
            page_bytes=group.page_bytes(self.page_size),
        )


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
