"""Independent branches: found in the program, and run on a stream of their own.

A sum of two values that do not depend on each other (routed experts and the shared one) ends two
branches. The shorter one that communicates nothing runs beside the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from baton_modeling.binding import Step
from baton_modeling.compiler.operations import Kind, Lowered
from baton_modeling.layers.norm import Add

BRANCH_RULE = "branch on its own stream"


def split_branches(lowered: Lowered) -> None:
    """Mark branches, and move them to where their inputs are ready: they are issued first."""
    makers = {slot: i for i, op in enumerate(lowered.operations) for slot in op.outputs}
    needs: list[int] = []  # per operation, a bit for each operation it depends on, itself included
    for index, operation in enumerate(lowered.operations):
        bits = 1 << index
        for slot in operation.inputs:
            bits |= needs[makers[slot]]
        needs.append(bits)
    after: dict[int, list[int]] = {}
    moved: set[int] = set()
    for operation in lowered.operations:
        sums = isinstance(operation.module, Add) or operation.kind is Kind.ADD_NORM
        if not sums or len(operation.inputs) != 2:
            continue
        left, right = (needs[makers[slot]] for slot in operation.inputs)
        branch = _shorter(lowered, _indices(left & ~right), _indices(right & ~left))
        if not branch or moved.intersection(branch):
            continue
        moved.update(branch)
        fork = max(_indices(left & right), default=branch[0] - 1)
        after.setdefault(fork, []).extend(branch)
        for index in branch:
            lowered.operations[index].branch = True
            lowered.operations[index].rules += (BRANCH_RULE,)
    order: list[int] = list(after.get(-1, []))
    for index in range(len(lowered.operations)):
        order += [index] * (index not in moved) + after.get(index, [])
    lowered.operations = [lowered.operations[index] for index in order]


def _indices(bits: int) -> list[int]:
    return [index for index in range(bits.bit_length()) if bits >> index & 1]


def _shorter(lowered: Lowered, left: list[int], right: list[int]) -> list[int]:
    """The branch to run aside; none unless there are two and one of them is silent."""
    if not left or not right:
        return []
    for branch in sorted((left, right), key=len):
        if all(lowered.operations[index].kind is Kind.MODULE for index in branch):
            return branch
    return []


class Aside(Protocol):
    """Where branches run."""

    def run(self, compute: Callable[..., Any], step: Step, inputs: tuple[Tensor, ...]) -> Any:
        """Compute beside the main line, after everything issued there so far."""
        ...

    def join(self, tensors: tuple[Any, ...]) -> None:
        """The main line waits for what was issued aside, and may read ``tensors``."""
        ...


class CudaAside:
    """A second CUDA stream. Memory handed across is kept until both streams are done with it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, compute: Callable[..., Any], step: Step, inputs: tuple[Tensor, ...]) -> Any:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            result = compute(step, *inputs)
        for tensor in inputs:
            tensor.record_stream(self.stream)
        return result

    def join(self, tensors: tuple[Any, ...]) -> None:
        main = torch.cuda.current_stream(self.device)
        main.wait_stream(self.stream)
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                tensor.record_stream(main)
