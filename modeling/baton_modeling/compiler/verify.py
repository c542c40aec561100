"""The debug mode: is what was declared replicated really equal on all ranks?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from baton_modeling.binding import Step
from baton_modeling.communicators import Communicator
from baton_modeling.compiler.operations import Lowered, Operation
from baton_modeling.placements import overlap


class ReplicaMismatch(RuntimeError):
    """A tensor declared replicated over an axis differs between its ranks."""


def checker(
    lowered: Lowered, comm: Communicator
) -> Callable[[Operation, Callable[..., Any]], Callable[..., Any]]:
    """A wrapper for ``emit`` that compares every output over the axes it is replicated on.

    All ranks raise together, naming the first operation whose output differs. Equal means equal
    bits (NaN included): replicas run the same kernels on the same bytes.
    """
    axes = [axis for axis in comm.mesh.products() if "*" not in axis.name]

    def wrap(operation: Operation, run: Callable[..., Any]) -> Callable[..., Any]:
        checks = []
        for slot in operation.outputs:
            # Any placement over an axis makes the ranks of every overlapping axis differ.
            busy = lowered.slots[slot].layout
            checks.append([a for a in axes if not any(overlap(a, b) for b in busy)])

        def checked(step: Step, *inputs: Tensor) -> Any:
            result = run(step, *inputs)
            outputs = result if isinstance(result, tuple | list) else (result,)
            for output, over in zip(outputs, checks, strict=True):
                for axis in over if isinstance(output, Tensor) else ():
                    _compare(output, operation.label, axis.name, comm, axis)
            return result

        return checked

    return wrap


def _compare(x: Tensor, label: str, axis_name: str, comm: Communicator, axis: Any) -> None:
    if not x.numel():
        return
    replicas = comm.all_gather(x.detach().contiguous()[None], axis, 0)
    for rank, replica in enumerate(replicas):
        if not torch.equal(torch.nan_to_num(replica), torch.nan_to_num(replicas[0])):
            worst = (replica.double() - replicas[0].double()).abs().max().item()
            raise ReplicaMismatch(
                f"{label} declares its output replicated over mesh axis {axis_name}, but ranks 0 "
                f"and {rank} of the axis differ by up to {worst:.3g}"
            )
