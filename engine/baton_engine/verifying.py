"""What is drawn from each row of a step's logits, all at once or some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from baton_engine.events import TokenLogprob
from baton_engine.ports import Sampler, StopMatch, StopMatcher


@dataclass(slots=True)
class Drawn:
    """One entry per row of the logits."""

    tokens: NDArray[np.int32]
    poisoned: NDArray[np.bool_]
    ended: NDArray[np.bool_]  # the token ends its request
    logprobs: Sequence[TokenLogprob | None] | None = None  # None when no row asked
    stops: dict[int, StopMatch] = field(default_factory=dict)  # why, of those that ended

    @staticmethod
    def nothing(rows: int) -> Drawn:
        """Rows that are not drawn stay so: token 0, which is nobody's."""
        none = np.zeros(rows, np.bool_)
        return Drawn(np.zeros(rows, np.int32), none, none.copy())

    def goes_on(self, rows: NDArray[np.int64], guesses: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of these rows drew what had been guessed, and are not their request's last."""
        over = self.ended[rows] | self.poisoned[rows]
        good: NDArray[np.bool_] = (self.tokens[rows] == guesses) & ~over
        return good


@dataclass(frozen=True, slots=True)
class Drawing:
    """Sampler and stop matcher on the rows of one step's logits."""

    sampler: Sampler
    stops: StopMatcher
    logits: torch.Tensor  # float32 [L, V]
    slots: NDArray[np.int64]  # [L]
    positions: NDArray[np.int64]  # [L]
    drawn: torch.Tensor | None = None  # [L, ...], by the step itself

    def all(self) -> Drawn:
        """Every row."""
        return self._draw(self.logits, self.slots, self.positions, self.drawn)

    def into(self, drawn: Drawn, rows: NDArray[np.int64]) -> None:
        """These rows only. Of a slot that is remembered for at most one, and in its order."""
        if not len(rows):
            return
        chosen, already = self.logits, self.drawn
        if len(rows) < len(chosen):
            at = torch.from_numpy(rows).to(chosen.device)
            chosen, already = chosen[at], None if already is None else already[at]
        some = self._draw(chosen, self.slots[rows], self.positions[rows], already)
        drawn.tokens[rows], drawn.poisoned[rows] = some.tokens, some.poisoned
        drawn.ended[rows] = some.ended
        drawn.stops.update({int(rows[i]): match for i, match in some.stops.items()})
        if some.logprobs is not None:
            told = list(drawn.logprobs or [None] * len(drawn.tokens))
            for row, logprob in zip(rows.tolist(), some.logprobs, strict=True):
                told[row] = logprob
            drawn.logprobs = told

    def _draw(
        self,
        logits: torch.Tensor,
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        already: torch.Tensor | None,
    ) -> Drawn:
        result = self.sampler.sample(logits, slots, positions, already)
        ended, stops = self.stops.check(slots, result.tokens)
        tokens = result.tokens.astype(np.int32, copy=False)
        return Drawn(tokens, result.poisoned, ended.astype(np.bool_), result.logprobs, stops)
