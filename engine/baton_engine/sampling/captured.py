"""The part of the sampler that is captured with a step: rows drawn by their own parameters alone.

A captured step repeats what was recorded on the same memory, so parameters are copied into a
buffer before it, and nothing looks at values on the host. Rows with penalties, biases or a grammar
take their largest logit here and are drawn from the logits afterwards.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from baton_engine.sampling.draw import draw_blind
from baton_engine.sampling.philox import uniforms
from baton_engine.sampling.slots import ADJUSTED, RANDOM, SlotParams
from baton_modeling.binding import Tail

# Of each row: whether it is random, temperature, top-k, top-p, min-p and its number in [0, 1).
# All in float64, which holds every one of them as it is: one copy a step.
_COLUMNS = 6


def wishes(
    params: SlotParams, slots: NDArray[np.int64], positions: NDArray[np.int64], vocab_size: int
) -> NDArray[np.float64] | None:
    """What each row wants of a captured draw, float64 [L, 6]; None: everybody's largest logit."""
    needs = params.needs[slots]
    random = (needs & RANDOM).astype(np.bool_) & ~(needs & ADJUSTED).astype(np.bool_)
    if not random.any():
        return None
    wanted = np.zeros((len(slots), _COLUMNS))
    wanted[:, 1] = 1.0  # of rows that draw nothing: no division by zero
    at = slots[random]
    wanted[random] = np.stack(
        [
            np.ones(len(at)),
            params.temperature[at],
            np.minimum(params.top_k[at], vocab_size),
            params.top_p[at],
            params.min_p[at],
            uniforms(params.seed[at], positions[random]),
        ],
        axis=-1,
    )
    return wanted


class CapturedDraw:
    """A buffer for the wishes of a step's rows, and the tails that captured steps end with.

    Each gives int64 [rows, 2]: the token, and 1 for a row that is poisoned.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        """rows: that the largest captured step has, at most."""
        self._wishes = torch.ones((rows, _COLUMNS), dtype=torch.float64, device=device)

    @property
    def tails(self) -> tuple[Tail, Tail]:
        """Of steps in which everybody is greedy, which sort nothing, and of all others."""
        return largest, self._drawn

    def take(self, wanted: NDArray[np.float64] | None) -> int:
        """Copy a step's wishes; which tail it ends with."""
        if wanted is None:
            return 0
        self._wishes[: len(wanted)] = torch.from_numpy(wanted)
        return 1

    def _drawn(self, logits: torch.Tensor) -> torch.Tensor:
        best = largest(logits)
        tokens, poisoned = best[:, 0], best[:, 1].bool()
        random, temperature, top_k, top_p, min_p, uniform = self._wishes[: len(logits)].unbind(-1)
        drawn = draw_blind(
            logits.masked_fill(poisoned[:, None], 0.0),
            temperature.float(),
            top_k.long(),
            top_p.float(),
            min_p.float(),
            uniform,
        )
        return torch.stack([torch.where(random.bool(), drawn, tokens), best[:, 1]], -1)


def largest(logits: torch.Tensor) -> torch.Tensor:
    """The first of each row's largest logits, and whether the row is poisoned: int64 [L, 2]."""
    # One pass finds the best token and, because NaN and infinity win, the poisoned rows.
    best, tokens = logits.max(dim=-1)
    return torch.stack([tokens, (~torch.isfinite(best)).to(tokens.dtype)], -1)
