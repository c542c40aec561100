"""Grouped-query attention: a row's pages are gathered, then it is a few matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from baton_kernels import operators
from baton_kernels.paging import PagedRows
from baton_kernels.portable.attention import attention_weights, causal, working_dtype
from baton_kernels.registry import Band
from baton_kernels.stored import halves, unpack


def gathered(cache: Tensor, pages: Tensor, queries: Tensor) -> Tensor:
    """Copies of whole pages, of the type attention is computed in."""
    return unpack(cache.index_select(0, pages), halves(cache), working_dtype(queries))


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
    batch, heads, size = queries.shape
    grouped = queries.to(working_dtype(queries)) * scale
    grouped = grouped.view(batch, kv_heads, heads // kv_heads, size)
    out = torch.zeros_like(grouped)
    entries = gathered(cache, rows.flat_pages, queries).view(-1, 2, kv_heads, size)
    rest = None if sinks is None else sinks.view(kv_heads, heads // kv_heads, 1)
    first = 0
    for row, (context, pages) in enumerate(zip(rows.contexts, rows.page_counts, strict=True)):
        if context == 0:
            continue
        oldest = max(0, context - window) if window else 0
        keys, values = entries[first + oldest : first + context].unbind(1)
        first += pages * rows.page_size
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
        pages = gathered(cache, rows.row_pages(row), queries)
        entries = pages.view(-1, 2, kv_heads, queries.shape[2])[:context]
        keys, values = entries.repeat_interleave(groups, 2).permute(1, 2, 0, 3)
        out[start:stop] = causal(
            queries[start:stop].to(keys.dtype).transpose(0, 1), keys, values, scale, window, sinks
        ).transpose(0, 1)
    return out
