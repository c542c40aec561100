"""The two parts of a step that live beside the engine: the sampler and the stop matcher.

Only rank 0 has them. Both keep state per scheduler slot; `add` on a slot that is in use
replaces what was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from baton_engine.events import FinishReason, TokenLogprob
from baton_engine.request import SamplingParams, StopParams


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One entry per row of the logits."""

    tokens: NDArray[np.int32]  # [L]; any value where poisoned
    # None when no row asked; else [L], None for the rows that did not ask.
    logprobs: Sequence[TokenLogprob | None] | None
    poisoned: NDArray[np.bool_]  # [L]: NaN or +inf among the row's logits, or none finite


class Sampler(Protocol):
    """Chooses tokens; a pure function of (seed, position, logits, counts of earlier tokens)."""

    def add(
        self,
        slot: int,
        params: SamplingParams,
        prompt_tokens: NDArray[np.int32],
        output_tokens: NDArray[np.int32],
    ) -> None:
        """Start a slot. `output_tokens` were generated before (earlier attempts, retraction)."""

    def drop(self, slot: int) -> None:
        """Forget a slot; unknown slots are ignored."""

    def remembers(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[L] whether what a slot draws depends on which tokens it drew before."""

    def wishes(
        self, slots: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """What a captured step is to know of these rows, [L, ...], so that it can draw those which
        need nothing but their logits. None: it takes everybody's largest."""

    def sample(
        self,
        logits: torch.Tensor,
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        drawn: torch.Tensor | None = None,
    ) -> SampleResult:
        """Sample one token per row and count it as output of its slot.

        logits: float32 [L, V], may be overwritten. slots: [L], those that remember at most once.
        positions: [L], the index in prompt + output that the new token gets. drawn: [L, ...], what
        the step itself made of these rows' `wishes`, if it was captured.
        """


@dataclass(frozen=True, slots=True)
class StopMatch:
    """Why a row's token ends its request."""

    reason: FinishReason
    matched: str = ""  # the stop string, when that was the reason


class StopMatcher(Protocol):
    """Knows which tokens end which request."""

    def add(self, slot: int, params: StopParams, output_tokens: NDArray[np.int32]) -> None:
        """Start a slot. `output_tokens` were generated before (earlier attempts, retraction)."""

    def drop(self, slot: int) -> None:
        """Forget a slot; unknown slots are ignored."""

    def remembers(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[L] whether what ends a slot's request depends on the tokens before."""

    def check(
        self, slots: NDArray[np.int64], tokens: NDArray[np.int32]
    ) -> tuple[NDArray[np.uint8], dict[int, StopMatch]]:
        """Per row 1 where the token ends the request; for those rows (by index) why."""
