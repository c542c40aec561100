"""What attention in plain torch shares: the softmax and the causal product in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

# Scores of one block of queries stay within a few megabytes, whatever the context.
_SCORE_ELEMENTS = 1 << 20


def attention_weights(scores: Tensor) -> Tensor:
    """Softmax of scores in float32, in the scores' dtype."""
    if scores.dtype == torch.float32:
        return torch.softmax(scores, -1)
    return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)


def causal(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attention of the last n of c tokens: queries [H, n, k], keys [H, c, k], values [H, c, v].

    Queries are taken in blocks; a block reads no further than its last query can see.
    """
    heads, total = queries.shape[:2]
    context = keys.shape[1]
    queries = queries * scale
    block = max(1, _SCORE_ELEMENTS // (heads * context))
    out = torch.empty(heads, total, values.shape[2], dtype=queries.dtype, device=queries.device)
    for first in range(0, total, block):
        last = min(first + block, total)
        seen = context - total + last
        scores = queries[:, first:last] @ keys[:, :seen].transpose(1, 2)
        ahead = torch.ones(last - first, last - first, dtype=torch.bool, device=queries.device)
        ahead = ahead.triu_(1)
        scores[..., seen - (last - first) :].masked_fill_(ahead, float("-inf"))
        out[:, first:last] = attention_weights(scores) @ values[:, :seen]
    return out
