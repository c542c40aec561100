"""Communicators: how a rank exchanges tensors with its peers along a mesh axis.

Only instructions inserted by the compiler call them; model code never does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from baton_modeling.mesh import Axis, Mesh


class Communicator(Protocol):
    """Collectives along one named axis of the mesh. ``dim`` may be negative.

    sizes: how the ranks share dimension 0, in coordinate order; None for equal shares. It is the
    same on all of them. A communicator owns its inputs: it may overwrite ``x`` and may return it.
    """

    @property
    def mesh(self) -> Mesh: ...

    def all_reduce(self, x: Tensor, axis: Axis) -> Tensor:
        """Sum of ``x`` over the axis, on every rank; same shape."""
        ...

    def all_gather(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        """The ranks' ``x`` concatenated along ``dim`` in coordinate order."""
        ...

    def reduce_scatter(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        """This rank's part along ``dim`` of the sum of ``x`` over the axis."""
        ...

    def all_to_all(
        self, x: Tensor, axis: Axis, sends: Sequence[int], receives: Sequence[int]
    ) -> Tensor:
        """Give each rank its rows and get one's own: ``x`` holds sends[i] rows for coordinate i.

        The result holds receives[i] rows of coordinate i, in coordinate order.
        """
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

    def all_gather(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        return x

    def reduce_scatter(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        return x

    def all_to_all(
        self, x: Tensor, axis: Axis, sends: Sequence[int], receives: Sequence[int]
    ) -> Tensor:
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

    def all_gather(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        longest = x.shape[0] if sizes is None else max(sizes)
        # The backends gather equal shapes, so shorter shares travel with rows nobody reads.
        given = x.contiguous() if len(x) == longest else _lengthened(x, longest)
        parts = [torch.empty_like(given) for _ in range(axis.size)]
        if given.numel():
            dist.all_gather(parts, given, group=self._groups[axis])
        if sizes is not None:
            parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        return torch.cat(parts, dim=dim)

    def reduce_scatter(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        # Gloo has no reduce_scatter of its own; the sum is taken whole and this rank's part kept.
        if sizes is None and x.shape[dim] % axis.size:
            raise ValueError(
                f"reduce_scatter over {axis.name} ({axis.size} ranks) needs dimension {dim} of "
                f"{tuple(x.shape)} to be a multiple of {axis.size}"
            )
        shares = [x.shape[dim] // axis.size] * axis.size if sizes is None else list(sizes)
        total = self.all_reduce(x, axis)
        return torch.split(total, shares, dim)[axis.coordinate(self._mesh.rank)]

    def all_to_all(
        self, x: Tensor, axis: Axis, sends: Sequence[int], receives: Sequence[int]
    ) -> Tensor:
        out = x.new_empty(sum(receives), *x.shape[1:])
        dist.all_to_all_single(
            out, x.contiguous(), list(receives), list(sends), group=self._groups[axis]
        )
        return out


def _lengthened(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


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

    def all_gather(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        self._count("all_gather", axis, x)
        return self.inner.all_gather(x, axis, dim, sizes)

    def reduce_scatter(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        self._count("reduce_scatter", axis, x)
        return self.inner.reduce_scatter(x, axis, dim, sizes)

    def all_to_all(
        self, x: Tensor, axis: Axis, sends: Sequence[int], receives: Sequence[int]
    ) -> Tensor:
        self._count("all_to_all", axis, x)
        return self.inner.all_to_all(x, axis, sends, receives)
