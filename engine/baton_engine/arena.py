"""The KV memory of one rank: one tensor per cache group, seen as pages of bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from numpy.typing import NDArray

from baton.v1.kv_pb2 import CacheGroupIdentity, HeadBlock
from baton_engine.groups import numbered_groups, token_group
from baton_modeling.cache import CacheLayout
from baton_transfer import MemoryType, PageArena, SealTable

# (group, sealed pages, ranks) -> each rank's checksums of them.
AskRanks = Callable[[int, NDArray[np.int32], Sequence[int]], Sequence[Future[NDArray[np.uint64]]]]


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

    def exported(self) -> list[PageArena]:
        """Every group's memory as the transfer sees it, by the group's number."""
        on_gpu = self.device.type == "cuda"
        return [
            PageArena(
                tensor.data_ptr(),
                page_bytes=group.page_bytes(self.page_size),
                num_pages=len(tensor),
                owner=tensor,
                memory_type=MemoryType.VRAM if on_gpu else MemoryType.DRAM,
                device=tensor.device.index or 0 if on_gpu else 0,
            )
            for group in numbered_groups(self.layout)
            for tensor in (self.tensors[group.name],)
        ]

    def group_identities(self) -> list[CacheGroupIdentity]:
        """What a peer must have in common to exchange pages, by the group's number."""
        return [
            CacheGroupIdentity(
                name=group.name,
                dtype=str(group.dtype).removeprefix("torch."),
                layers=group.layers,
                page_bytes=group.whole().page_bytes(self.page_size),
                blocks=[
                    HeadBlock(heads=block.heads, head_bytes=block.width * group.dtype.itemsize)
                    for block in group.blocks
                ],
            )
            for group in numbered_groups(self.layout)
        ]


class PageChecksums:
    """xxh3-64 of sealed pages, computed when they are sealed or at the latest when leased.

    A sealed page does not change, so whoever computes its checksum first computes the same; a
    page that got new contents is forgotten before it can be leased again.
    """

    def __init__(
        self,
        arenas: Sequence[PageArena],
        sources: Sequence[Sequence[int]] = (),
        ask: AskRanks | None = None,
        tables: Sequence[SealTable | None] = (),
    ) -> None:
        """Of every group, by its number: arenas, ours; sources, the ranks that others read from,
        rank 0 first (none: it alone); tables, where readers find sealed pages. ask: for the
        checksums of the others."""
        self._tables = tables
        self._groups = []
        for group, arena in enumerate(arenas):
            others = sources[group][1:] if sources else ()
            self._groups.append(_GroupChecksums(arena, group, others, ask))

    def forget(self, pages: NDArray[np.int32], group: int = 0) -> None:
        """These pages got new contents. Called under the scheduler's lock."""
        self._groups[group].forget(pages)

    def of(
        self, pages: NDArray[np.int32], group: int = 0, *, wait_s: float | None = None
    ) -> NDArray[np.uint64]:
        """Checksums of sealed pages, computing those that are not known yet: of all pages on the
        first of the ranks that others read from, then on the next.

        RanksLost, and TimeoutError when another rank does not answer within wait_s.
        """
        return self._groups[group].of(pages, wait_s)

    def tell(
        self,
        identities: NDArray[np.uint8],
        pages: NDArray[np.int32],
        checksums: NDArray[np.uint64],
        group: int,
    ) -> None:
        """Let readers find pages [n, 16] that did not change before `of` had these checksums."""
        table = self._tables[group] if self._tables else None
        if table is not None:
            table.put(identities, pages, checksums)


class _GroupChecksums:
    def __init__(
        self, arena: PageArena, group: int, others: Sequence[int], ask: AskRanks | None
    ) -> None:
        if arena.memory_type is not MemoryType.DRAM:
            raise ValueError(
                "checksums need pages in host memory, these are on a GPU; set checksums: false"
            )
        self._arena = arena
        self._group, self._others, self._ask = group, others, ask
        self._sums = np.zeros((1 + len(others), arena.num_pages), np.uint64)
        self._known = np.zeros(arena.num_pages, np.bool_)
        self._contents = np.zeros(arena.num_pages, np.uint32)  # how often they were new
        self._lock = threading.Lock()

    def forget(self, pages: NDArray[np.int32]) -> None:
        with self._lock:
            self._known[pages] = False
            self._contents[pages] += 1

    def of(self, pages: NDArray[np.int32], wait_s: float | None) -> NDArray[np.uint64]:
        with self._lock:
            unknown = pages[~self._known[pages]]
            contents = self._contents[unknown]
        if unknown.size:
            asked: Sequence[Future[NDArray[np.uint64]]] = ()
            if self._ask is not None and self._others:
                asked = self._ask(self._group, unknown, self._others)
            sums = [self._arena.checksums(unknown), *(answer.result(wait_s) for answer in asked)]
            with self._lock:
                self._sums[:, unknown] = sums
                # Of a lease that ended meanwhile, a page may be another by now.
                self._known[unknown] = contents == self._contents[unknown]
        return self._sums[:, pages].ravel()
