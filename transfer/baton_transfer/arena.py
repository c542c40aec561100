"""Memory cut into pages of one size: what one process exports and another reads into."""

import ctypes
import mmap
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import xxhash
from numpy.typing import NDArray

Pages = NDArray[np.int32]  # [n] page indices


class MemoryType(StrEnum):
    """Where an arena lives. The values are NIXL's names and travel in ExportedMemory."""

    DRAM = "DRAM"
    VRAM = "VRAM"


class PageArena:
    """`num_pages` pages of `page_bytes` bytes, contiguous from `address`.

    The arena keeps `owner` alive, whose memory it is; it copies nothing.
    """

    def __init__(
        self,
        address: int,
        *,
        page_bytes: int,
        num_pages: int,
        owner: object,
        memory_type: MemoryType = MemoryType.DRAM,
        device: int = 0,
    ) -> None:
        """`device` is the CUDA ordinal of VRAM and 0 for DRAM. Raises ValueError."""
        if address <= 0 or page_bytes <= 0 or num_pages <= 0 or device < 0:
            raise ValueError(
                f"arena: address {address}, page_bytes {page_bytes} and num_pages {num_pages} "
                f"must be positive, device {device} not negative"
            )
        self.address = address
        self.page_bytes = page_bytes
        self.num_pages = num_pages
        self.memory_type = MemoryType(memory_type)
        self.device = device
        self._owner = owner
        self._view: NDArray[np.uint8] | None = None
        if self.memory_type is MemoryType.DRAM:
            block = (ctypes.c_uint8 * self.size).from_address(address)
            self._view = np.ctypeslib.as_array(block).reshape(num_pages, page_bytes)

    @classmethod
    def allocate(cls, *, page_bytes: int, num_pages: int) -> "PageArena":
        """Anonymous zeroed memory of our own. Untouched pages cost nothing. Raises OSError."""
        block = mmap.mmap(-1, page_bytes * num_pages)
        address = np.frombuffer(block, np.uint8).ctypes.data
        return cls(address, page_bytes=page_bytes, num_pages=num_pages, owner=block)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.page_bytes * self.num_pages

    @property
    def pages(self) -> NDArray[np.uint8]:
        """uint8 [num_pages, page_bytes], writable. ValueError for VRAM."""
        if self._view is None:
            raise ValueError(f"{self.memory_type} of device {self.device} has no view on the host")
        return self._view

    def checksum(self, page: int) -> int:
        """xxh3-64 of one page. ValueError for VRAM."""
        return xxhash.xxh3_64_intdigest(self.pages[page])

    def checksums(self, pages: Sequence[int] | Pages) -> NDArray[np.uint64]:
        """xxh3-64 of each page, uint64 [n]. ValueError for VRAM."""
        digest, view = xxhash.xxh3_64_intdigest, self.pages
        return np.fromiter((digest(view[page]) for page in pages), np.uint64, len(pages))

    def whole(self, pages: Pages, checksums: NDArray[np.uint64]) -> int:
        """How many leading ones of `pages` have these xxh3-64. ValueError for VRAM."""
        digest, view = xxhash.xxh3_64_intdigest, self.pages
        for place, page in enumerate(pages.tolist()):
            if digest(view[page]) != checksums[place]:
                return place
        return len(pages)

    def check_indices(self, pages: Pages) -> None:
        """ValueError naming the first page that is not in the arena."""
        if not within(pages, self.num_pages):
            outside = pages[(pages < 0) | (pages >= self.num_pages)]
            raise ValueError(f"page {int(outside[0])} is outside the arena of {self.num_pages}")


def within(pages: Pages, count: int) -> bool:
    """Whether all are in [0, count)."""
    if len(pages) == 1:  # numpy takes ten times as long
        return 0 <= pages.item() < count
    # As unsigned numbers, negative ones are the largest.
    return int(np.maximum.reduce(pages.view(np.uint32), initial=0)) < count
