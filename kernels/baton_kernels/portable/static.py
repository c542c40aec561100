"""Decoding by shapes alone: nothing looks at values on the host, so a step can be captured.

Attention gathers whole page tables and masks what a row does not see; experts are all computed, or
the weights of the chosen ones gathered. This costs more than the implementations that look, except
where launching a step costs most; a captured step takes them where no tuned kernel serves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton_kernels import operators
from baton_kernels.paging import PagedRows
from baton_kernels.portable.attention import attention_weights, gathered
from baton_kernels.portable.dense import silu_mul
from baton_kernels.portable.gqa import by_kv_head
from baton_kernels.portable.moe import clamped_glu
from baton_kernels.registry import Band
from baton_kernels.stored import halves, latent_and_key


def _entries(
    queries: Tensor, cache: Tensor, rows: PagedRows, parts: tuple[int, int], window: int = 0
) -> tuple[Tensor, Tensor]:
    """All entries of every row's table [B, C, sum(parts)], zero where not seen, and what is seen.

    Seen is bool [B, C]. Table entries past the last page may be anything, and so may their pages.
    """
    positions = torch.arange(rows.page_tables.shape[1] * rows.page_size, device=cache.device)
    contexts = rows.context_tokens[:, None]
    seen = positions < contexts
    if window:
        seen = seen & (positions >= contexts - window)
    pages = rows.page_tables.clamp(0, len(cache) - 1)
    entries = gathered(cache, pages.flatten(), parts, queries).view(*seen.shape, sum(parts))
    return entries.masked_fill(~seen[..., None], 0), seen


def _softmax(scores: Tensor, seen: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Weights of scores [B, ..., C]; zeros in rows that see nothing."""
    while seen.dim() < scores.dim():
        seen = seen[:, None]
    weights = attention_weights(scores.masked_fill(~seen, float("-inf")), sinks)
    return weights.masked_fill(~seen, 0)


@operators.gqa_decode.register("masked", band=Band.STATIC)
def gqa_decode(
    queries: Tensor,
    cache: Tensor,
    rows: PagedRows,
    kv_heads: int,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    entries, seen = _entries(queries, cache, rows, halves(cache), window)
    split = entries.view(*seen.shape, 2, kv_heads, queries.shape[2])
    keys, values = split.permute(2, 0, 3, 1, 4)
    grouped, rest = by_kv_head(queries, sinks, kv_heads, scale)
    weights = _softmax(grouped @ keys.transpose(2, 3), seen, rest)
    out: Tensor = weights @ values
    return out.view(queries.shape).to(queries.dtype)


@operators.mla_decode.register("masked", band=Band.STATIC)
def mla_decode(queries: Tensor, cache: Tensor, rows: PagedRows, rank: int, scale: float) -> Tensor:
    entries, seen = _entries(queries, cache, rows, latent_and_key(cache, rank))
    scores = (queries.to(entries.dtype) * scale) @ entries.transpose(1, 2)
    return (_softmax(scores, seen) @ entries[..., :rank]).to(queries.dtype)


@operators.moe_experts.register("static", band=Band.STATIC)
def moe_experts(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    first_expert: int,
) -> Tensor:
    if experts.numel() < len(gate_up):
        local, shares = _local(experts - first_expert, weights, len(gate_up))
        inner = silu_mul((gate_up[local] @ x[:, None, :, None]).squeeze(3))
        outer = (down[local] @ inner[..., None]).squeeze(3)
        return (outer * shares[..., None]).sum(1).to(x.dtype)
    outer = silu_mul(x @ gate_up.transpose(1, 2)) @ down.transpose(1, 2)
    return _shared(outer, weights, experts - first_expert).to(x.dtype)


@operators.moe_experts_clamped.register("static", band=Band.STATIC)
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
    inner = x @ gate_up.transpose(1, 2) + gate_up_bias[:, None]
    outer = clamped_glu(inner, alpha, limit) @ down.transpose(1, 2) + down_bias[:, None]
    return _shared(outer, weights, experts - first_expert).to(x.dtype)


def _local(chosen: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Chosen experts [T, K] within 0..count, and their weights, zero for those that are not."""
    here = (chosen >= 0) & (chosen < count)
    return chosen.clamp(0, count - 1), weights.masked_fill(~here, 0)


def _shared(outer: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """What every expert gives every token [E, T, hidden], weighted and summed per token."""
    local, shares = _local(chosen, weights, len(outer))
    by_expert = shares.new_zeros(len(shares), len(outer)).scatter_add_(1, local, shares)
    return torch.einsum("eth,te->th", outer.float(), by_expert)
