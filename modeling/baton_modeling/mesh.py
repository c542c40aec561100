"""The mesh: how the ranks of one worker are divided among the axes that placements name.

Ranks form several *views* at once. Attention may see four ranks as two data-parallel groups of
two (``dp=2, attn_tp=2``) while the experts of the same model see them as ``ep=4``. Every axis is
therefore a (size, stride) pair over the flat rank number: the peers of a rank along an axis are
the ranks that differ from it by multiples of the stride. Axes of different views with the same
size and stride are the same set of ranks under two names; the compiler relies on that to see that
a partial sum over ``moe_tp`` and one over ``dense_tp`` can be reduced together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

# Each view lists its axes from the outermost (largest stride) to the innermost. Views are data:
# a model that needs another axis passes its own.
DEFAULT_VIEWS: tuple[tuple[str, ...], ...] = (
    ("dp", "attn_tp"),
    ("dense_tp",),
    ("ep", "moe_tp"),
    ("vocab",),
)


class MeshError(ValueError):
    """A mesh that cannot exist: unknown axis, bad size, or views that disagree on the ranks."""


@dataclass(frozen=True)
class Axis:
    """One named axis: ``size`` ranks, ``stride`` apart.

    Two axes are equal when they are the same groups of ranks, whatever their names.
    """

    name: str = field(compare=False)
    size: int
    stride: int

    def coordinate(self, rank: int) -> int:
        """Where ``rank`` stands along this axis, 0 <= coordinate < size."""
        return rank // self.stride % self.size

    def peers(self, rank: int) -> tuple[int, ...]:
        """The ranks of this rank's group along the axis, itself included, in coordinate order."""
        first = rank - self.coordinate(rank) * self.stride
        return tuple(first + i * self.stride for i in range(self.size))


@dataclass(frozen=True)
class Mesh:
    """The axes of one worker as seen by ``rank``.

    axes: size of each axis by name; an axis of the views that is not named has size 1.
    rank: this process, 0 <= rank < world_size.
    """

    axes: Mapping[str, int]
    rank: int = 0
    views: tuple[tuple[str, ...], ...] = DEFAULT_VIEWS

    def __post_init__(self) -> None:
        known = [name for view in self.views for name in view]
        for name, size in self.axes.items():
            if name not in known:
                raise MeshError(f"mesh axis {name!r} is unknown; the axes are {', '.join(known)}")
            if size < 1:
                raise MeshError(f"mesh axis {name!r} has size {size}; it must be at least 1")
        for view in self.views:
            ranks = math.prod(self.axes.get(name, 1) for name in view)
            if self.world_size % ranks:
                raise MeshError(
                    f"mesh axes {' x '.join(view)} make {ranks} ranks, which does not divide "
                    f"the {self.world_size} ranks of the largest view"
                )
        if not 0 <= self.rank < self.world_size:
            raise MeshError(
                f"rank {self.rank} is outside the mesh of {self.world_size} ranks "
                f"({', '.join(f'{n}={s}' for n, s in self.axes.items())})"
            )

    @cached_property
    def world_size(self) -> int:
        """Number of ranks: those of the largest view."""
        return max(math.prod(self.axes.get(name, 1) for name in view) for view in self.views)

    @cached_property
    def _table(self) -> dict[str, Axis]:
        table: dict[str, Axis] = {}
        for view in self.views:
            stride = 1
            for name in reversed(view):
                size = self.axes.get(name, 1)
                table[name] = Axis(name, size, stride)
                stride *= size
        return table

    def axis(self, name: str) -> Axis:
        """The axis called ``name``; MeshError names the known ones if there is none."""
        if name not in self._table:
            raise MeshError(f"mesh axis {name!r} is unknown; the axes are {', '.join(self._table)}")
        return self._table[name]

    def products(self) -> list[Axis]:
        """Every run of neighbouring axes of a view with more than one rank, as one axis each.

        These are all the groups a collective may ever run over: the compiler joins partial sums
        over ``ep`` and ``moe_tp`` into one over ``ep*moe_tp``.
        """
        found: dict[Axis, None] = {}
        for view in self.views:
            used = [self.axis(name) for name in view if self.axis(name).size > 1]
            for first in range(len(used)):
                for last in range(first, len(used)):
                    run = used[first : last + 1]
                    size = math.prod(axis.size for axis in run)
                    name = "*".join(axis.name for axis in run)
                    found.setdefault(Axis(name, size, run[-1].stride))
        return list(found)

    def at(self, rank: int) -> Mesh:
        """The same mesh seen by another rank."""
        return Mesh(self.axes, rank, self.views)


def tensor_parallel_mesh(size: int, rank: int = 0) -> Mesh:
    """Every sharded axis of size ``size``: plain tensor parallelism, experts cut inside."""
    return Mesh({"attn_tp": size, "dense_tp": size, "moe_tp": size, "vocab": size}, rank)


def parse_mesh(text: str) -> Mesh:
    """``"attn_tp=4,ep=4"`` as a mesh seen by rank 0; MeshError on other forms."""
    axes = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, size = item.partition("=")
        if not size.strip().isdigit():
            raise MeshError(f"mesh axis {item!r} is not of the form axis=ranks")
        if name.strip() in axes:
            raise MeshError(f"mesh axis {name.strip()!r} is given twice")
        axes[name.strip()] = int(size)
    return Mesh(axes)
