"""References of multi-head latent attention over a paged cache (DeepSeek-V2, section 2.1).

A cache entry of a token is its normed latent c [R] followed by its rotated key k_r [D]. Keys and
values of head h are linear in the latent: k = w_uk[h] c, v = w_uv[h] c. *Absorbed* attention moves
those maps to the query and the output, so that it reads nothing but the latents. The cache may be
of another type than the queries, see ``baton_kernels.stored``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baton_kernels.paging import PagedRows
from baton_kernels.stored import PACKED, latent_and_key, pack, unpack


def cache_write(cache: Tensor, entries: Tensor, pages: Tensor, offsets: Tensor) -> None:
    """Store entries [T, W] at slot offsets int64 [T] of pages int64 [T], in place.

    cache [pages, page_size, W]: one layer's view of the arena, any strides.
    """
    for entry, page, offset in zip(entries, pages.tolist(), offsets.tolist(), strict=True):
        cache[page, offset] = entry


def cache_write_as(
    cache: Tensor, entries: Tensor, pages: Tensor, offsets: Tensor, parts: Sequence[int]
) -> None:
    """cache_write into a cache of another type than the entries': cast, or packed float8."""
    rows = pack(entries, parts) if cache.dtype == PACKED else entries.to(cache.dtype)
    cache_write(cache, rows, pages, offsets)


def row_entries(cache: Tensor, rows: PagedRows, row: int, parts: Sequence[int]) -> Tensor:
    """The entries of one row in token order: [context, sum(parts)] in float32."""
    context = int(rows.context_tokens[row])
    tokens = torch.arange(context, device=cache.device)
    pages = rows.page_tables[row].long()[tokens // rows.page_size]
    return unpack(cache[pages, tokens % rows.page_size], parts, torch.float32)


def mla_decode(queries: Tensor, cache: Tensor, rows: PagedRows, rank: int, scale: float) -> Tensor:
    """Absorbed attention of one query token per row.

    queries [B, heads, R + D]: the query in latent space, then its rotated part; cache
    [pages, page_size, R + D]; rank R -> [B, heads, R], the attended latents, queries' dtype.
    Rows with an empty context give zeros.
    """
    out = torch.zeros(*queries.shape[:2], rank, dtype=queries.dtype, device=queries.device)
    for row in range(len(rows)):
        entries = row_entries(cache, rows, row, latent_and_key(cache, rank))
        if len(entries):
            scores = queries[row].float() @ entries.t() * scale
            out[row] = (scores.softmax(-1) @ entries[:, :rank]).to(out.dtype)
    return out


def mla_prefill(
    queries: Tensor, w_uk: Tensor, w_uv: Tensor, cache: Tensor, rows: PagedRows, scale: float
) -> Tensor:
    """Causal attention of ragged query chunks over paged latents, this step's included.

    queries [T, heads, N + D]: unrotated part, rotated part; w_uk [heads, N, R]; w_uv
    [heads, V, R]; cache [pages, page_size, R + D] -> [T, heads, V] in queries' dtype.
    """
    nope, rank = w_uk.shape[1:]
    out = queries.new_zeros(queries.shape[0], queries.shape[1], w_uv.shape[1])
    for row in range(len(rows)):
        start, stop = int(rows.query_starts[row]), int(rows.query_starts[row + 1])
        if start == stop:
            continue
        entries = row_entries(cache, rows, row, latent_and_key(cache, rank))
        latent, rotated = entries[:, :rank], entries[:, rank:]
        keys = torch.einsum("cr,hnr->hcn", latent, w_uk.float())
        values = torch.einsum("cr,hvr->hcv", latent, w_uv.float())
        chunk = queries[start:stop].float()
        scores = torch.einsum("thn,hcn->htc", chunk[..., :nope], keys)
        scores = (scores + torch.einsum("thd,cd->htc", chunk[..., nope:], rotated)) * scale
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
        future = ~seen.tril(scores.shape[2] - scores.shape[1])
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        out[start:stop] = torch.einsum("htc,hcv->thv", weights, values).to(out.dtype)
    return out
