"""Experts: tokens are sorted by expert, and only experts that were chosen are visited."""

from __future__ import annotations

import torch
from torch import Tensor

from baton_kernels import operators
from baton_kernels.portable.dense import silu_mul
from baton_kernels.registry import Band


@operators.moe_experts.register("sorted", band=Band.PORTABLE)
def moe_experts(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    first_expert: int,
) -> Tensor:
    if len(x) == 1:
        return _one_token(x, weights, experts, gate_up, down, first_expert)
    chosen = experts.flatten() - first_expert
    order = chosen.argsort()
    choices = experts.shape[1]
    tokens = order.div(choices, rounding_mode="floor")
    inputs, scales = x[tokens], weights.flatten()[order].to(x.dtype)[:, None]
    local, counts = torch.unique_consecutive(chosen[order], return_counts=True)
    outputs = torch.zeros(len(order), x.shape[1], dtype=x.dtype, device=x.device)
    first = 0
    for expert, count in zip(local.tolist(), counts.tolist(), strict=True):
        last = first + count
        if 0 <= expert < len(gate_up):
            inner = silu_mul(inputs[first:last] @ gate_up[expert].t())
            torch.mm(inner, down[expert].t(), out=outputs[first:last])
        first = last
    return torch.zeros_like(x).index_add_(0, tokens, outputs.mul_(scales))


def _one_token(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    first_expert: int,
) -> Tensor:
    # Sorting costs more than the experts of a single token.
    out = torch.zeros_like(x)
    for expert, weight in zip(experts[0].tolist(), weights[0].tolist(), strict=True):
        local = expert - first_expert
        if 0 <= local < len(gate_up):
            inner = silu_mul(x @ gate_up[local].t())
            out.addmm_(inner, down[local].t(), alpha=weight)
    return out
