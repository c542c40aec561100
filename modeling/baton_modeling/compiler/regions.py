"""Compiled regions: what lies between attention, experts and collectives becomes one call each.

Those look at the step or wait for other ranks, and stay as they are. A region is a run of pure
instructions; its rows are padded to the next bucket, so that few shapes are ever compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from baton_modeling.binding import Step, Tail
from baton_modeling.compiler.emit import Instruction, Program
from baton_modeling.compiler.inductor import compiled, require_compiler


class CompiledProgram:
    """A program with its regions compiled for some numbers of rows; others run eagerly."""

    def __init__(self, program: Program) -> None:
        """ExecutionError when this machine cannot compile."""
        require_compiler()
        self.regions: list[Region] = []
        line: list[Instruction] = []
        for run in _runs(program.instructions):
            line += run if len(run) == 1 else [self._region(program, run)]
        self._program = Program(line, program.registers, program.output)

    def run(self, step: Step) -> Tensor:
        """Execute the program and return its output."""
        return self._program.run(step)

    @property
    def bytes(self) -> int:
        """Device memory held between steps."""
        return 0

    def prepare(self, rows: int, pages: int, tails: Sequence[Tail] = ()) -> None:
        """Compile for batches of up to ``rows`` rows. A step must have run before."""
        for bucket in buckets(rows):
            for region in self.regions:
                region.prepare(bucket)

    def forget(self) -> None:
        """Nothing: regions do not touch the cache."""

    def _region(self, program: Program, run: list[Instruction]) -> Instruction:
        made = {register for each in run for register in each.outputs}
        needed: list[int] = []
        written: set[int] = set()
        for each in run:
            needed += [i for i in each.inputs if i not in written and i not in needed]
            written.update(each.outputs)
        after = program.instructions[program.instructions.index(run[-1]) + 1 :]
        kept = sorted(register for register in made if _is_read(register, after, program.output))
        region = Region(run, needed, kept)
        self.regions.append(region)
        label = f"{run[0].label} .. {run[-1].label}"
        return Instruction(region, tuple(needed), tuple(kept), label)


def buckets(rows: int) -> list[int]:
    """Numbers of rows that batches of up to ``rows`` are padded to: powers of two."""
    return [1 << power for power in range((rows - 1).bit_length() + 1)]


class Region:
    """A run of pure instructions as one: eager until ``prepare``."""

    def __init__(
        self, instructions: Sequence[Instruction], inputs: Sequence[int], outputs: Sequence[int]
    ) -> None:
        self._line = [(each.run, each.inputs, each.outputs) for each in instructions]
        self._inputs, self._outputs = inputs, outputs
        self._like: tuple[Tensor, ...] | None = None  # one row of each input
        self._compiled: dict[int, Callable[..., Sequence[Tensor]]] = {}

    def __call__(self, step: Step, *inputs: Tensor) -> Any:
        rows = len(inputs[0])
        bucket = 1 << (rows - 1).bit_length() if rows else 0
        run = self._compiled.get(bucket)
        if run is None:
            if self._like is None and rows:
                self._like = tuple(torch.zeros_like(each[:1]) for each in inputs)
            outputs: Sequence[Tensor] = self._eager(*inputs)
        elif rows == bucket:
            outputs = run(*(each.contiguous() for each in inputs))
        else:
            padded = [each.new_zeros(bucket, *each.shape[1:]) for each in inputs]
            for whole, each in zip(padded, inputs, strict=True):
                whole[:rows] = each
            outputs = [each[:rows] for each in run(*padded)]
        return outputs[0] if len(self._outputs) == 1 else outputs

    def prepare(self, rows: int) -> None:
        """Compile for ``rows`` rows."""
        if self._like is None:
            raise RuntimeError("a step must run before its regions can be compiled")
        examples = [each.repeat(rows, *[1] * (each.dim() - 1)) for each in self._like]
        self._compiled[rows] = compiled(self._eager, examples)

    def _eager(self, *inputs: Tensor) -> list[Tensor]:
        registers: dict[int, Any] = dict(zip(self._inputs, inputs, strict=True))
        for run, sources, targets in self._line:
            result = run(None, *[registers[i] for i in sources])
            if len(targets) == 1:
                registers[targets[0]] = result
            else:
                registers.update(zip(targets, result, strict=True))
        return [registers[i] for i in self._outputs]


def _runs(instructions: Sequence[Instruction]) -> list[list[Instruction]]:
    """The program cut into longest runs of pure instructions and single other ones."""
    runs: list[list[Instruction]] = []
    for each in instructions:
        if runs and each.pure and runs[-1][-1].pure:
            runs[-1].append(each)
        else:
            runs.append([each])
    return runs


def _is_read(register: int, after: Sequence[Instruction], output: int) -> bool:
    """Whether a register's value is of use to the instructions that follow, or is the output."""
    for each in after:
        if register in each.inputs:
            return True
        if register in each.outputs:
            return False
    return register == output
