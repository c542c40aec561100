"""Sending rows to the ranks that hold their experts, and bringing the results back.

One row travels per token and chosen expert, in the order of the experts, so that the counts alone
say which expert a row is for: no ids and no weights travel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton_modeling.binding import Binding, Step
from baton_modeling.communicators import Communicator
from baton_modeling.compiler.operations import Kind, Operation
from baton_modeling.mesh import Axis

ROUTING_KINDS = frozenset({Kind.COUNT, Kind.DISPATCH, Kind.COMBINE})


@dataclass(frozen=True)
class Route:
    """How rows were sent. order: the choice (token * K + k) of each row, int64 [T K]."""

    order: Tensor
    sends: list[int]
    receives: list[int]


def bind_routing(
    operation: Operation, axis: Axis, binding: Binding, comm: Communicator
) -> Callable[..., Any]:
    """The callable of a COUNT, DISPATCH or COMBINE over ``axis``."""
    experts = operation.experts
    local = experts // axis.size
    mine = axis.coordinate(binding.mesh.rank)

    def count(step: Step, chosen: Tensor) -> Tensor:
        """Rows each rank has for each expert, int64 [ranks, experts]."""
        counts = torch.bincount(chosen.flatten(), minlength=experts)
        return comm.all_gather(counts[None], axis, 0)

    def dispatch(
        step: Step, x: Tensor, chosen: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Route]:
        """Rows [R, hidden] for this rank's experts, ones [R, 1], their experts [R, 1], the way."""
        order = chosen.flatten().argsort(stable=True)
        here = counts[:, mine * local : (mine + 1) * local]
        sends = counts[mine].view(axis.size, local).sum(1).tolist()
        route = Route(order, sends, here.sum(1).tolist())
        rows = comm.all_to_all(x[order // chosen.shape[1]], axis, sends, route.receives)
        ids = torch.arange(mine * local, (mine + 1) * local, device=x.device)
        ids = ids.repeat(axis.size).repeat_interleave(here.flatten())
        ones = torch.ones(len(rows), 1, dtype=torch.float32, device=x.device)
        return rows, ones, ids[:, None], route

    def combine(step: Step, done: Tensor, weights: Tensor, route: Route) -> Tensor:
        """The weighted sum of what came back for each token, [T, hidden]."""
        back = comm.all_to_all(done, axis, route.receives, route.sends)
        apart = torch.empty_like(back)
        apart[route.order] = back
        apart = apart.view(*weights.shape, done.shape[1])
        return (apart.float() * weights[..., None]).sum(1).to(done.dtype)

    bound: dict[Kind, Callable[..., Any]] = {
        Kind.COUNT: count,
        Kind.DISPATCH: dispatch,
        Kind.COMBINE: combine,
    }
    return bound[operation.kind]
