"""What attention in plain torch shares: gathering, softmax, the causal product in blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baton_kernels.stored import unpack

# Scores of one block of queries stay within a few megabytes, whatever the context.
_SCORE_ELEMENTS = 1 << 20


def working_dtype(queries: Tensor) -> torch.dtype:
    """What attention of ``queries`` is computed in: float32 on CPUs, else the queries' dtype.

    A product in bf16 rounds every score to 8 bits. A CPU gains no time by that; on other devices
    this is the fallback of kernels that accumulate in float32.
    """
    return torch.float32 if queries.device.type == "cpu" else queries.dtype


def gathered(cache: Tensor, pages: Tensor, parts: Sequence[int], queries: Tensor) -> Tensor:
    """The entries of whole pages in the type attention is computed in, one page after another."""
    return unpack(cache.index_select(0, pages), parts, working_dtype(queries)).flatten(0, 1)


def attention_weights(scores: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Softmax of scores in float32, in the scores' dtype.

    sinks: a further score per row, shaped to broadcast over all but the last dimension.
    """
    if sinks is not None:
        wide = torch.cat([scores.float(), sinks.expand(*scores.shape[:-1], 1)], -1)
        return torch.softmax(wide, -1)[..., :-1].to(scores.dtype)
    if scores.dtype == torch.float32:
        return torch.softmax(scores, -1)
    return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)


def causal(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of the last n of c tokens: queries [H, n, k], keys [H, c, k], values [H, c, v].

    Queries are taken in blocks; a block reads only what its queries can see. window and sinks [H]
    as in the reference of grouped-query attention.
    """
    sinks = None if sinks is None else sinks[:, None, None]
    heads, total = queries.shape[:2]
    context = keys.shape[1]
    queries = queries * scale
    block = max(1, _SCORE_ELEMENTS // (heads * context))
    out = torch.empty(heads, total, values.shape[2], dtype=queries.dtype, device=queries.device)
    for first in range(0, total, block):
        last = min(first + block, total)
        seen = context - total + last
        # The block's first query stands at seen - (last - first).
        begin = max(0, seen - (last - first) - window + 1) if window else 0
        scores = queries[:, first:last] @ keys[:, begin:seen].transpose(1, 2)
        ahead = torch.ones(last - first, last - first, dtype=torch.bool, device=queries.device)
        ahead = ahead.triu_(1)
        scores[..., scores.shape[2] - (last - first) :].masked_fill_(ahead, float("-inf"))
        if window:
            reach = torch.arange(begin, seen, device=queries.device)
            oldest = torch.arange(seen - (last - first), seen, device=queries.device) - window
            scores.masked_fill_(reach[None, :] <= oldest[:, None], float("-inf"))
        out[:, first:last] = attention_weights(scores, sinks) @ values[:, begin:seen]
    return out
