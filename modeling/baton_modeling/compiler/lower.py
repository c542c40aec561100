"""Lowering: a graph on a mesh becomes a straight line of operations with collectives inserted."""

from __future__ import annotations

from collections.abc import Sequence

from baton_modeling.compiler.conversion import Edge, converted, moves
from baton_modeling.compiler.costs import CostTable
from baton_modeling.compiler.operations import CompileError, Kind, Lowered, Operation, Slot
from baton_modeling.compiler.token_cuts import TokenCuts, dispatched, token_cuts
from baton_modeling.graph import Application, Elementwise, Graph, Module, Value
from baton_modeling.mesh import Axis, Mesh
from baton_modeling.placements import (
    Layout,
    Placement,
    Resolved,
    clash,
    resolve,
    split_sums,
)

SELECT_RULE = "rows selected early"


def lower(graph: Graph, mesh: Mesh, itemsize: int, costs: CostTable) -> Lowered:
    """Place every application of ``graph`` and convert every edge whose ends disagree.

    itemsize: bytes of an activation element. Raises CompileError for an impossible edge.
    """
    return _Lowering(graph, mesh, itemsize, costs).run()


def needs_selected_rows(graph: Graph) -> set[Application]:
    """Applications that may run on the wanted rows only: rowwise ones nobody else reads whole."""
    selected: set[Application] = set()
    wanted = set(graph.outputs)
    for application in reversed(graph.applications):
        if not application.module.rowwise or not application.inputs:
            continue
        used = [value for value in application.outputs if value.consumers or value in wanted]
        if used and all(consumer in selected for value in used for consumer in value.consumers):
            selected.add(application)
    return selected


class _Lowering:
    def __init__(self, graph: Graph, mesh: Mesh, itemsize: int, costs: CostTable) -> None:
        self.graph = graph
        self.mesh = mesh
        self.itemsize = itemsize
        self.costs = costs
        self.axes = mesh.products()
        self.selected = needs_selected_rows(graph)
        self.cuts = TokenCuts(mesh, itemsize, costs)
        self.result = Lowered()
        self.home: dict[Value, int] = {}
        # A conversion is made once per (slot, layout) and shared by every later consumer.
        self.made: dict[tuple[int, frozenset[tuple[Axis, Placement]]], int] = {}
        self.rows: dict[int, int] = {}

    def run(self) -> Lowered:
        for application in self.graph.applications:
            self.place(application)
        self.result.outputs = tuple(
            self.convert(self.at_rows(value, True, "the output"), {}, value, "the output")
            for value in self.graph.outputs
        )
        return self.result

    def place(self, application: Application) -> None:
        module = application.module
        selected = application in self.selected
        slots = [self.at_rows(v, selected, module.name) for v in application.inputs]
        demanded, given, rules = self.signature(application, slots)
        inputs = tuple(
            self.convert(slot, layout, value, module.name)
            for slot, layout, value in zip(slots, demanded, application.inputs, strict=True)
        )
        if self.cuts.dispatches(application, demanded[0] if demanded else {}):
            outputs = dispatched(self.result, application, inputs, given[0], self.mesh)
        else:
            outputs = tuple(
                self.result.new_slot(Slot(value.name, value.features, layout, selected))
                for value, layout in zip(application.outputs, given, strict=True)
            )
            self.emit(Operation(Kind.MODULE, inputs, outputs, module=module, rules=rules))
        self.home.update(zip(application.outputs, outputs, strict=True))

    def signature(
        self, application: Application, slots: Sequence[int]
    ) -> tuple[list[Resolved], list[Resolved], tuple[str, ...]]:
        """Layouts demanded of the inputs and given to the outputs, and the rules that fired."""
        module = application.module
        offered = [self.result.slots[slot].layout for slot in slots]
        if isinstance(module, Elementwise):
            common = module.follow(offered)
            layout = token_cuts(offered) if common is None else common
            return [layout] * len(slots), [layout] * len(application.outputs), ()
        declared = module.signature()
        kept, rules = self.cuts.kept(application, offered)
        sent = module.dispatch if self.cuts.dispatches(application, kept) else None

        def placed(layout: Layout) -> Resolved:
            given = {name: p for name, p in layout.items() if not (sent and name == sent.axis)}
            return {**kept, **self.resolved(module, given)}

        inputs = [placed(layout) for layout in declared.inputs]
        return inputs, [placed(layout) for layout in declared.outputs], rules

    def resolved(self, module: Module, layout: Layout) -> Resolved:
        axes = clash(layout, self.mesh)
        if axes is not None:
            raise CompileError(
                f"{module.name} places one tensor over mesh axes {axes[0]} and {axes[1]} in "
                f"different ways, but on this mesh they share ranks; choose their sizes so that "
                f"they do not (say, {axes[1]}=1)"
            )
        return resolve(layout, self.mesh)

    def at_rows(self, value: Value, selected: bool, consumer: str) -> int:
        """The value's slot with all rows, or with the wanted ones only."""
        slot = self.summed(self.home[value])
        given = self.result.slots[slot]
        if not selected or given.selected:
            return slot
        if slot not in self.rows:
            self.rows[slot] = self.result.new_slot(
                Slot(given.name, given.features, given.layout, True)
            )
            self.emit(
                Operation(
                    Kind.SELECT,
                    (slot,),
                    (self.rows[slot],),
                    producer=given.name,
                    consumer=consumer,
                    rules=(SELECT_RULE,),
                )
            )
        return self.summed(self.rows[slot])

    def summed(self, slot: int) -> int:
        """The slot, or its whole rows once those were made for somebody: they cost nothing now.

        Without this a residual would stay a partial sum and never meet the fused all-reduce.
        """
        whole = token_cuts([self.result.slots[slot].layout])
        return self.made.get((slot, frozenset(whole.items())), slot)

    def convert(self, slot: int, wanted: Resolved, value: Value, consumer: str) -> int:
        key = (slot, frozenset(wanted.items()))
        if key not in self.made:
            self.made[key] = self.steps(slot, wanted, value, consumer)
        return self.made[key]

    def steps(self, slot: int, wanted: Resolved, value: Value, consumer: str) -> int:
        edge = Edge(value.name, consumer, value.features, value.features * self.itemsize)
        given = self.result.slots[slot]
        layout: Resolved = split_sums(given.layout, wanted, self.axes)
        for move in moves(layout, wanted, edge, self.costs):
            layout = converted(layout, move)
            after = self.result.new_slot(Slot(given.name, given.features, layout, given.selected))
            by_group = move.dim == 0 and move.axis == self.mesh.axis("dp")
            self.emit(
                Operation(
                    move.kind,
                    (slot,),
                    (after,),
                    axis=move.axis,
                    dim=move.dim,
                    rows=("logit_rows" if given.selected else "tokens") if by_group else "",
                    producer=value.name,
                    consumer=consumer,
                )
            )
            slot = after
        return slot

    def emit(self, operation: Operation) -> None:
        self.result.operations.append(operation)
