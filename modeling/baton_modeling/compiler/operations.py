"""The compiler's intermediate form: a straight line of operations over numbered slots."""

from __future__ import annotations

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

    @property
    def communicates(self) -> bool:
        return self in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER)


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
    rules: names of the rewrite rules that made or changed it.
    """

    kind: Kind
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: Module | None = None
    norm: Module | None = None
    axis: Axis | None = None
    dim: int = 0
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
