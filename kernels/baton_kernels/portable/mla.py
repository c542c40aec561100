"""Latent attention: whole pages are gathered once, then each row is a few matrix products.

A row's pages lie one after another in the gathered copy, so cutting the copy at the row's context
leaves exactly its own tokens; slots that nobody owns are never multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton_kernels import operators
from baton_kernels.paging import PagedRows
from baton_kernels.portable.attention import attention_weights, causal, gathered, working_dtype
from baton_kernels.registry import Band
from baton_kernels.stored import latent_and_key


@operators.mla_decode.register("gathered", band=Band.PORTABLE, reads_host=True)
def mla_decode(queries: Tensor, cache: Tensor, rows: PagedRows, rank: int, scale: float) -> Tensor:
    entries = gathered(cache, rows.flat_pages, latent_and_key(cache, rank), queries)
    scaled = queries.to(entries.dtype) * scale
    out = scaled.new_zeros(*queries.shape[:2], rank)
    for row, (first, end) in enumerate(rows.spans):
        if first == end:
            continue
        mine = entries[first:end]
        weights = attention_weights(scaled[row] @ mine.t())
        torch.mm(weights, mine[:, :rank], out=out[row])
    return out.to(queries.dtype)


def prefers_absorbed(queries: int, nope: int, value: int, rank: int, rope: int) -> bool:
    """Whether attending in latent space takes fewer multiplications than expanding the keys.

    Per head and context token, ``queries`` query tokens cost ``queries * (2 rank + rope)``
    absorbed, and ``rank * (nope + value) + queries * (nope + rope + value)`` expanded.
    """
    return queries * (2 * rank - nope - value) < rank * (nope + value)


@operators.mla_prefill.register("gathered", band=Band.PORTABLE, reads_host=True)
def mla_prefill(
    queries: Tensor, w_uk: Tensor, w_uv: Tensor, cache: Tensor, rows: PagedRows, scale: float
) -> Tensor:
    nope, rank = w_uk.shape[1:]
    rope, value = queries.shape[2] - nope, w_uv.shape[1]
    out = torch.empty(
        len(queries), queries.shape[1], value, dtype=queries.dtype, device=queries.device
    )
    starts, working, parts = rows.starts, working_dtype(queries), latent_and_key(cache, rank)
    w_uk, w_uv = w_uk.to(working), w_uv.to(working)
    for row, context in enumerate(rows.contexts):
        start, stop = starts[row], starts[row + 1]
        if start == stop:
            continue
        entries = gathered(cache, rows.row_pages(row), parts, queries)[:context]
        chunk = queries[start:stop].to(working).transpose(0, 1)  # [heads, n, nope + rope]
        if prefers_absorbed(stop - start, nope, value, rank, rope):
            latent_queries = torch.cat([chunk[..., :nope] @ w_uk, chunk[..., nope:]], -1)
            keys = entries.expand(len(chunk), -1, -1)
            attended = causal(latent_queries, keys, keys[..., :rank], scale)
            attended = attended @ w_uv.transpose(1, 2)
        else:
            latent, rotated = entries[:, :rank], entries[:, rank:]
            keys = torch.cat(
                [latent @ w_uk.transpose(1, 2), rotated.expand(len(chunk), -1, -1)], -1
            )
            attended = causal(chunk, keys, latent @ w_uv.transpose(1, 2), scale)
        out[start:stop] = attended.transpose(0, 1)
    return out
