"""What a model keeps per token, and how a page of it lies in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheGroup:
    """Layers that share a retention rule; their pages are allocated and moved together.

    name: key of the group's arena in ``CompiledModel.bind_cache``.
    layers: layers of the model in this group.
    entry_width: elements kept per token and layer on one rank.
    dtype: element type of the arena.
    replicated: whether every rank holds the same bytes (MLA latents), so that any rank's copy
        may be read by any other; False when ranks hold different heads or requests.
    """

    name: str
    layers: int
    entry_width: int
    dtype: torch.dtype
    replicated: bool = True

    def page_bytes(self, page_size: int) -> int:
        """Bytes of one page of ``page_size`` tokens: all layers of the group, contiguous."""
        return self.layers * page_size * self.entry_width * self.dtype.itemsize

    def arena_shape(self, num_pages: int, page_size: int) -> tuple[int, int, int, int]:
        """Shape of the arena: [num_pages, layers, page_size, entry_width]."""
        return (num_pages, self.layers, page_size, self.entry_width)


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
        self, num_pages: int, page_size: int, device: str | torch.device = "cpu"
    ) -> dict[str, torch.Tensor]:
        """One zeroed arena per group. The engine may instead wrap memory of its own."""
        return {
            group.name: torch.zeros(
                group.arena_shape(num_pages, page_size), dtype=group.dtype, device=device
            )
            for group in self.groups
        }
