"""Placements: how a tensor lies over one mesh axis, and how one becomes another.

Activations at module boundaries are [tokens, features]: ``Shard(0)`` cuts tokens, ``Shard(1)``
features. A layout gives a placement per axis; an axis it does not name is Replicate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# What belongs to the requests of one data-parallel group: all tokens where there is none.
OWN_TOKENS: Layout = {"dp": Shard(0)}


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


def overlap(left: Axis, right: Axis) -> bool:
    """Whether two ranks can be peers along both axes."""
    return len(set(left.peers(0)) & set(right.peers(0))) > 1


def clash(layout: Layout, mesh: Mesh) -> tuple[str, str] | None:
    """Two axes of ``layout`` that share ranks and place the tensor differently, if there are any.

    The same ranks cannot hold, say, different tokens and summands of the same tokens.
    """
    placed = [
        (name, mesh.axis(name), placement)
        for name, placement in layout.items()
        if mesh.axis(name).size > 1 and not isinstance(placement, Replicate)
    ]
    for index, (name, axis, placement) in enumerate(placed):
        for other, its_axis, its_placement in placed[:index]:
            if overlap(axis, its_axis) and (axis, placement) != (its_axis, its_placement):
                return other, name
    return None


def split_sums(layout: Resolved, wanted: Resolved, axes: Sequence[Axis]) -> dict[Axis, Placement]:
    """``layout`` with a partial sum over a joined axis taken apart where ``wanted`` cuts a part.

    A sum over four ranks that is wanted cut over two of them is one sum over those two and one
    over the others: the first can then be a reduce-scatter. axes: those that may be communicated
    over; a sum whose parts are not among them stays joined.
    """
    result: dict[Axis, Placement] = {}
    for axis, placement in layout.items():
        inner = next((a for a in wanted if a != axis and _contains(axis, a)), None)
        parts = _parts(axis, inner, axes) if inner and isinstance(placement, Partial) else None
        result.update(dict.fromkeys(parts or [axis], placement))
    return result


def _parts(axis: Axis, inner: Axis, axes: Sequence[Axis]) -> list[Axis] | None:
    end = inner.stride * inner.size
    sizes = [
        (inner.size, inner.stride),
        (axis.stride * axis.size // end, end),
        (inner.stride // axis.stride, axis.stride),
    ]
    known = {(each.size, each.stride): each for each in axes}
    wanted = [size for size in sizes if size[0] > 1]
    return [known[size] for size in wanted] if all(size in known for size in wanted) else None


def describe(layout: Resolved) -> str:
    """``attn_tp:P`` and the like; ``R`` when replicated everywhere."""
    return ",".join(f"{axis.name}:{placement}" for axis, placement in layout.items()) or "R"
