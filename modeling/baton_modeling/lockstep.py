"""All ranks of a mesh in one process, for tests: a thread each, meeting at every collective."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from baton_modeling.mesh import Axis, Mesh

R = TypeVar("R")


@dataclass
class _Meeting:
    """Where the ranks of one group put their tensors and read the others'."""

    barrier: threading.Barrier
    slots: list[Tensor | None] = field(default_factory=list)


class Lockstep:
    """The ranks of ``mesh``. Sums are taken in rank order, so results repeat exactly."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._meetings: dict[tuple[int, ...], _Meeting] = {}
        self._lock = threading.Lock()

    def comm(self, rank: int) -> LockstepComm:
        """The communicator of one rank."""
        return LockstepComm(self, self.mesh.at(rank))

    def run(self, work: Callable[[int], R]) -> list[R]:
        """``work(rank)`` for every rank at once; the first failure is raised."""
        world = self.mesh.world_size

        def stop_others(done: Future[R]) -> None:
            if done.exception() is not None:
                self._abort()

        with ThreadPoolExecutor(world) as pool:
            futures = [pool.submit(work, rank) for rank in range(world)]
            for future in futures:
                future.add_done_callback(stop_others)
        self._meetings.clear()
        failures = [error for future in futures if (error := future.exception()) is not None]
        # A broken barrier only says that another rank failed first.
        failures.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
        if failures:
            raise failures[0]
        return [future.result() for future in futures]

    def _abort(self) -> None:
        with self._lock:
            for meeting in self._meetings.values():
                meeting.barrier.abort()

    def exchange(self, peers: Sequence[int], index: int, x: Tensor) -> list[Tensor]:
        """Give ``x`` and get a copy of everybody's, in coordinate order."""
        key = tuple(peers)
        with self._lock:
            if key not in self._meetings:
                self._meetings[key] = _Meeting(
                    threading.Barrier(len(key), timeout=30), [None] * len(key)
                )
            meeting = self._meetings[key]
        meeting.slots[index] = x
        meeting.barrier.wait()
        tensors = [tensor.clone() for tensor in meeting.slots if tensor is not None]
        meeting.barrier.wait()  # nobody leaves before everybody has copied
        return tensors


class LockstepComm:
    """One rank's view of a Lockstep."""

    def __init__(self, group: Lockstep, mesh: Mesh) -> None:
        self._group = group
        self._mesh = mesh

    @property
    def mesh(self) -> Mesh:
        return self._mesh

    def _everybody(self, x: Tensor, axis: Axis) -> list[Tensor]:
        rank = self._mesh.rank
        return self._group.exchange(axis.peers(rank), axis.coordinate(rank), x)

    def all_reduce(self, x: Tensor, axis: Axis) -> Tensor:
        total, *others = self._everybody(x, axis)
        for other in others:
            total += other
        return total

    def all_gather(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        parts = self._everybody(x, axis)
        if sizes is not None and [len(part) for part in parts] != list(sizes):
            raise ValueError(
                f"all_gather over {axis.name} was told {list(sizes)} rows a rank, they have "
                f"{[len(part) for part in parts]}"
            )
        return torch.cat(parts, dim)

    def reduce_scatter(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        total = self.all_reduce(x, axis)
        shares = [x.shape[dim] // axis.size] * axis.size if sizes is None else list(sizes)
        return torch.split(total, shares, dim)[axis.coordinate(self._mesh.rank)]

    def all_to_all(
        self, x: Tensor, axis: Axis, sends: Sequence[int], receives: Sequence[int]
    ) -> Tensor:
        me = axis.coordinate(self._mesh.rank)
        shares = self._everybody(torch.tensor(list(sends)), axis)
        parts = [
            torch.split(given, share.tolist())[me]
            for given, share in zip(self._everybody(x, axis), shares, strict=True)
        ]
        if [len(part) for part in parts] != list(receives):
            raise ValueError(f"all_to_all over {axis.name} expected {list(receives)} rows a rank")
        return torch.cat(parts)
