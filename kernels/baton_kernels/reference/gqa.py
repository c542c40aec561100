"""References of grouped-query attention over a paged cache (Ainslie et al., 2023).

A cache entry of a token is its keys [kv_heads, D], rotated, followed by its values
[kv_heads, D]. Query head h reads key/value head h // (heads / kv_heads). The cache may be of
another type than the queries, see ``baton_kernels.stored``.

window: a query sees itself and the window - 1 tokens before it; 0 is all of them.
sinks: float32 [heads], a score of each head that takes part in its softmax and has no value
(gpt-oss model card, 2025, section 2.3); None is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton_kernels.paging import PagedRows
from baton_kernels.reference.mla import row_entries
from baton_kernels.stored import halves


def gqa_decode(
    queries: Tensor,
    cache: Tensor,
    rows: PagedRows,
    kv_heads: int,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one query token per row.

    queries [B, heads, D]; cache [pages, page_size, 2 kv_heads D] -> [B, heads, D], queries' dtype.
    Rows with an empty context give zeros.
    """
    out = torch.zeros_like(queries)
    for row in range(len(rows)):
        if int(rows.context_tokens[row]):
            query = queries[row : row + 1]
            out[row] = _attend(query, cache, rows, row, kv_heads, scale, window, sinks)[0]
    return out


def gqa_prefill(
    queries: Tensor,
    cache: Tensor,
    rows: PagedRows,
    kv_heads: int,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of ragged query chunks over the cache, this step's entries included.

    queries [T, heads, D]; cache [pages, page_size, 2 kv_heads D] -> [T, heads, D].
    """
    out = torch.zeros_like(queries)
    for row in range(len(rows)):
        start, stop = int(rows.query_starts[row]), int(rows.query_starts[row + 1])
        if start < stop:
            chunk = queries[start:stop]
            out[start:stop] = _attend(chunk, cache, rows, row, kv_heads, scale, window, sinks)
    return out


def _attend(
    queries: Tensor,
    cache: Tensor,
    rows: PagedRows,
    row: int,
    kv_heads: int,
    scale: float,
    window: int,
    sinks: Tensor | None,
) -> Tensor:
    entries = row_entries(cache, rows, row, halves(cache))
    keys, values = entries.view(len(entries), 2, kv_heads, -1).unbind(1)
    groups = queries.shape[1] // kv_heads
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    scores = torch.einsum("thd,chd->htc", queries.float(), keys) * scale
    last = scores.shape[2] - scores.shape[1]  # position of the first query
    seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).tril(last)
    if window:
        seen = seen.triu(last - window + 1)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, scores.shape[1], 1)], -1)
    weights = scores.softmax(-1)[..., : len(entries)]
    return torch.einsum("htc,chd->thd", weights, values).to(queries.dtype)
