"""Placements: how a tensor lies over one mesh axis, and how one becomes another.

Activations at module boundaries are [tokens, features]: ``Shard(0)`` cuts tokens, ``Shard(1)``
features. A layout gives a placement per axis; an axis it does not name is Replicate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baton_modeling.mesh import Axis, Mesh


@dataclass(frozen=True)
class Replicate:
    """Every rank of the axis holds the whole tensor."""

    def __str__(self) -> str:
        return "R"


@dataclass(frozen=True)
class Shard:
    """Each rank holds an equal part along ``dim``, in coordinate order."""

    dim: int

    def __str__(self) -> str:
        return f"S({self.dim})"


@dataclass(frozen=True)
class Partial:
    """Each rank holds a summand; the tensor is their sum."""

    def __str__(self) -> str:
        return "P"


Placement = Replicate | Shard | Partial
Layout = Mapping[str, Placement]
# A layout on a given mesh: no Replicate entries, no axes of one rank, aliases unified.
Resolved = Mapping[Axis, Placement]

REPLICATED: Layout = {}


def resolve(layout: Layout, mesh: Mesh) -> dict[Axis, Placement]:
    """``layout`` on ``mesh``. Neighbouring axes of partial sums become one axis."""
    placed: dict[Axis, Placement] = {
        mesh.axis(name): placement
        for name, placement in layout.items()
        if mesh.axis(name).size > 1 and not isinstance(placement, Replicate)
    }
    partial = [axis for axis, placement in placed.items() if isinstance(placement, Partial)]
    for joined in sorted(mesh.products(), key=lambda axis: -axis.size):
        parts = [axis for axis in partial if axis != joined and _contains(joined, axis)]
        size = 1
        for axis in parts:
            size *= axis.size
        if len(parts) > 1 and size == joined.size:
            for axis in parts:
                del placed[axis]
            name = "*".join(axis.name for axis in sorted(parts, key=lambda each: -each.stride))
            placed[Axis(name, joined.size, joined.stride)] = Partial()
            partial = [axis for axis in partial if axis not in parts]
    return placed


def _contains(outer: Axis, inner: Axis) -> bool:
    return inner.stride >= outer.stride and (inner.stride * inner.size <= outer.stride * outer.size)


def describe(layout: Resolved) -> str:
    """``attn_tp:P`` and the like; ``R`` when replicated everywhere."""
    return ",".join(f"{axis.name}:{placement}" for axis, placement in layout.items()) or "R"
