"""How the ranks of one worker find each other for the model's collectives."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from baton_engine.runner import RankPlace
from baton_modeling import GlooComm, tensor_parallel_mesh

_JOIN_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where rank 0 keeps the store, and which rank this is."""

    host: str
    port: int
    rank: int
    world: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Rendezvous:
        return Rendezvous(**fields)

    def at(self, rank: int) -> Rendezvous:
        """The same meeting point for another rank."""
        return Rendezvous(self.host, self.port, rank, self.world)


class RankStore:
    """Rank 0's end of the rendezvous: a TCP store on a free port."""

    def __init__(self, host: str, world: int) -> None:
        self.store = dist.TCPStore(  # type: ignore[attr-defined]
            host, 0, world, is_master=True, wait_for_workers=False, timeout=_JOIN_TIMEOUT
        )
        self.rendezvous = Rendezvous(host, self.store.port, 0, world)


def join_group(rendezvous: Rendezvous, store: Store | None = None) -> RankPlace:
    """Enter the process group; blocks until all ranks are there. Rank 0 brings its store.

    RuntimeError when this process is in one already: torch knows one world per process.
    """
    if dist.is_initialized():
        raise RuntimeError(
            "this process is already a rank of a group; one process can hold one engine with tp > 1"
        )
    if rendezvous.host.startswith("127."):
        # Without this gloo binds to whatever the host's name resolves to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if store is None:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            rendezvous.host,
            rendezvous.port,
            rendezvous.world,
            is_master=False,
            timeout=_JOIN_TIMEOUT,
        )
    dist.init_process_group(
        "gloo",
        store=store,
        rank=rendezvous.rank,
        world_size=rendezvous.world,
        timeout=_JOIN_TIMEOUT,
    )
    mesh = tensor_parallel_mesh(rendezvous.world, rendezvous.rank)
    return RankPlace(mesh, GlooComm(mesh))


def leave_group() -> None:
    """Leave the process group, so that this process can hold another engine later."""
    if dist.is_initialized():
        dist.destroy_process_group()
