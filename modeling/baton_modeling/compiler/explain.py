"""The program as people and tests read it: edges, collectives, bytes, rules, totals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from baton_modeling.compiler.costs import wire_bytes
from baton_modeling.compiler.operations import Kind, Lowered, Operation, layer_of
from baton_modeling.compiler.token_cuts import COUNT_BYTES
from baton_modeling.mesh import Axis, Mesh
from baton_modeling.placements import Shard, describe


@dataclass(frozen=True)
class Line:
    """One operation.

    inputs, outputs: placements. collective and axis are empty for a local operation.
    bytes_per_row: size of one row of what enters the collective on one rank.
    wire_bytes_per_row: sent by each rank (an even spread assumed where routing decides).
    per: what a row is: "token" or "logit row" (one whose logits are wanted) of the whole step,
    "own token" or "own logit row" of this rank's data-parallel group, or the "step" itself.
    layer: the layer whose output the collective carries, "" outside the layers.
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
    layer: str
    rules: tuple[str, ...]


@dataclass
class Totals:
    """What a layer or a step costs: collectives run, bytes each rank sends per kind of row."""

    collectives: int = 0
    bytes_sent_per: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """A compiled program, line by line. ``str()`` is the text, ``json()`` the same for programs."""

    mesh: dict[str, int]
    lines: tuple[Line, ...]

    def collectives(self) -> Counter[tuple[str, str]]:
        """How often each (collective, axis) runs in a step."""
        return Counter((line.collective, line.axis) for line in self.lines if line.collective)

    def bytes(
        self, tokens: int, logit_rows: int, own: tuple[int, int] | None = None
    ) -> Counter[tuple[str, str]]:
        """Bytes entering each (collective, axis) on one rank in a step of that size.

        own: tokens and logit rows of the rank's data-parallel group; None where there is none.
        """
        own_tokens, own_rows = (tokens, logit_rows) if own is None else own
        rows = {
            "token": tokens,
            "logit row": logit_rows,
            "own token": own_tokens,
            "own logit row": own_rows,
            "step": 1,
        }
        total: Counter[tuple[str, str]] = Counter()
        for line in self.lines:
            if line.collective:
                total[line.collective, line.axis] += rows[line.per] * line.bytes_per_row
        return total

    def totals(self) -> dict[str, Totals]:
        """Collectives and bytes sent by layer, and under "step" of the whole step."""
        talks = [line for line in self.lines if line.collective]
        found = {layer: Totals() for line in talks if (layer := line.layer)}
        found["step"] = Totals()
        for line in talks:
            for total in filter(None, (found.get(line.layer), found["step"])):
                total.collectives += 1
                sent = total.bytes_sent_per.get(line.per, 0.0) + line.wire_bytes_per_row
                total.bytes_sent_per[line.per] = sent
        return found

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
                "totals": {name: asdict(total) for name, total in self.totals().items()},
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
        yield f"{len(self.lines)} operations"
        for name, total in self.totals().items():
            sent = ", ".join(f"{size:.0f} per {per}" for per, size in total.bytes_sent_per.items())
            tail = f"; bytes sent by each rank: {sent}" if sent else ""
            yield f"{name}: {total.collectives} collectives{tail}"


def explain(lowered: Lowered, mesh: Mesh, itemsize: int) -> Explanation:
    """Describe a lowered program whose activations have ``itemsize`` bytes an element."""
    axes = {name: size for name, size in mesh.axes.items() if size > 1}
    own = mesh.axis("dp")
    lines = tuple(_line(lowered, operation, itemsize, own) for operation in lowered.operations)
    return Explanation(axes, lines)


def _line(lowered: Lowered, operation: Operation, itemsize: int, own: Axis) -> Line:
    slots = lowered.slots
    fused = operation.kind is Kind.ADD_NORM and operation.axis is not None
    collective = "all_reduce" if fused else operation.kind.collective
    axis, ranks, entering, sent, per = "", 1, 0, 0.0, ""
    if collective and operation.axis is not None:
        axis, ranks = operation.axis.name, operation.axis.size
        source = slots[operation.inputs[0]]
        # Logits are float32 whatever the model's type.
        whole = source.features * (4 if source.name == "lm_head" else itemsize)
        joins_features = collective == "all_gather" and operation.dim == 1
        entering = whole // ranks if joins_features else whole
        sent = wire_bytes(collective, whole, ranks)
        per = "logit row" if source.selected else "token"
        if source.layout.get(own) == Shard(0) and own.size > 1:
            per = f"own {per}"
        if operation.kind is Kind.COUNT:
            entering, per = operation.experts * COUNT_BYTES, "step"
            sent = wire_bytes(collective, entering * ranks, ranks)
        elif operation.kind is Kind.DISPATCH:
            entering *= slots[operation.inputs[1]].features
            sent = wire_bytes(collective, entering, ranks)
        elif operation.kind is Kind.ALL_GATHER and operation.dim == 0:
            sent *= ranks  # a row goes round the whole ring
    return Line(
        label=operation.label,
        kind=operation.kind.value,
        inputs=tuple(describe(slots[slot].layout) for slot in operation.inputs),
        outputs=tuple(describe(slots[slot].layout) for slot in operation.outputs),
        collective=collective,
        axis=axis,
        ranks=ranks,
        bytes_per_row=entering,
        wire_bytes_per_row=sent,
        per=per,
        edge=f"{operation.producer} -> {operation.consumer}" if collective else "",
        layer=layer_of(operation.producer) if collective else "",
        rules=operation.rules,
    )
