"""Grouped-query attention: a row's pages are gathered, then it is a few matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from baton_kernels import operators
from baton_kernels.paging import PagedRows
from baton_kernels.portable.attention import attention_weights, causal, gathered, working_dtype
from baton_kernels.registry import Band
from baton_kernels.stored import halves


def by_kv_head(
    queries: Tensor, sinks: Tensor | None, kv_heads: int, scale: float
) -> tuple[Tensor, Tensor | None]:
    """Queries of one token a row [B, kv_heads, g, D], scaled, and sinks [kv_heads, g, 1]."""
    batch, heads, size = queries.shape
    groups = heads // kv_heads
    scaled = queries.to(working_dtype(queries)) * scale
    rest = None if sinks is None else sinks.view(kv_heads, groups, 1)
    return scaled.view(batch, kv_heads, groups, size), rest


@operators.gqa_decode.register("gathered", band=Band.PORTABLE, reads_host=True)
def gqa_decode(
    queries: Tensor,
    cache: Tensor,
    rows: PagedRows,
    kv_heads: int,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    grouped, rest = by_kv_head(queries, sinks, kv_heads, scale)
    out = torch.zeros_like(grouped)
    entries = gathered(cache, rows.flat_pages, halves(cache), queries)
    entries = entries.view(-1, 2, kv_heads, queries.shape[2])
    for row, (first, end) in enumerate(rows.spans):
        if first == end:
            continue
        oldest = max(first, end - window) if window else first
        keys, values = entries[oldest:end].unbind(1)
        weights = attention_weights(torch.bmm(grouped[row], keys.permute(1, 2, 0)), rest)
        torch.bmm(weights, values.transpose(0, 1), out=out[row])
    return out.view(queries.shape).to(queries.dtype)


@operators.gqa_prefill.register("gathered", band=Band.PORTABLE, reads_host=True)
def gqa_prefill(
    queries: Tensor,
    cache: Tensor,
    rows: PagedRows,
    kv_heads: int,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    out = torch.empty_like(queries)
    groups = queries.shape[1] // kv_heads
    for row, context in enumerate(rows.contexts):
        start, stop = rows.starts[row], rows.starts[row + 1]
        if start == stop:
            continue
        entries = gathered(cache, rows.row_pages(row), halves(cache), queries)[:context]
        entries = entries.view(context, 2, kv_heads, queries.shape[2])
        keys, values = entries.repeat_interleave(groups, 2).permute(1, 2, 0, 3)
        out[start:stop] = causal(
            queries[start:stop].to(keys.dtype).transpose(0, 1), keys, values, scale, window, sinks
        ).transpose(0, 1)
    return out
