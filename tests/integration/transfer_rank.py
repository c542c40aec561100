"""A process that exports what one rank has of some pages: `python transfer_rank.py JSON`.

Prints its ExportedRank in hex; ends when its stdin does. Page i lies at slot pages - 1 - i.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import CacheGroupIdentity, HeadBlock
from baton_transfer import Exporter, PageArena, Transport, configure_ucx, new_epoch

# Keys and values of four heads, and a state: two blocks of two heads, two of four.
BLOCKS = {
    "full": [(4, 1024), (4, 1024)],
    "state": [(2, 768), (2, 768), (4, 768), (4, 4096)],
}
ENTRIES = {"full": 32, "state": 3}


def group_identity(name: str) -> CacheGroupIdentity:
    entry = sum(heads * size for heads, size in BLOCKS[name])
    return CacheGroupIdentity(
        name=name,
        dtype="uint8",
        layers=1,
        page_bytes=ENTRIES[name] * entry,
        blocks=[HeadBlock(heads=heads, head_bytes=size) for heads, size in BLOCKS[name]],
    )


@cache
def rank_page(name: str, page: int, rank: int, ranks: int) -> NDArray[np.uint8]:
    """What a rank has of a page: its run of every block of every entry."""
    random = np.random.default_rng([page, len(name)])
    parts = []
    for heads, size in BLOCKS[name]:
        block = random.integers(0, 256, (ENTRIES[name], heads, size), np.uint8)
        if heads < ranks:
            block = np.repeat(block, ranks // heads, axis=1)
        parts.append(np.array_split(block, ranks, axis=1)[rank].reshape(ENTRIES[name], -1))
    return np.concatenate(parts, axis=1).ravel()


def filled(name: str, pages: Sequence[int], rank: int, ranks: int) -> PageArena:
    """An arena with these pages."""
    contents = [rank_page(name, page, rank, ranks) for page in pages]
    arena = PageArena.allocate(page_bytes=len(contents[0]), num_pages=len(contents))
    arena.pages[:] = contents
    return arena


def main() -> None:
    given = json.loads(sys.argv[1])
    configure_ucx(Transport(given["transport"]))
    pages, rank, ranks = given["pages"], given["rank"], given["ranks"]
    arenas = [filled(name, range(pages)[::-1], rank, ranks) for name in BLOCKS]
    for page in given["corrupt"]:
        arenas[0].pages[pages - 1 - page, -1] ^= 1
    exporter = Exporter("ranks", new_epoch(), arenas, rank)
    print(exporter.exported.SerializeToString().hex(), flush=True)
    sys.stdin.read()
    exporter.close()


if __name__ == "__main__":
    main()
