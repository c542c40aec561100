"""Tokens that are cut over an axis: who can work on them so, and how experts get at theirs.

With data-parallel attention each group of ranks has its own tokens. A rowwise module needs no
others and follows the cut, unless its own weights lie over the same ranks. Experts that do are
given either everybody's tokens (all-gather, then a reduce-scatter of the partial sums) or the rows
that chose them (dispatch and combine), whatever the cost table says is cheaper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from baton_modeling.compiler.costs import CostTable
from baton_modeling.compiler.operations import Kind, Lowered, Operation, Slot
from baton_modeling.graph import Application, Elementwise, Module
from baton_modeling.mesh import Axis, Mesh
from baton_modeling.placements import Placement, Resolved, Shard, overlap

GATHERED_RULE = "computed after the gather"
DISPATCH_RULE = "rows sent to their experts"
COUNT_BYTES = 8


def token_cuts(layouts: Iterable[Resolved]) -> dict[Axis, Placement]:
    """The axes over which any of the layouts cuts tokens."""
    cuts: dict[Axis, Placement] = {}
    for layout in layouts:
        for axis, placement in layout.items():
            if placement == Shard(0) and not (axis not in cuts and any_overlap(axis, cuts)):
                cuts[axis] = placement
    return cuts


def any_overlap(axis: Axis, others: Iterable[Axis]) -> bool:
    """Whether ``axis`` shares ranks with any of the others."""
    return any(overlap(axis, other) for other in others)


class TokenCuts:
    """What the lowering asks about applications whose inputs' tokens are cut."""

    def __init__(self, mesh: Mesh, itemsize: int, costs: CostTable) -> None:
        self.mesh = mesh
        self.itemsize = itemsize
        self.costs = costs

    def kept(
        self, application: Application, offered: Sequence[Resolved]
    ) -> tuple[Mapping[Axis, Placement], tuple[str, ...]]:
        """The cuts of the inputs that the application keeps, and the rules that said so."""
        cuts = {a: p for a, p in token_cuts(offered).items() if self.follows(application, a)}
        after = {axis for axis in cuts if self.is_gathered_anyway(application, axis)}
        kept = {axis: placement for axis, placement in cuts.items() if axis not in after}
        return kept, (GATHERED_RULE,) if after else ()

    def follows(self, application: Application, axis: Axis) -> bool:
        """Whether the application can work on tokens cut over ``axis``."""
        module = application.module
        if isinstance(module, Elementwise) or self.dispatches(application, {axis: Shard(0)}):
            return True
        return module.rowwise and not any_overlap(axis, self._own_axes(module))

    def is_gathered_anyway(self, application: Application, axis: Axis) -> bool:
        """Whether all readers need whole outputs, and the inputs will be made whole for them.

        Then a gather of the outputs is saved by computing them from whole inputs (a router's).
        """
        readers = [each for value in application.outputs for each in value.consumers]
        if not readers or any(self.follows(each, axis) for each in readers):
            return False
        if not all(each.module.rowwise for each in readers):
            return False
        read = {value for each in readers for value in each.inputs}
        return all(value in read for value in application.inputs)

    def dispatches(self, application: Application, cut: Mapping[Axis, Placement]) -> bool:
        """Whether rows cut so are sent to their experts rather than gathered."""
        routing = application.module.dispatch
        if routing is None or list(cut) != [self.mesh.axis(routing.axis)]:
            return False
        ranks = self.mesh.axis(routing.axis).size
        rows, _, chosen = application.inputs
        whole = rows.features * self.itemsize * self.costs.tokens
        cost = self.costs.microseconds
        gathered = cost("all_gather", whole, ranks) + cost("reduce_scatter", whole, ranks)
        sent = 2 * cost("all_to_all", whole * chosen.features // ranks, ranks)
        sent += cost("all_gather", ranks * routing.experts * COUNT_BYTES, ranks)
        return sent < gathered

    def _own_axes(self, module: Module) -> list[Axis]:
        """Axes over which the module's operands or weights lie."""
        declared = module.signature()
        names = {name for layout in (*declared.inputs, *declared.outputs) for name in layout}
        for weight in module.weights().values():
            names |= {name for name, _ in weight.shards}
            names |= {weight.stack_axis} if weight.stack_axis else set()
        return [axis for axis in map(self.mesh.axis, names) if axis.size > 1]


def dispatched(
    lowered: Lowered,
    application: Application,
    inputs: tuple[int, ...],
    given: Resolved,
    mesh: Mesh,
) -> tuple[int, ...]:
    """Emit dispatch, the module on the rows that arrive, and combine; the output's slot."""
    module, routing = application.module, application.module.dispatch
    if routing is None:
        raise ValueError(f"{module.name} has no experts to send rows to")
    axis = mesh.axis(routing.axis)
    rows, weights, chosen = inputs
    source = lowered.slots[rows]
    apart = {axis: Shard(0)}

    def slot(what: str, features: int, layout: Resolved) -> int:
        return lowered.new_slot(Slot(f"{module.name}.{what}", features, layout, source.selected))

    def emit(kind: Kind, given: tuple[int, ...], made: tuple[int, ...]) -> None:
        operation = Operation(kind, given, made, axis=axis, experts=routing.experts)
        operation.producer, operation.consumer = source.name, module.name
        operation.rules = (DISPATCH_RULE,)
        lowered.operations.append(operation)

    counts = slot("counts", routing.experts, {})
    emit(Kind.COUNT, (chosen,), (counts,))
    arrived = tuple(
        slot(what, features, apart)
        for what, features in (
            ("rows", source.features * lowered.slots[chosen].features),
            ("ones", 1),
            ("experts", 1),
            ("route", 0),
        )
    )
    emit(Kind.DISPATCH, (rows, chosen, counts), arrived)
    done = slot("done", lowered.slots[arrived[0]].features, {**given, **apart})
    lowered.operations.append(
        Operation(Kind.MODULE, arrived[:3], (done,), module=module, rules=(DISPATCH_RULE,))
    )
    out = lowered.new_slot(
        Slot(application.outputs[0].name, application.outputs[0].features, given, source.selected)
    )
    emit(Kind.COMBINE, (done, weights, arrived[3]), (out,))
    return (out,)
