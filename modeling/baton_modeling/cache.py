"""What a model keeps of a request: groups of layers, and how a page of each lies in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch

from baton_kernels.stored import PACKED, packed_width


class GroupKind(Enum):
    """What a page of a group holds, and so how long it is of use."""

    FULL = "full"  # the entries of page_size tokens; all pages of a request are read
    STATE = "state"  # one recurrent state: a snapshot after some token; only the last is read


@dataclass(frozen=True)
class CacheGroup:
    """Layers that share a retention rule; their pages are allocated and moved together.

    name: key of the group's arena in ``CompiledModel.bind_cache``.
    layers: layers of the model in this group.
    entry_width: elements kept per layer on one rank, of a token or of a snapshot.
    dtype: element type of the arena.
    replicated: whether every rank holds the same bytes (MLA latents), so that any rank's copy
        may be read by any other; False when ranks hold different heads or requests.
    kind: what a page holds.
    """

    name: str
    layers: int
    entry_width: int
    dtype: torch.dtype
    replicated: bool = True
    kind: GroupKind = GroupKind.FULL

    def page_bytes(self, page_size: int) -> int:
        """Bytes of one page, all layers of the group contiguous: page_size tokens or a snapshot."""
        return self.layers * self.entries(page_size) * self.entry_width * self.dtype.itemsize

    def entries(self, page_size: int) -> int:
        """Entries of one layer in a page."""
        return 1 if self.kind is GroupKind.STATE else page_size

    def arena_shape(self, num_pages: int, page_size: int) -> tuple[int, int, int, int]:
        """Shape of the arena: [num_pages, layers, entries of a page, entry_width]."""
        return (num_pages, self.layers, self.entries(page_size), self.entry_width)


def entry_group(
    name: str, layers: int, elements: int, dtype: torch.dtype, *, replicated: bool
) -> CacheGroup:
    """A group of entries of so many elements; float8_e4m3fn stores them with their scales."""
    if dtype == torch.float8_e4m3fn:
        return CacheGroup(name, layers, packed_width(elements), PACKED, replicated)
    return CacheGroup(name, layers, elements, dtype, replicated)


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
