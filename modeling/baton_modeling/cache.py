"""What a model keeps of a request: groups of layers, and how a page of each lies in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch

from baton_kernels.stored import PACKED, packed_width


class GroupKind(Enum):
    """What a page of a group holds, and so how long it is of use."""

    FULL = "full"  # the entries of page_size tokens; all pages of a request are read
    STATE = "state"  # one recurrent state: a snapshot after some token; only the last is read


@dataclass(frozen=True)
class HeadBlock:
    """Consecutive heads of an entry: what ranks divide among themselves.

    Each rank of n has an equal run of them. Where there are fewer heads than ranks, neighbours
    have copies of one; a block of one head is the same on every rank.
    """

    heads: int
    width: int  # elements of a head

    def local(self, ranks: int) -> int:
        """Elements on one rank."""
        return max(1, self.heads // ranks) * self.width


@dataclass(frozen=True)
class CacheGroup:
    """Layers that share a retention rule; their pages are allocated and moved together.

    name: key of the group's arena in ``CompiledModel.bind_cache``.
    layers: layers of the model in this group.
    blocks: what is kept per layer of a token or of a snapshot, of the whole model, in order.
    dtype: element type of the arena.
    ranks: how many share the heads; each has its part of every block, one after another.
    kind: what a page holds.
    """

    name: str
    layers: int
    blocks: tuple[HeadBlock, ...]
    dtype: torch.dtype
    ranks: int = 1
    kind: GroupKind = GroupKind.FULL

    @property
    def entry_width(self) -> int:
        """Elements kept per layer on one rank, of a token or of a snapshot."""
        return sum(block.local(self.ranks) for block in self.blocks)

    def page_bytes(self, page_size: int) -> int:
        """Bytes of one page, all layers of the group contiguous: page_size tokens or a snapshot."""
        return self.layers * self.entries(page_size) * self.entry_width * self.dtype.itemsize

    def whole(self) -> CacheGroup:
        """The group as one rank alone would have it."""
        return replace(self, ranks=1)

    def entries(self, page_size: int) -> int:
        """Entries of one layer in a page."""
        return 1 if self.kind is GroupKind.STATE else page_size

    def arena_shape(self, num_pages: int, page_size: int) -> tuple[int, int, int, int]:
        """Shape of the arena: [num_pages, layers, entries of a page, entry_width]."""
        return (num_pages, self.layers, self.entries(page_size), self.entry_width)


def entry_group(
    name: str, layers: int, blocks: tuple[HeadBlock, ...], ranks: int, dtype: torch.dtype
) -> CacheGroup:
    """A group of entries of these blocks; float8_e4m3fn stores them with their scales.

    A scale is of all that one rank has of a block, so that float8 entries are one block of as many
    heads as there are ranks: they fit ranks of the same number only.
    """
    if dtype != torch.float8_e4m3fn:
        return CacheGroup(name, layers, blocks, dtype, ranks)
    packed = packed_width(sum(block.local(ranks) for block in blocks))
    shared = all(block.heads == 1 for block in blocks)
    return CacheGroup(name, layers, (HeadBlock(1 if shared else ranks, packed),), PACKED, ranks)


@dataclass(frozen=True)
class CacheLayout:
    """All cache groups of a model."""

    groups: tuple[CacheGroup, ...]

    def group(self, name: str) -> CacheGroup:
        """The group called ``name``; KeyError names the existing ones."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"no cache group {name!r}; the groups are {[g.name for g in self.groups]}")

    def page_bytes(self, page_size: int) -> int:
        """Bytes of one page over all groups."""
        return sum(group.page_bytes(page_size) for group in self.groups)

    def allocate(
        self,
        num_pages: int | Mapping[str, int],
        page_size: int,
        device: str | torch.device = "cpu",
    ) -> dict[str, torch.Tensor]:
        """One zeroed arena per group, of the same or each its own number of pages.

        The engine may instead wrap memory of its own.
        """
        return {
            group.name: torch.zeros(
                group.arena_shape(
                    num_pages if isinstance(num_pages, int) else num_pages[group.name], page_size
                ),
                dtype=group.dtype,
                device=device,
            )
            for group in self.groups
        }
