"""References of mixture-of-experts routing and expert computation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from baton_kernels.reference.dense import silu_mul


def route_sigmoid(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    groups: int,
    top_groups: int,
    normalise: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Group-limited sigmoid routing without auxiliary loss (DeepSeek-V3, section 2.1.2).

    logits float32 [T, experts], bias float32 [experts] -> weights float32 [T, top_k] and expert
    ids int64 [T, top_k]. The bias decides who is chosen, never with what weight. A group's score
    is the sum of its two best experts; only experts of the top_groups best groups are eligible.
    """
    scores = logits.sigmoid()
    eligible = scores + bias
    if groups > 1:
        grouped = eligible.view(-1, groups, eligible.shape[1] // groups)
        best = grouped.topk(2, dim=-1).values.sum(-1)
        eligible = _within_best(grouped, best, top_groups, float("-inf"))
    experts = eligible.topk(top_k, dim=-1).indices
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale, experts


def route_softmax(
    logits: Tensor,
    top_k: int,
    normalise: bool,
    scale: float,
    groups: int = 1,
    top_groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Softmax routing: the top_k most probable experts, optionally renormalised to sum to one.

    logits float32 [T, experts] -> weights float32 [T, top_k], expert ids int64 [T, top_k]. With
    groups only experts of the top_groups groups with the best single expert are eligible
    (DeepSeek-V2, section 2.2.2).
    """
    scores = logits.softmax(-1)
    if groups > 1:
        grouped = scores.view(-1, groups, scores.shape[1] // groups)
        scores = _within_best(grouped, grouped.amax(-1), top_groups, 0.0)
    weights, experts = scores.topk(top_k, dim=-1)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale, experts


def _within_best(grouped: Tensor, of_groups: Tensor, top_groups: int, otherwise: float) -> Tensor:
    """grouped [T, groups, n] -> [T, groups n], ``otherwise`` outside the groups that score best."""
    best = of_groups.topk(top_groups, dim=-1).indices
    kept = torch.zeros_like(of_groups, dtype=torch.bool).scatter_(1, best, True)
    return grouped.masked_fill(~kept[..., None], otherwise).flatten(1)


def moe_experts(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    first_expert: int,
) -> Tensor:
    """SwiGLU experts on the tokens routed to them, weighted and summed per token.

    x [T, hidden]; weights float32 [T, K]; experts int64 [T, K]; gate_up [E, 2 I, hidden]; down
    [E, hidden, I] -> [T, hidden]. These are experts first_expert .. first_expert + E of the
    model: choices outside add nothing, so that the sum over the shards is the whole layer. The
    experts of a token are summed in float32.
    """

    def compute(inputs: Tensor, expert: int) -> Tensor:
        return silu_mul(inputs @ gate_up[expert].t()) @ down[expert].t()

    return _weighted_sum(x, weights, experts - first_expert, len(gate_up), compute)


def _weighted_sum(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    local: int,
    compute: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """``compute(rows, expert)`` for each of the ``local`` experts here, weighted, per token."""
    out = torch.zeros_like(x, dtype=torch.float32)
    for expert in range(local):
        tokens, choice = (chosen == expert).nonzero(as_tuple=True)
        if len(tokens):
            outer = compute(x[tokens], expert) * weights[tokens, choice, None]
            out.index_add_(0, tokens, outer)
    return out.to(x.dtype)


def clamped_glu(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """gpt-oss's gate: gate_up [T, 2 I], gate first -> ``gate sigmoid(alpha gate) (up + 1)`` [T, I].

    The gate is clamped from above and the other half on both sides.
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (gate * torch.sigmoid(gate * alpha) * (up + 1)).to(gate_up.dtype)


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
    """moe_experts with the clamped gate and biases.

    gate_up_bias [E, 2 I], down_bias [E, hidden]; the rest as in moe_experts.
    """

    def compute(inputs: Tensor, expert: int) -> Tensor:
        inner = inputs @ gate_up[expert].t() + gate_up_bias[expert]
        return clamped_glu(inner, alpha, limit) @ down[expert].t() + down_bias[expert]

    return _weighted_sum(x, weights, experts - first_expert, len(gate_up), compute)
