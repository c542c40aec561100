"""One rank's side of the transfer: what others read of it, and what it reads of them."""

from __future__ import annotations

from baton_engine.arena import KvArena
from baton_transfer import CacheReader, Exporter


class RankTransfer:
    """Exporter and reader over a rank's arenas. `configure_ucx` must have run before."""

    def __init__(self, name: str, epoch: int, arena: KvArena, rank: int, ranks: int) -> None:
        """`name`, `epoch`: the worker's, which has so many ranks."""
        arenas = arena.exported()
        self.exporter = Exporter(name, epoch, arenas, rank)
        self.reader = CacheReader(
            f"{name}-{epoch:x}-r{rank}", arena.group_identities(), arenas, rank=rank, ranks=ranks
        )

    def close(self) -> None:
        """End reads by us and of us."""
        self.reader.close()
        self.exporter.close()
