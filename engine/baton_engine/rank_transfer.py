"""One rank's side of the transfer: what others read of it, and what it reads of them."""

from __future__ import annotations

from baton_engine.arena import KvArena
from baton_transfer import CacheReader, Cut, Exporter, SealTable


class RankTransfer:
    """Exporter and reader over a rank's arenas. `configure_ucx` must have run before."""

    def __init__(
        self, name: str, epoch: int, arena: KvArena, rank: int, ranks: int, *, lists: bool = False
    ) -> None:
        """`name`, `epoch`: the worker's, which has so many ranks. `lists`: readers find sealed
        pages in tables, where they read of one rank alone."""
        arenas, groups = arena.exported(), arena.group_identities()
        self.tables = [
            SealTable(pages.num_pages) if lists and len(Cut.of(group).sources(ranks)) == 1 else None
            for pages, group in zip(arenas, groups, strict=True)
        ]
        self.exporter = Exporter(name, epoch, arenas, rank, self.tables)
        self.reader = CacheReader(
            f"{name}-{epoch:x}-r{rank}", groups, arenas, rank=rank, ranks=ranks
        )

    def close(self) -> None:
        """End reads by us and of us."""
        self.reader.close()
        self.exporter.close()
        for table in self.tables:
            if table is not None:
                table.close()
