"""Weights as modules declare them: which checkpoint tensors, how joined, how cut over the mesh."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from baton_modeling.mesh import Mesh
from baton_modeling.placements import Shard


@dataclass(frozen=True)
class Source:
    """One tensor of the checkpoint and the shape it must have.

    part: dimension, first index and size of what is meant, where the tensor joins several weights.
    """

    name: str
    shape: tuple[int, ...]
    part: tuple[int, int, int] | None = None

    def extent(self, dim: int) -> tuple[int, int]:
        """First index and size of what is meant along ``dim``."""
        if self.part is None or self.part[0] != dim:
            return (0, self.shape[dim])
        return self.part[1:]


class WeightError(ValueError):
    """A weight that cannot be cut as its module declares."""


@dataclass(frozen=True)
class Weight:
    """A weight of a module.

    parts: groups of sources. The sources of a group are joined along dimension ``join``, each cut
        on its own first, so that a rank's share of a joined gate and up projection is its share of
        both. With ``stacked`` the groups become a new leading dimension (experts).
    shards: by axis, the dimension of a *source* that the axis cuts.
    stack_axis: the axis that cuts the leading dimension of stacked groups (expert parallelism).
    dtype: element type after loading; None is the model's.
    otherwise: the same weight as other checkpoints store it; taken where the first is not there.
    """

    parts: tuple[tuple[Source, ...], ...]
    shards: tuple[tuple[str, Shard], ...] = ()
    stacked: bool = False
    stack_axis: str | None = None
    dtype: torch.dtype | None = None
    join: int = 0
    otherwise: Weight | None = None

    @staticmethod
    def of(
        name: str,
        *shape: int,
        shards: Mapping[str, Shard] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Weight:
        """One tensor of the checkpoint."""
        return Weight.joined([(name, shape)], shards=shards, dtype=dtype)

    @staticmethod
    def joined(
        sources: Sequence[tuple[str, tuple[int, ...]]],
        *,
        shards: Mapping[str, Shard] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Weight:
        """Several tensors one under the other.

        A name that comes more than once is one tensor, of which each takes its rows in turn.
        """
        names = [name for name, _ in sources]
        total = {name: sum(shape[0] for n, shape in sources if n == name) for name in names}
        group, used = [], dict.fromkeys(names, 0)
        for name, shape in sources:
            part = (0, used[name], shape[0]) if names.count(name) > 1 else None
            group.append(Source(name, (total[name], *shape[1:]), part))
            used[name] += shape[0]
        return Weight((tuple(group),), tuple((shards or {}).items()), dtype=dtype)

    def stored(self, names: Container[str]) -> Weight:
        """The form of this weight that a checkpoint with these tensors has."""
        if self.otherwise is None or self.parts[0][0].name in names:
            return self
        there = self.otherwise.parts[0][0].name in names
        return self.otherwise if there else self

    @property
    def names(self) -> set[str]:
        """The tensors it is read from, on whatever rank."""
        return {source.name for group in self.parts for source in group}

    def local(self, mesh: Mesh) -> list[tuple[Source, tuple[slice, ...]]]:
        """What this rank reads: each source with its slices, groups in order."""
        return [
            (source, self._slices(source, mesh))
            for group in self._local_groups(mesh)
            for source in group
        ]

    def _local_groups(self, mesh: Mesh) -> tuple[tuple[Source, ...], ...]:
        if self.stack_axis is None:
            return self.parts
        cut = even_slice(len(self.parts), self.stack_axis, mesh, self.parts[0][0].name, "count")
        return self.parts[cut]

    def _slices(self, source: Source, mesh: Mesh) -> tuple[slice, ...]:
        extents = [source.extent(dim) for dim in range(len(source.shape))]
        slices = [slice(first, first + size) for first, size in extents]
        for axis, shard in self.shards:
            first, size = extents[shard.dim]
            cut = even_slice(size, axis, mesh, source.name, f"dimension {shard.dim}")
            slices[shard.dim] = slice(first + cut.start, first + cut.stop)
        return tuple(slices)


def even_slice(size: int, axis: str, mesh: Mesh, name: str, what: str) -> slice:
    """This rank's part of ``size`` items cut over ``axis``; WeightError unless it divides."""
    ranks = mesh.axis(axis).size
    if size % ranks:
        raise WeightError(
            f"{name}: {what} is {size}, which cannot be cut evenly over the {ranks} ranks of "
            f"mesh axis {axis}; choose a size of {axis} that divides it"
        )
    step = size // ranks
    first = mesh.axis(axis).coordinate(mesh.rank) * step
    return slice(first, first + step)
