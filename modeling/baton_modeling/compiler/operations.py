"""The compiler's intermediate form: a straight line of operations over numbered slots."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from baton_modeling.graph import Module
from baton_modeling.mesh import Axis
from baton_modeling.placements import Resolved


class CompileError(ValueError):
    """A graph that cannot be placed on the mesh; names both modules and the axis."""


class Kind(Enum):
    """What an operation does."""

    MODULE = "module"
    SELECT = "select"  # keep the rows whose logits are wanted
    SLICE = "slice"  # this rank's part of a replicated tensor, no communication
    ALL_REDUCE = "all_reduce"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_GATHER = "all_gather"
    ADD_NORM = "add_norm"  # fused residual addition and norm, after an all-reduce or none
    COUNT = "count"  # every rank learns how many rows go to each expert
    DISPATCH = "dispatch"  # rows go to the ranks that hold their experts
    COMBINE = "combine"  # and come back, weighted and summed

    @property
    def collective(self) -> str:
        """The collective it always runs, "" for none."""
        return _COLLECTIVES.get(self, "")


_COLLECTIVES = {
    Kind.ALL_REDUCE: "all_reduce",
    Kind.REDUCE_SCATTER: "reduce_scatter",
    Kind.ALL_GATHER: "all_gather",
    Kind.COUNT: "all_gather",
    Kind.DISPATCH: "all_to_all",
    Kind.COMBINE: "all_to_all",
}


def layer_of(name: str) -> str:
    """The part ``layers.N`` of a module's name, "" outside the layers."""
    found = re.search(r"layers\.\d+", name)
    return found.group() if found else ""


@dataclass(frozen=True)
class Slot:
    """A tensor between operations.

    features: elements per row of the whole tensor, whatever its layout.
    selected: whether its rows are only those whose logits are wanted.
    """

    name: str
    features: int
    layout: Resolved
    selected: bool


@dataclass
class Operation:
    """One instruction before it is bound.

    producer, consumer: names of the modules whose edge a conversion serves.
    axis, dim: of a conversion; axis also of the all-reduce inside ADD_NORM, None without one.
    rows: what says how the ranks of the axis share dimension 0: "tokens" or "logit_rows" of the
        data-parallel groups; "" when the shares are equal.
    experts: of COUNT and DISPATCH, how many there are over all ranks.
    branch: runs beside the main line, on a stream of its own where the device has streams.
    rules: names of the rewrite rules that made or changed it.
    """

    kind: Kind
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: Module | None = None
    norm: Module | None = None
    axis: Axis | None = None
    dim: int = 0
    rows: str = ""
    experts: int = 0
    branch: bool = False
    producer: str = ""
    consumer: str = ""
    rules: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        if self.module is not None:
            return self.module.name
        if self.kind is Kind.ADD_NORM and self.norm is not None:
            return self.norm.name
        return f"{self.kind.value} {self.producer} -> {self.consumer}"


@dataclass
class Lowered:
    """A whole program before it is bound."""

    operations: list[Operation] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    outputs: tuple[int, ...] = ()

    def new_slot(self, slot: Slot) -> int:
        self.slots.append(slot)
        return len(self.slots) - 1
