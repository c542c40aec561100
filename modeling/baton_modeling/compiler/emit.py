"""Emission: bind every operation and give it registers. The result runs without any lookup."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton_modeling.binding import Binding, Step, Tail
from baton_modeling.communicators import Communicator
from baton_modeling.compiler.branches import Aside, CudaAside
from baton_modeling.compiler.operations import Kind, Lowered, Operation
from baton_modeling.compiler.routing import ROUTING_KINDS, bind_routing
from baton_modeling.graph import Module
from baton_modeling.layers.norm import RMSNorm
from baton_modeling.mesh import Axis

LoadWeights = Callable[[Module], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Instruction:
    """A bound operation: ``registers[outputs] = run(step, *registers[inputs])``.

    pure: each row of its outputs is a function of that row of its inputs. It reads neither the
        step nor values on the host, and it does not communicate.
    counts: it exchanges as many rows as ranks learn from each other in the step.
    """

    run: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    label: str
    pure: bool = False
    counts: bool = False


class Program:
    """Instructions over a few registers; a register is reused once its tensor was last read."""

    def __init__(self, instructions: list[Instruction], registers: int, output: int) -> None:
        self.instructions = instructions
        self.registers = registers
        self.output = output
        self._line = [(i.run, i.inputs, i.outputs) for i in instructions]

    def run(self, step: Step) -> Tensor:
        """Execute the program and return its output."""
        registers: list[Any] = [None] * self.registers
        for run, inputs, outputs in self._line:
            result = run(step, *[registers[i] for i in inputs])
            if len(outputs) == 1:
                registers[outputs[0]] = result
            else:
                for register, tensor in zip(outputs, result, strict=True):
                    registers[register] = tensor
        output: Tensor = registers[self.output]
        return output

    @property
    def bytes(self) -> int:
        """Device memory held between steps."""
        return 0

    def prepare(self, rows: int, pages: int, tails: Sequence[Tail] = ()) -> None:
        """Nothing: a program runs batches of any size as they come."""

    def forget(self) -> None:
        """Nothing: a program finds its cache in every step."""


def emit(
    lowered: Lowered,
    binding: Binding,
    comm: Communicator,
    load: LoadWeights,
    check: Callable[[Operation, Callable[..., Any]], Callable[..., Any]] | None = None,
    place: Aside | None = None,
) -> Program:
    """Bind ``lowered`` for this rank.

    check: may wrap what runs (the debug mode does). place: where branches run; by default on a
    second stream of a CUDA device, and elsewhere in line.
    """
    if place is None and binding.device.type == "cuda":
        place = CudaAside(binding.device)
    from_aside = {slot for op in lowered.operations if op.branch for slot in op.outputs}
    allocation = _Registers(lowered)
    kept = {op.outputs[0] for op in lowered.operations if op.kind is Kind.SELECT}
    kept |= {slot for op in lowered.operations if op.branch for slot in op.inputs}
    instructions = []
    for index, operation in enumerate(lowered.operations):
        # A communicator may write into what it is given. That is fine for a tensor nobody reads
        # again; a selection may be the very tensor it selected from, and a branch may still read.
        read_again = operation.inputs and allocation.last[operation.inputs[0]] > index
        owned = not read_again and not kept.intersection(operation.inputs[:1])
        binding.reads_host = False
        run = _bind(operation, binding, comm if owned else _Copying(comm), load)
        pure = _is_pure(operation) and not binding.reads_host and check is None and place is None
        if check is not None:
            run = check(operation, run)
        if place is not None:
            run = _placed(operation, run, from_aside, place)
        inputs, outputs = allocation.step(index, operation)
        counts = operation.kind in ROUTING_KINDS
        instructions.append(Instruction(run, inputs, outputs, operation.label, pure, counts))
    return Program(instructions, allocation.count, allocation.at[lowered.outputs[0]])


def _is_pure(operation: Operation) -> bool:
    if operation.kind is Kind.ADD_NORM:
        return operation.axis is None
    return operation.module is not None and operation.module.rowwise


def _placed(
    operation: Operation, run: Callable[..., Any], from_aside: set[int], place: Aside
) -> Callable[..., Any]:
    if operation.branch:
        return lambda step, *inputs: place.run(run, step, inputs)
    awaited = [i for i, slot in enumerate(operation.inputs) if slot in from_aside]
    if not awaited:
        return run

    def after_branch(step: Step, *inputs: Any) -> Any:
        place.join(tuple(inputs[i] for i in awaited))
        return run(step, *inputs)

    return after_branch


class _Copying:
    """A communicator that leaves its inputs alone."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.mesh = comm.mesh

    def all_reduce(self, x: Tensor, axis: Axis) -> Tensor:
        return self.comm.all_reduce(x.clone(), axis)

    def all_gather(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        return self.comm.all_gather(x, axis, dim, sizes)

    def reduce_scatter(
        self, x: Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None = None
    ) -> Tensor:
        return self.comm.reduce_scatter(x.clone(), axis, dim, sizes)

    def all_to_all(
        self, x: Tensor, axis: Axis, sends: Sequence[int], receives: Sequence[int]
    ) -> Tensor:
        return self.comm.all_to_all(x, axis, sends, receives)


class _Registers:
    """Linear-scan allocation: the last reader of a slot frees its register."""

    def __init__(self, lowered: Lowered) -> None:
        self.last: dict[int, int] = {}
        for index, operation in enumerate(lowered.operations):
            for slot in (*operation.inputs, *operation.outputs):
                self.last[slot] = index
        for slot in lowered.outputs:
            self.last[slot] = len(lowered.operations)
        self.at: dict[int, int] = {}
        self.free: list[int] = []
        self.count = 0

    def step(self, index: int, operation: Operation) -> tuple[tuple[int, ...], tuple[int, ...]]:
        inputs = tuple(self.at[slot] for slot in operation.inputs)
        for slot in set(operation.inputs):
            if self.last[slot] == index:
                self.free.append(self.at[slot])
        outputs = tuple(self._take(slot) for slot in operation.outputs)
        for slot in operation.outputs:  # an output that nobody reads
            if self.last[slot] == index:
                self.free.append(self.at[slot])
        return inputs, outputs

    def _take(self, slot: int) -> int:
        if not self.free:
            self.free.append(self.count)
            self.count += 1
        self.at[slot] = self.free.pop()
        return self.at[slot]


def _bind(
    operation: Operation, binding: Binding, comm: Communicator, load: LoadWeights
) -> Callable[..., Any]:
    if operation.module is not None:
        return operation.module.bind(binding, load(operation.module))
    if operation.kind is Kind.ADD_NORM:
        return _bind_add_norm(operation, binding, comm, load)
    if operation.kind is Kind.SELECT:
        return _select
    axis, dim, rows = operation.axis, operation.dim, operation.rows
    if axis is None:
        raise ValueError(f"{operation.label} has no mesh axis")
    if operation.kind in ROUTING_KINDS:
        return bind_routing(operation, axis, binding, comm)
    if operation.kind is Kind.ALL_REDUCE:
        return lambda step, x: comm.all_reduce(x, axis)
    if operation.kind is Kind.SLICE:
        return _bind_slice(axis, dim, rows, binding)
    convert = comm.reduce_scatter if operation.kind is Kind.REDUCE_SCATTER else comm.all_gather
    if rows:
        return lambda step, x: convert(x, axis, dim, step.group_rows(rows))
    return lambda step, x: convert(x, axis, dim)


def _bind_add_norm(
    operation: Operation, binding: Binding, comm: Communicator, load: LoadWeights
) -> Callable[..., Any]:
    norm = operation.norm
    if not isinstance(norm, RMSNorm):
        raise TypeError(f"{operation.label} cannot be fused with an addition")
    fused, axis = norm.bind_with_add(binding, load(norm)), operation.axis
    if axis is None:
        return fused
    return lambda step, x, residual: fused(step, comm.all_reduce(x, axis), residual)


def _select(step: Step, x: Tensor) -> Tensor:
    return x if step.selects_all else x.index_select(0, step.batch.logit_rows)


def _bind_slice(axis: Axis, dim: int, rows: str, binding: Binding) -> Callable[..., Any]:
    coordinate = axis.coordinate(binding.mesh.rank)
    if rows:
        return lambda step, x: x.split(step.group_rows(rows))[coordinate]

    def cut(step: Step, x: Tensor) -> Tensor:
        if x.shape[dim] % axis.size:
            raise ValueError(
                f"dimension {dim} of {tuple(x.shape)} cannot be cut over the {axis.size} ranks "
                f"of mesh axis {axis.name}"
            )
        return torch.chunk(x, axis.size, dim)[coordinate]

    return cut
