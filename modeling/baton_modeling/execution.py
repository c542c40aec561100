"""How an emitted program is executed: one interface, chosen by ``Options.execution``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from baton_modeling.binding import Binding, Step, Tail
from baton_modeling.compiler.captured import CapturedProgram, CudaGraphs, PlainCalls
from baton_modeling.compiler.emit import Program
from baton_modeling.compiler.regions import CompiledProgram

Execution = Literal["eager", "compiled", "graphs"]


class Executable(Protocol):
    """A program that steps run through."""

    @property
    def bytes(self) -> int:
        """Device memory held between steps."""
        ...

    def run(self, step: Step) -> Tensor:
        """Execute one step and return its output."""
        ...

    def prepare(self, rows: int, pages: int, tails: Sequence[Tail] = ()) -> None:
        """Make ready for decoding batches of up to ``rows`` rows of ``pages`` pages each.

        Call it after a first step. tails: what may follow the output of a captured step; where
        nothing is captured, none does.
        """
        ...

    def forget(self) -> None:
        """Drop what was prepared for the cache that another one is about to replace."""
        ...


def executable(program: Program, execution: Execution, binding: Binding) -> Executable:
    """``program`` as it is to be executed; ExecutionError when that is not possible here."""
    if execution == "compiled":
        return CompiledProgram(program)
    if execution == "graphs":
        cuda = binding.device.type == "cuda"
        recorder = CudaGraphs(binding.device) if cuda else PlainCalls()
        return CapturedProgram(program, binding.page_size, recorder)
    return program
