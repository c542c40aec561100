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
    weights = weighed(logits, torch.as_tensor(temperature, device=device))
    cut = torch.as_tensor(min_p, device=device)
    truncated = np.flatnonzero((top_k > 0) | (top_p < 1))
    if len(truncated):
        rows = torch.as_tensor(truncated, device=device)
        least = _least_weight(weights[rows], top_k[truncated], top_p[truncated], _LEADING)
        cut = cut.index_copy(0, rows, torch.maximum(cut[rows], least))
    if len(truncated) or min_p.any():
        weights.masked_fill_(weights < cut[:, None], 0.0)
    return inverted(weights, torch.as_tensor(uniform, device=device))


def draw_blind(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """As ``draw``, the same token of each row, but no value is looked at on the host.

    Arguments are tensors of the same types on the device of the logits. Every row is sorted whole.
    """
    vocab = logits.shape[1]
    weights = weighed(logits, temperature)
    largest = weights.sort(-1, descending=True).values
    mass = running_sum(largest)
    everything = (top_k == 0) | (top_k >= vocab)
    ends = torch.where(everything, vocab, top_k) - 1
    total = mass.gather(1, ends[:, None])[:, 0]
    total = torch.where(everything, running_sum(weights)[:, -1], total)
    least = largest.gather(1, last_kept(mass, total, ends, top_p)[:, None])[:, 0]
    truncated = (top_k > 0) | (top_p < 1)
    cut = torch.where(truncated, torch.maximum(min_p, least), min_p)
    return inverted(weights.masked_fill(weights < cut[:, None], 0.0), uniform)


def weighed(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Each token's weight, float32 [R, V]; the most likely one weighs 1."""
    # The maximum goes first: a tiny temperature then cannot overflow.
    scaled = logits - logits.amax(-1, keepdim=True)
    scaled /= temperature[:, None]
    return scaled.exp_()


def inverted(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token of each row at which its running sum passes this part of the total, int64 [R]."""
    mass = running_sum(weights)
    # u < 1 has 53 bits, so u * total < total: the first token beyond it exists and has weight.
    return torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)[:, 0]


def last_kept(
    mass: torch.Tensor, total: torch.Tensor, ends: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Index of the last token that top-p keeps of those up to ``ends``, int64 [R].

    mass: float64 [R, n], running sums of the largest weights. total: float64 [R], of all that
    top-k keeps.
    """
    reached = (mass < (top_p.double() * total)[:, None]).sum(-1)
    return torch.minimum(torch.where(top_p >= 1, ends, reached), ends)


def _least_weight(
    weights: torch.Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float32], leading: int
) -> torch.Tensor:
    """The smallest weight that top-k and top-p keep, float32 [R]. weights: float32 [R, V]."""
    vocab = weights.shape[1]
    everything = (top_k == 0) | (top_k >= vocab)
    last = np.where(everything, vocab, top_k) - 1  # index of the last token that top-k keeps
    looked_at = int(np.where(everything, min(leading, vocab), last + 1).max())
    largest = _largest(weights, looked_at)
    mass = running_sum(largest)

    ends = torch.as_tensor(last, device=weights.device)
    total = mass.gather(1, ends.clamp(max=looked_at - 1)[:, None])[:, 0]
    whole = np.flatnonzero(everything)
    if len(whole):
        # In token order, as every row's total, so that it does not depend on other rows' top-k.
        rows = torch.as_tensor(whole, device=weights.device)
        total[rows] = running_sum(weights[rows])[:, -1]
    reached = last_kept(mass, total, ends, torch.as_tensor(top_p, device=weights.device))

    least = largest.gather(1, reached.clamp(max=looked_at - 1)[:, None])[:, 0]
    beyond = torch.nonzero(reached >= looked_at)[:, 0]
    if len(beyond):
        chosen = beyond.cpu().numpy()
        least[beyond] = _least_weight(weights[beyond], top_k[chosen], top_p[chosen], vocab)
    return least


def running_sum(weights: torch.Tensor) -> torch.Tensor:
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
