"""Lowering: a graph on a mesh becomes a straight line of operations with collectives inserted."""

from __future__ import annotations

from collections.abc import Sequence

from baton_modeling.compiler.conversion import Edge, converted, moves
from baton_modeling.compiler.costs import CostTable
from baton_modeling.compiler.operations import Kind, Lowered, Operation, Slot
from baton_modeling.graph import Application, Elementwise, Graph, Value
from baton_modeling.mesh import Axis, Mesh
from baton_modeling.placements import Placement, Resolved, resolve

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
        self.selected = needs_selected_rows(graph)
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
        demanded, given = self.signature(application, slots)
        inputs = tuple(
            self.convert(slot, layout, value, module.name)
            for slot, layout, value in zip(slots, demanded, application.inputs, strict=True)
        )
        outputs = []
        for value, layout in zip(application.outputs, given, strict=True):
            slot = self.result.new_slot(Slot(value.name, value.features, layout, selected))
            self.home[value] = slot
            outputs.append(slot)
        self.emit(Operation(Kind.MODULE, inputs, tuple(outputs), module=module))

    def signature(
        self, application: Application, slots: Sequence[int]
    ) -> tuple[list[Resolved], list[Resolved]]:
        module = application.module
        if isinstance(module, Elementwise):
            common = module.follow([self.result.slots[slot].layout for slot in slots])
            layout: Resolved = common if common is not None else {}
            return [layout] * len(slots), [layout] * len(application.outputs)
        declared = module.signature()
        return (
            [resolve(layout, self.mesh) for layout in declared.inputs],
            [resolve(layout, self.mesh) for layout in declared.outputs],
        )

    def at_rows(self, value: Value, selected: bool, consumer: str) -> int:
        """The value's slot with all rows, or with the wanted ones only."""
        slot = self.replica(self.home[value])
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
        return self.replica(self.rows[slot])

    def replica(self, slot: int) -> int:
        """The slot, or its replicated form once that was made for somebody: it costs nothing now.

        Without this a residual would stay a partial sum and never meet the fused all-reduce.
        """
        return self.made.get((slot, frozenset()), slot)

    def convert(self, slot: int, wanted: Resolved, value: Value, consumer: str) -> int:
        key = (slot, frozenset(wanted.items()))
        if key not in self.made:
            self.made[key] = self.steps(slot, wanted, value, consumer)
        return self.made[key]

    def steps(self, slot: int, wanted: Resolved, value: Value, consumer: str) -> int:
        edge = Edge(value.name, consumer, value.features, value.features * self.itemsize)
        for move in moves(self.result.slots[slot].layout, wanted, edge, self.costs):
            given = self.result.slots[slot]
            after = self.result.new_slot(
                Slot(given.name, given.features, converted(given.layout, move), given.selected)
            )
            self.emit(
                Operation(
                    move.kind,
                    (slot,),
                    (after,),
                    axis=move.axis,
                    dim=move.dim,
                    producer=value.name,
                    consumer=consumer,
                )
            )
            slot = after
        return slot

    def emit(self, operation: Operation) -> None:
        self.result.operations.append(operation)
