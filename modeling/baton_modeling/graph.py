"""The graph of module applications a family builds, and what a module says about itself.

A family file applies modules to values. Each module declares how it wants its inputs placed and
how its outputs come out; nothing here or in a family communicates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from baton_modeling.placements import REPLICATED, Layout, Resolved
from baton_modeling.weights import Weight

if TYPE_CHECKING:
    from torch import Tensor

    from baton_modeling.binding import Binding

# A bound module: called with the step and the input tensors, gives one tensor or a tuple.
Compute = Callable[..., Any]


@dataclass(frozen=True)
class Signature:
    """Layouts a module demands of its inputs and gives to its outputs."""

    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...] = (REPLICATED,)


@dataclass(frozen=True)
class Dispatch:
    """How the rows of a module's first input find the rank that works on them.

    The module's inputs are rows, weights and expert ids; it computes, per row, the weighted sum
    over the experts that the row names. axis: ranks hold equal runs of the ``experts``.
    """

    axis: str
    experts: int


class Module(ABC):
    """One application of a layer.

    name: the checkpoint's name of the layer; errors and ``explain`` use it.
    rowwise: output row t depends on input rows t only. The compiler may then run the module on
        the rows that are still needed, and each rank on its own rows.
    dispatch: of a rowwise module whose rows may be sent to the ranks that hold their experts.
    """

    name: str
    rowwise: bool = False
    dispatch: Dispatch | None = None

    @abstractmethod
    def signature(self) -> Signature:
        """The placements at this module's boundary."""

    @abstractmethod
    def features(self) -> tuple[int, ...]:
        """Elements per token of each output, whole (before any sharding)."""

    def weights(self) -> Mapping[str, Weight]:
        """Weights by the names ``bind`` knows them under."""
        return {}

    @abstractmethod
    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        """The callable for this rank, kernels chosen and weights captured."""


class Elementwise(Module):
    """A module that follows the placement of its inputs rather than fixing one."""

    rowwise = True

    @abstractmethod
    def follow(self, offered: Sequence[Resolved]) -> Resolved | None:
        """The common layout in which it can work on what is offered; None: Replicate."""


@dataclass(eq=False)
class Value:
    """A tensor of the model: what a module gives, or an input of the step."""

    name: str
    producer: Application | None
    features: int
    consumers: list[Application] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<value {self.name}>"


@dataclass(eq=False)
class Application:
    """A module applied to values."""

    module: Module
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()


class GraphError(ValueError):
    """A graph that is not well formed: wrong arity, or a value of another graph."""


class Graph:
    """Applications in the order they were made, which is a topological order."""

    def __init__(self) -> None:
        self.applications: list[Application] = []
        self.outputs: list[Value] = []
        self._values: set[Value] = set()

    def apply(self, module: Module, *inputs: Value) -> tuple[Value, ...]:
        """Apply ``module`` and return its outputs."""
        wanted = len(module.signature().inputs)
        if len(inputs) != wanted:
            raise GraphError(f"{module.name} takes {wanted} inputs, {len(inputs)} were given")
        for value in inputs:
            if value not in self._values:
                raise GraphError(f"{module.name}: input {value.name} belongs to another graph")
        application = Application(module, inputs)
        widths = module.features()
        names = (
            [module.name]
            if len(widths) == 1
            else [f"{module.name}#{i}" for i in range(len(widths))]
        )
        application.outputs = tuple(
            Value(name, application, width) for name, width in zip(names, widths, strict=True)
        )
        for value in inputs:
            value.consumers.append(application)
        self._values.update(application.outputs)
        self.applications.append(application)
        return application.outputs

    def __call__(self, module: Module, *inputs: Value) -> Value:
        """Apply a module that has one output."""
        outputs = self.apply(module, *inputs)
        if len(outputs) != 1:
            raise GraphError(f"{module.name} gives {len(outputs)} outputs; use apply()")
        return outputs[0]

    def output(self, value: Value) -> None:
        """Ask for ``value``, replicated, at the rows whose logits are wanted."""
        self.outputs.append(value)
