"""Experts: tokens are sorted by expert, and only experts that were chosen are visited."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from baton_kernels import operators
from baton_kernels.portable.dense import silu_mul
from baton_kernels.registry import Band


@operators.moe_experts.register("sorted", band=Band.PORTABLE, reads_host=True)
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

    def compute(inputs: Tensor, expert: int) -> Tensor:
        return silu_mul(inputs @ gate_up[expert].t()) @ down[expert].t()

    return by_expert(x, weights, experts - first_expert, len(gate_up), compute)


@operators.moe_experts_clamped.register("sorted", band=Band.PORTABLE, reads_host=True)
def moe_experts_clamped(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    first_expert: int,
    alpha: float,
    limit: float,
) -> Tensor:
    def compute(inputs: Tensor, expert: int) -> Tensor:
        inner = torch.addmm(gate_up_bias[expert], inputs, gate_up[expert].t())
        return torch.addmm(down_bias[expert], clamped_glu(inner, alpha, limit), down[expert].t())

    return by_expert(x, weights, experts - first_expert, len(gate_up), compute)


def clamped_glu(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """The reference's gate, but not its code: an error in that would be in both, and none seen."""
    width = gate_up.shape[-1] // 2
    gate = gate_up[..., :width].float().clamp(max=limit)
    up = gate_up[..., width:].float().clamp(-limit, limit)
    return torch.sigmoid(gate * alpha).mul_(gate).mul_(up.add_(1)).to(gate_up.dtype)


def by_expert(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    local: int,
    compute: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """The weighted sum per token of ``compute(rows, expert)`` over its chosen experts.

    chosen int64 [T, K]: experts counted from the first of the ``local`` ones here; others add
    nothing.
    """
    flat = chosen.flatten()
    order = flat.argsort()
    tokens = order.div(chosen.shape[1], rounding_mode="floor")
    inputs, scales = x[tokens], weights.flatten()[order, None]
    visited, counts = torch.unique_consecutive(flat[order], return_counts=True)
    outputs = torch.zeros(len(order), x.shape[1], dtype=x.dtype, device=x.device)
    first = 0
    for expert, count in zip(visited.tolist(), counts.tolist(), strict=True):
        last = first + count
        if 0 <= expert < local:
            outputs[first:last] = compute(inputs[first:last], expert)
        first = last
    total = torch.zeros_like(x, dtype=torch.float32)
    return total.index_add_(0, tokens, outputs * scales).to(x.dtype)


def _one_token(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    first_expert: int,
) -> Tensor:
    # Sorting costs more than the experts of a single token.
    out = torch.zeros_like(x, dtype=torch.float32)
    for expert, weight in zip(experts[0].tolist(), weights[0].tolist(), strict=True):
        local = expert - first_expert
        if 0 <= local < len(gate_up):
            inner = silu_mul(x @ gate_up[local].t())
            out.add_(inner @ down[local].t(), alpha=weight)
    return out.to(x.dtype)
