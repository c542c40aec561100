"""Log-probabilities of chosen tokens and of their best alternatives."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from baton_engine.events import TokenLogprob


def token_logprobs(
    log_probabilities: torch.Tensor, tokens: torch.Tensor, alternatives: NDArray[np.int64]
) -> list[TokenLogprob]:
    """One per row, alternatives best first.

    log_probabilities: float32 [K, V]. tokens: int64 [K]. alternatives: [K], how many of the most
    likely tokens to list.
    """
    width = min(int(alternatives.max(initial=0)), log_probabilities.shape[1])
    chosen = log_probabilities.gather(1, tokens[:, None])[:, 0].tolist()
    best = log_probabilities.topk(width, dim=-1)
    ids, values = best.indices.tolist(), best.values.tolist()
    return [
        TokenLogprob(token, own, tuple(zip(row_ids[:count], row_values[:count], strict=True)))
        for token, own, row_ids, row_values, count in zip(
            tokens.tolist(), chosen, ids, values, alternatives.tolist(), strict=True
        )
    ]
