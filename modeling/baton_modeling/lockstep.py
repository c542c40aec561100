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

    def all_gather(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        return torch.cat(self._everybody(x, axis), dim)

    def reduce_scatter(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        total = self.all_reduce(x, axis)
        return total.chunk(axis.size, dim)[axis.coordinate(self._mesh.rank)]
