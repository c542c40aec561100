"""The program as people and tests read it: edges, collectives, bytes, rules, totals."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from baton_modeling.compiler.costs import wire_bytes
from baton_modeling.compiler.operations import Kind, Lowered, Operation
from baton_modeling.mesh import Mesh
from baton_modeling.placements import describe


@dataclass(frozen=True)
class Line:
    """One operation.

    inputs, outputs: placements. collective and axis are empty for a local operation.
    bytes_per_row: size of one row of what enters the collective on one rank; rows are tokens, or
    the rows whose logits are wanted (``per`` says which). wire_bytes_per_row: sent by each rank.
    """

    label: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    collective: str
    axis: str
    ranks: int
    bytes_per_row: int
    wire_bytes_per_row: float
    per: str
    edge: str
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """A compiled program, line by line. ``str()`` is the text, ``json()`` the same for programs."""

    mesh: dict[str, int]
    lines: tuple[Line, ...]

    def collectives(self) -> Counter[tuple[str, str]]:
        """How often each (collective, axis) runs in a step."""
        return Counter((line.collective, line.axis) for line in self.lines if line.collective)

    def bytes(self, tokens: int, logit_rows: int) -> Counter[tuple[str, str]]:
        """Bytes entering each (collective, axis) on one rank in a step of that size."""
        total: Counter[tuple[str, str]] = Counter()
        for line in self.lines:
            if line.collective:
                rows = tokens if line.per == "token" else logit_rows
                total[line.collective, line.axis] += rows * line.bytes_per_row
        return total

    def json(self) -> str:
        """The lines and totals as a JSON object."""
        return json.dumps(
            {
                "mesh": self.mesh,
                "lines": [asdict(line) for line in self.lines],
                "collectives": [
                    {"collective": name, "axis": axis, "count": count}
                    for (name, axis), count in self.collectives().items()
                ],
            },
            indent=1,
        )

    def __str__(self) -> str:
        return "\n".join([*self._rows(), "", *self._totals()])

    def _rows(self) -> Iterator[str]:
        yield f"mesh: {', '.join(f'{n}={s}' for n, s in self.mesh.items()) or 'one rank'}"
        width = max(len(line.label) for line in self.lines)
        for line in self.lines:
            text = (
                f"{line.label:{width}}  {' '.join(line.inputs) or '-'} -> {' '.join(line.outputs)}"
            )
            if line.collective:
                text += (
                    f"   {line.collective} over {line.axis} ({line.ranks} ranks), "
                    f"{line.bytes_per_row} B/{line.per}"
                )
            if line.rules:
                text += f"   [{'; '.join(line.rules)}]"
            yield text.rstrip()

    def _totals(self) -> Iterator[str]:
        talks = [line for line in self.lines if line.collective]
        layers = Counter(filter(None, (_layer(line) for line in talks)))
        for layer, count in layers.items():
            rows = {line.per for line in talks if _layer(line) == layer}
            sent = sum(line.wire_bytes_per_row for line in talks if _layer(line) == layer)
            per = " and ".join(sorted(rows))
            yield f"{layer}: {count} collectives, {sent:.0f} bytes sent by each rank per {per}"
        yield f"{len(self.lines)} operations, {len(talks)} collectives a step"
        for per in ("token", "logit row"):
            sent = sum(line.wire_bytes_per_row for line in talks if line.per == per)
            if sent:
                yield f"{sent:.0f} bytes sent by each rank per {per}"


def _layer(line: Line) -> str:
    """The layer whose output a collective carries, "" outside the layers."""
    found = re.search(r"layers\.\d+", line.edge.partition(" -> ")[0])
    return found.group() if found else ""


def explain(lowered: Lowered, mesh: Mesh, itemsize: int) -> Explanation:
    """Describe a lowered program whose activations have ``itemsize`` bytes an element."""
    axes = {name: size for name, size in mesh.axes.items() if size > 1}
    lines = tuple(_line(lowered, operation, itemsize) for operation in lowered.operations)
    return Explanation(axes, lines)


def _line(lowered: Lowered, operation: Operation, itemsize: int) -> Line:
    slots = lowered.slots
    fused = operation.kind is Kind.ADD_NORM and operation.axis is not None
    talks = operation.kind.communicates or fused
    collective = "all_reduce" if fused else operation.kind.value if talks else ""
    axis, ranks, whole = "", 1, 0
    if talks and operation.axis is not None:
        axis, ranks = operation.axis.name, operation.axis.size
        # Logits are float32 whatever the model's type.
        source = slots[operation.inputs[0]]
        size = 4 if source.name == "lm_head" else itemsize
        whole = source.features * size
    local = whole // ranks if collective == "all_gather" else whole
    rows = slots[(operation.outputs or operation.inputs)[0]]
    return Line(
        label=operation.label,
        kind=operation.kind.value,
        inputs=tuple(describe(slots[slot].layout) for slot in operation.inputs),
        outputs=tuple(describe(slots[slot].layout) for slot in operation.outputs),
        collective=collective,
        axis=axis,
        ranks=ranks,
        bytes_per_row=local,
        wire_bytes_per_row=wire_bytes(collective, whole, ranks) if talks else 0.0,
        per="logit row" if rows.selected else "token",
        edge=f"{operation.producer} -> {operation.consumer}" if talks else "",
        rules=operation.rules,
    )
