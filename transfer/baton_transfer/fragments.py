"""Who has which heads of a page, and what a rank must read of a peer cut over another number.

A page is entries one after another (a token's or a snapshot's, of one layer); an entry is blocks of
heads, of which every rank has a run. All functions here are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from baton.v1.kv_pb2 import CacheGroupIdentity


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive heads of an entry. One head: the same on every rank."""

    heads: int
    head_bytes: int

    def run(self, rank: int, ranks: int) -> tuple[int, int]:
        """First head and number of heads of a rank."""
        return rank * self.heads // ranks, max(1, self.heads // ranks)

    def first_copy(self, head: int, ranks: int) -> int:
        """The first of the ranks that have this head."""
        return head * ranks // self.heads

    def bytes_on(self, ranks: int) -> int:
        """Bytes of an entry's block on one of so many ranks."""
        return self.run(0, ranks)[1] * self.head_bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """How pages of one cache group are cut over ranks."""

    blocks: tuple[Block, ...]
    entries: int  # of a page, all layers

    @staticmethod
    def of(group: CacheGroupIdentity) -> Cut:
        """ValueError when its page is not made of its blocks."""
        blocks = tuple(Block(block.heads, block.head_bytes) for block in group.blocks)
        if not blocks:
            return Cut((Block(1, group.page_bytes),), 1)
        entry = sum(block.heads * block.head_bytes for block in blocks)
        if entry == 0 or group.page_bytes % entry:
            raise ValueError(
                f"cache group {group.name}: a page of {group.page_bytes} bytes is no number of "
                f"entries of {entry}"
            )
        return Cut(blocks, group.page_bytes // entry)

    def why_not_over(self, ranks: int) -> str:
        """Why so many ranks cannot share its heads evenly; empty when they can."""
        for block in self.blocks:
            if ranks < 1 or (block.heads % ranks and ranks % block.heads):
                return f"{block.heads} heads cannot be shared evenly by {ranks} ranks"
        return ""

    def entry_bytes(self, ranks: int) -> int:
        """Bytes of an entry on one of so many ranks."""
        return sum(block.bytes_on(ranks) for block in self.blocks)

    def page_bytes(self, ranks: int) -> int:
        """Bytes of a page on one of so many ranks."""
        return self.entries * self.entry_bytes(ranks)

    def sources(self, ranks: int) -> tuple[int, ...]:
        """The ranks that are read from: together they have everything. Never empty; the first is
        rank 0."""
        firsts = {
            block.first_copy(head, ranks) for block in self.blocks for head in range(block.heads)
        }
        return tuple(sorted(firsts))


@dataclass(frozen=True, slots=True)
class Fragment:
    """Bytes [source, source + size) of each entry there are bytes [target, ...) of it here."""

    source: int
    target: int
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank of the holder has of a page of ours."""

    rank: int
    fragments: tuple[Fragment, ...]


@lru_cache(maxsize=256)
def plan(cut: Cut, theirs: int, ours: int, rank: int) -> tuple[Part, ...]:
    """What `rank` of our ranks reads of a holder with `theirs` ranks, by rank.

    Every byte of our page is written once. ValueError when heads cannot be shared evenly.
    """
    for ranks in (theirs, ours):
        if why := cut.why_not_over(ranks):
            raise ValueError(why)
    readable = cut.sources(theirs)
    found: dict[int, list[Fragment]] = {}
    # Blocks with the fewest copies first: whoever is read for them may have the others too.
    for at in sorted(range(len(cut.blocks)), key=lambda i: -cut.blocks[i].heads):
        block, size = cut.blocks[at], cut.blocks[at].head_bytes
        first, count = block.run(rank, ours)
        target = sum(before.bytes_on(ours) for before in cut.blocks[:at])
        before_it = sum(before.bytes_on(theirs) for before in cut.blocks[:at])
        for i, head in enumerate(range(first, first + count)):
            source = _source(block, head, theirs, readable, found)
            offset = (head - block.run(source, theirs)[0]) * size
            found.setdefault(source, []).append(
                Fragment(before_it + offset, target + i * size, size)
            )
    return tuple(Part(source, _joined(found[source])) for source in sorted(found))


def is_whole(cut: Cut, parts: Sequence[Part], theirs: int, ours: int) -> bool:
    """Whether a page of one rank there is, as it lies, the page here."""
    size = cut.entry_bytes(ours)
    whole = (Fragment(0, 0, size),)
    return len(parts) == 1 and parts[0].fragments == whole and size == cut.entry_bytes(theirs)


def _source(
    block: Block, head: int, theirs: int, readable: Sequence[int], chosen: dict[int, list[Fragment]]
) -> int:
    """A rank that has the head: one that is read already, or the first."""
    first = block.first_copy(head, theirs)
    copies = range(first, first + max(1, theirs // block.heads))
    return next((rank for rank in copies if rank in chosen and rank in readable), first)


def _joined(fragments: list[Fragment]) -> tuple[Fragment, ...]:
    joined: list[Fragment] = []
    for fragment in sorted(fragments, key=lambda fragment: fragment.target):
        last = joined[-1] if joined else None
        if last is not None and (
            last.source + last.size == fragment.source
            and last.target + last.size == fragment.target
        ):
            joined[-1] = Fragment(last.source, last.target, last.size + fragment.size)
        else:
            joined.append(fragment)
    return tuple(joined)
