"""Makes an arena readable by other processes."""

import weakref

from baton.v1.kv_pb2 import ExportedMemory
from baton_transfer.agent import Agent
from baton_transfer.arena import PageArena


class Exporter:
    """The one agent of a holder that others read from. Live until close()."""

    def __init__(self, name: str, epoch: int, arena: PageArena) -> None:
        """`name` and `epoch` are the holder's: a restarted one is another agent."""
        self.arena = arena
        agent = Agent(f"{name}-{epoch:016x}", progress_thread=True)
        # Also at the interpreter's end: UCX crashes when it outlives what it uses.
        self._end = weakref.finalize(self, agent.destroy)
        agent.register(arena.address, arena.size, arena.memory_type, arena.device)
        self._exported = ExportedMemory(
            agent=agent.name,
            agent_metadata=agent.metadata(),
            memory_type=arena.memory_type.value,
            base=arena.address,
            page_bytes=arena.page_bytes,
            pages=arena.num_pages,
            device=arena.device,
        )

    @property
    def exported(self) -> ExportedMemory:
        """What a peer needs to read the arena."""
        return self._exported

    def close(self) -> None:
        """Ends the agent: reads by others fail from now on. Idempotent."""
        self._end()
