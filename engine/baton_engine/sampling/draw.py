"""Drawing one token per row from filtered distributions.

Nothing here may depend on the batch: the filters are thresholds on a row's own values, so ties at
the edge are all kept and no sort order leaks into the result; sums run over one row in token
order (cumulative, in float64), never as a reduction that may be split among threads.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

# Nearly every nucleus lies within this many tokens; a row whose does not is sorted whole.
_LEADING = 1024


def draw(
    logits: torch.Tensor,
    temperature: NDArray[np.float32],
    top_k: NDArray[np.int64],
    top_p: NDArray[np.float32],
    min_p: NDArray[np.float32],
    uniform: NDArray[np.float64],
) -> torch.Tensor:
    """Token ids, int64 [R], by inversion of each row's cumulative distribution.

    logits: float32 [R, V], with a finite maximum in each row. temperature: [R], > 0. top_k: [R],
    0 keeps all. top_p: [R], in (0, 1]. min_p: [R], in [0, 1]. uniform: [R], in [0, 1).

    Filters apply in the order temperature, top-k, top-p (of what top-k left), min-p, as in
    transformers. The most likely token always stays.
    """
    device = logits.device
    # The maximum goes first: a tiny temperature then cannot overflow.
    scaled = logits - logits.amax(-1, keepdim=True)
    scaled /= torch.as_tensor(temperature, device=device)[:, None]
    weights = scaled.exp_()  # the most likely token weighs 1
    cut = torch.as_tensor(min_p, device=device)
    truncated = np.flatnonzero((top_k > 0) | (top_p < 1))
    if len(truncated):
        rows = torch.as_tensor(truncated, device=device)
        least = _least_weight(weights[rows], top_k[truncated], top_p[truncated], _LEADING)
        cut = cut.index_copy(0, rows, torch.maximum(cut[rows], least))
    if len(truncated) or min_p.any():
        weights.masked_fill_(weights < cut[:, None], 0.0)
    mass = _running_sum(weights)
    # u < 1 has 53 bits, so u * total < total: the first token beyond it exists and has weight.
    target = torch.as_tensor(uniform, device=device)[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True)[:, 0]


def _least_weight(
    weights: torch.Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float32], leading: int
) -> torch.Tensor:
    """The smallest weight that top-k and top-p keep, float32 [R]. weights: float32 [R, V]."""
    vocab = weights.shape[1]
    everything = (top_k == 0) | (top_k >= vocab)
    last = np.where(everything, vocab, top_k) - 1  # index of the last token that top-k keeps
    looked_at = int(np.where(everything, min(leading, vocab), last + 1).max())
    largest = _largest(weights, looked_at)
    mass = _running_sum(largest)

    ends = torch.as_tensor(last, device=weights.device)
    total = mass.gather(1, ends.clamp(max=looked_at - 1)[:, None])[:, 0]
    whole = np.flatnonzero(everything)
    if len(whole):
        # In token order, as every row's total, so that it does not depend on other rows' top-k.
        rows = torch.as_tensor(whole, device=weights.device)
        total[rows] = _running_sum(weights[rows])[:, -1]
    wanted = torch.as_tensor(top_p, device=weights.device).double() * total
    reached = (mass < wanted[:, None]).sum(-1)  # index of the last token that top-p keeps
    reached = torch.where(torch.as_tensor(top_p >= 1, device=weights.device), ends, reached)
    reached = torch.minimum(reached, ends)

    least = largest.gather(1, reached.clamp(max=looked_at - 1)[:, None])[:, 0]
    beyond = torch.nonzero(reached >= looked_at)[:, 0]
    if len(beyond):
        chosen = beyond.cpu().numpy()
        least[beyond] = _least_weight(weights[beyond], top_k[chosen], top_p[chosen], vocab)
    return least


def _running_sum(weights: torch.Tensor) -> torch.Tensor:
    """float64 of the same shape. Converted first: five times as fast as letting cumsum do it."""
    return weights.double().cumsum(-1)


def _largest(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Each row's `count` largest values, largest first, [R, count]."""
    if weights.device.type != "cpu":
        return weights.topk(count, dim=-1).values
    # numpy's vectorised partition and sort are several times (for whole rows, forty times) as
    # fast as torch's on a CPU.
    values, first = weights.numpy(), weights.shape[1] - count
    if first:
        values = np.partition(values, first, axis=-1)[:, first:]
    return torch.from_numpy(np.sort(values, axis=-1)[:, ::-1].copy())
