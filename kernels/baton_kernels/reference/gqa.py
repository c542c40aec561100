"""References of grouped-query attention over a paged cache (Ainslie et al., 2023).

A cache entry of a token is its keys [kv_heads, D], rotated, followed by its values
[kv_heads, D]. Query head h reads key/value head h // (heads / kv_heads).
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton_kernels.paging import PagedRows
from baton_kernels.reference.mla import row_entries


def gqa_decode(
    queries: Tensor, cache: Tensor, rows: PagedRows, kv_heads: int, scale: float
) -> Tensor:
    """Attention of one query token per row.

    queries [B, heads, D]; cache [pages, page_size, 2 kv_heads D] -> [B, heads, D], queries' dtype.
    Rows with an empty context give zeros.
    """
    out = torch.zeros_like(queries)
    for row in range(len(rows)):
        if int(rows.context_tokens[row]):
            out[row] = _attend(queries[row : row + 1], cache, rows, row, kv_heads, scale)[0]
    return out


def gqa_prefill(
    queries: Tensor, cache: Tensor, rows: PagedRows, kv_heads: int, scale: float
) -> Tensor:
    """Causal attention of ragged query chunks over the cache, this step's entries included.

    queries [T, heads, D]; cache [pages, page_size, 2 kv_heads D] -> [T, heads, D].
    """
    out = torch.zeros_like(queries)
    for row in range(len(rows)):
        start, stop = int(rows.query_starts[row]), int(rows.query_starts[row + 1])
        if start < stop:
            out[start:stop] = _attend(queries[start:stop], cache, rows, row, kv_heads, scale)
    return out


def _attend(
    queries: Tensor, cache: Tensor, rows: PagedRows, row: int, kv_heads: int, scale: float
) -> Tensor:
    entries = row_entries(cache, rows, row)
    keys, values = entries.view(len(entries), 2, kv_heads, -1).unbind(1)
    groups = queries.shape[1] // kv_heads
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    scores = torch.einsum("thd,chd->htc", queries.float(), keys) * scale
    seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
    future = ~seen.tril(scores.shape[2] - scores.shape[1])
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("htc,chd->thd", weights, values).to(queries.dtype)
