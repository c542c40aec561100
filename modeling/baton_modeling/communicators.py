"""Communicators: how a rank exchanges tensors with its peers along a mesh axis.

Only instructions inserted by the compiler call them; model code never does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from baton_modeling.mesh import Axis, Mesh


class Communicator(Protocol):
    """Collectives along one named axis of the mesh. ``dim`` may be negative.

    A communicator owns its inputs: it may overwrite ``x`` and may return it.
    """

    @property
    def mesh(self) -> Mesh: ...

    def all_reduce(self, x: Tensor, axis: Axis) -> Tensor:
        """Sum of ``x`` over the axis, on every rank; same shape."""
        ...

    def all_gather(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        """The ranks' ``x`` concatenated along ``dim`` in coordinate order."""
        ...

    def reduce_scatter(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        """This rank's equal part along ``dim`` of the sum of ``x`` over the axis."""
        ...


class SingleComm:
    """One rank: every collective is the identity (the compiler emits none)."""

    def __init__(self, mesh: Mesh | None = None) -> None:
        self._mesh = mesh or Mesh({})
        if self._mesh.world_size != 1:
            raise ValueError(
                f"SingleComm serves one rank, the mesh has {self._mesh.world_size}; "
                "use GlooComm inside a process group"
            )

    @property
    def mesh(self) -> Mesh:
        return self._mesh

    def all_reduce(self, x: Tensor, axis: Axis) -> Tensor:
        return x

    def all_gather(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        return x

    def reduce_scatter(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        return x


class GlooComm:
    """torch.distributed processes, one per rank of the mesh.

    The caller has already run ``torch.distributed.init_process_group``; group rank i is mesh rank
    i. Every rank must construct its GlooComm at the same point: the subgroups of the axes are
    created here, once per distinct set of ranks, in an order that is the same on all of them.
    """

    def __init__(self, mesh: Mesh) -> None:
        if dist.get_world_size() != mesh.world_size or dist.get_rank() != mesh.rank:
            raise ValueError(
                f"process {dist.get_rank()} of {dist.get_world_size()} cannot be rank "
                f"{mesh.rank} of a mesh of {mesh.world_size}; start one process per rank"
            )
        self._mesh = mesh
        self._groups: dict[Axis, dist.ProcessGroup | None] = {}
        created: dict[tuple[int, ...], dist.ProcessGroup | None] = {
            tuple(range(mesh.world_size)): dist.group.WORLD
        }
        for axis in mesh.products():
            # new_group is itself collective: all ranks create all groups, in rank order.
            for rank in range(mesh.world_size):
                peers = axis.peers(rank)
                if peers not in created:
                    created[peers] = dist.new_group(list(peers))
            self._groups[axis] = created[axis.peers(mesh.rank)]

    @property
    def mesh(self) -> Mesh:
        return self._mesh

    def all_reduce(self, x: Tensor, axis: Axis) -> Tensor:
        x = x.contiguous()
        if not x.numel():  # gloo does not answer for empty tensors
            return x
        dist.all_reduce(x, group=self._groups[axis])
        return x

    def all_gather(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(axis.size)]
        if x.numel():
            dist.all_gather(parts, x, group=self._groups[axis])
        return torch.cat(parts, dim=dim)

    def reduce_scatter(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        # Gloo has no reduce_scatter of its own; the sum is taken whole and this rank's part kept.
        size = axis.size
        if x.shape[dim] % size:
            raise ValueError(
                f"reduce_scatter over {axis.name} ({size} ranks) needs dimension {dim} of "
                f"{tuple(x.shape)} to be a multiple of {size}"
            )
        total = self.all_reduce(x, axis)
        return total.chunk(size, dim=dim)[axis.coordinate(self._mesh.rank)]


@dataclass
class CountingComm:
    """Counts what passes through another communicator, for tests and ``explain``.

    Both counters are keyed by (collective, axis name); bytes are those of the input tensors.
    """

    inner: Communicator
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def mesh(self) -> Mesh:
        return self.inner.mesh

    def _count(self, collective: str, axis: Axis, x: Tensor) -> None:
        self.calls[collective, axis.name] += 1
        self.bytes[collective, axis.name] += x.numel() * x.element_size()

    def all_reduce(self, x: Tensor, axis: Axis) -> Tensor:
        self._count("all_reduce", axis, x)
        return self.inner.all_reduce(x, axis)

    def all_gather(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        self._count("all_gather", axis, x)
        return self.inner.all_gather(x, axis, dim)

    def reduce_scatter(self, x: Tensor, axis: Axis, dim: int) -> Tensor:
        self._count("reduce_scatter", axis, x)
        return self.inner.reduce_scatter(x, axis, dim)
