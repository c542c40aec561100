"""Makes arenas readable by other processes."""

import weakref
from collections.abc import Sequence

from baton.v1.kv_pb2 import ExportedMemory, ExportedRank
from baton_transfer.agent import Agent
from baton_transfer.arena import PageArena
from baton_transfer.seals import SealTable


class Exporter:
    """The one agent of a rank that others read from. Live until close()."""

    def __init__(
        self,
        name: str,
        epoch: int,
        arenas: Sequence[PageArena],
        rank: int = 0,
        tables: Sequence[SealTable | None] = (),
    ) -> None:
        """`arenas`: of every cache group, in order; `tables`: of their sealed pages, if any.
        `name` and `epoch` are the holder's: a restarted one is another agent, and so is each of
        its ranks."""
        self.arenas = tuple(arenas)
        agent = Agent(f"{name}-{epoch:016x}-r{rank}", progress_thread=True)
        # Also at the interpreter's end: UCX crashes when it outlives what it uses.
        self._end = weakref.finalize(self, agent.destroy)
        for arena in self.arenas:
            agent.register(arena.address, arena.size, arena.memory_type, arena.device)
        metadata = agent.metadata()
        self._exported = ExportedRank(
            groups=[
                ExportedMemory(
                    agent=agent.name,
                    agent_metadata=metadata,
                    memory_type=arena.memory_type.value,
                    base=arena.address,
                    page_bytes=arena.page_bytes,
                    pages=arena.num_pages,
                    device=arena.device,
                )
                for arena in self.arenas
            ]
        )
        for group, table in zip(self._exported.groups, tables, strict=False):
            if table is not None:
                group.seals.CopyFrom(table.exported)

    @property
    def exported(self) -> ExportedRank:
        """What a peer needs to read the arenas."""
        return self._exported

    def close(self) -> None:
        """Ends the agent: reads by others fail from now on. Idempotent."""
        self._end()
