"""From the layout a producer gives to the one a consumer demands: which steps, at what cost."""

from __future__ import annotations

from dataclasses import dataclass

from baton_modeling.compiler.costs import CostTable
from baton_modeling.compiler.operations import CompileError, Kind
from baton_modeling.mesh import Axis
from baton_modeling.placements import Partial, Replicate, Resolved, Shard


@dataclass(frozen=True)
class Edge:
    """A producer's output on its way to a consumer, for error messages and costs."""

    producer: str
    consumer: str
    features: int
    bytes_per_row: int


@dataclass(frozen=True)
class Move:
    """One step of a conversion along one axis; ``dim`` is what is cut or joined."""

    kind: Kind
    axis: Axis
    dim: int = 0


def moves(given: Resolved, wanted: Resolved, edge: Edge, costs: CostTable) -> list[Move]:
    """The cheapest steps from ``given`` to ``wanted``. CompileError if there are none.

    ``given`` comes from split_sums, so that a sum over several axes can be reduced one by one.
    """
    reductions: list[Move] = []
    gathers: list[Move] = []
    for axis, placement in given.items():
        target = wanted.get(axis, Replicate())
        if target == placement:
            continue
        if isinstance(target, Partial):
            raise _illegal(edge, axis, str(placement), "a partial sum")
        if isinstance(placement, Partial):
            reductions += _reduce(axis, target, edge, costs)
        elif isinstance(placement, Shard):
            gathers.append(Move(Kind.ALL_GATHER, axis, placement.dim))
    # Inner axes first: what an outer axis joins must already be whole inside it.
    gathers.sort(key=lambda move: move.axis.stride)
    # What is scattered first leaves less to be summed along the other axes.
    reductions.sort(key=lambda move: move.kind is not Kind.REDUCE_SCATTER)
    slices = []
    for axis, target in wanted.items():
        if given.get(axis) == target:
            continue
        if isinstance(target, Partial):
            raise _illegal(edge, axis, "a whole tensor", "a partial sum")
        if isinstance(target, Shard) and not isinstance(given.get(axis), Partial):
            slices.append(Move(Kind.SLICE, axis, target.dim))
    slices.sort(key=lambda move: -move.axis.stride)
    for move in slices:
        _check_even(edge, move)
    return reductions + gathers + slices


def _reduce(axis: Axis, target: Replicate | Shard, edge: Edge, costs: CostTable) -> list[Move]:
    if isinstance(target, Shard):
        move = Move(Kind.REDUCE_SCATTER, axis, target.dim)
        _check_even(edge, move)
        return [move]
    whole = edge.bytes_per_row * costs.tokens
    direct = costs.microseconds("all_reduce", whole, axis.size)
    split = costs.microseconds("reduce_scatter", whole, axis.size)
    split += costs.microseconds("all_gather", whole, axis.size)
    if split < direct and edge.features % axis.size == 0:
        return [Move(Kind.REDUCE_SCATTER, axis, 1), Move(Kind.ALL_GATHER, axis, 1)]
    return [Move(Kind.ALL_REDUCE, axis)]


def _check_even(edge: Edge, move: Move) -> None:
    if move.dim == 1 and edge.features % move.axis.size:
        raise CompileError(
            f"{edge.consumer} wants the output of {edge.producer} cut over mesh axis "
            f"{move.axis.name}, but its {edge.features} features do not divide over "
            f"{move.axis.size} ranks"
        )


def _illegal(edge: Edge, axis: Axis, given: str, wanted: str) -> CompileError:
    return CompileError(
        f"{edge.producer} gives {given} over mesh axis {axis.name}, but {edge.consumer} demands "
        f"{wanted} there; no collective makes one of the other. Change the declared placement of "
        "one of the two modules"
    )


def converted(given: Resolved, move: Move) -> dict[Axis, Partial | Shard | Replicate]:
    """The layout after one move."""
    layout = {axis: placement for axis, placement in given.items() if axis != move.axis}
    if move.kind in (Kind.REDUCE_SCATTER, Kind.SLICE):
        layout[move.axis] = Shard(move.dim)
    return layout
