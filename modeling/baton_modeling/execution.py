"""How an emitted program is executed: one interface, chosen by ``Options.execution``."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from baton_modeling.binding import Step
from baton_modeling.compiler.emit import Program
from baton_modeling.compiler.regions import CompiledProgram

Execution = Literal["eager", "compiled"]


class Executable(Protocol):
    """A program that steps run through."""

    def run(self, step: Step) -> Tensor:
        """Execute one step and return its output."""
        ...

    def prepare(self, rows: int) -> None:
        """Make ready for decoding batches of up to ``rows`` rows; call it after a first step."""
        ...


def executable(program: Program, execution: Execution) -> Executable:
    """``program`` as it is to be executed; ExecutionError when that is not possible here."""
    return CompiledProgram(program) if execution == "compiled" else program
