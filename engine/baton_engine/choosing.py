"""From logits to tokens and to which requests they end, slot by slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from baton_engine.batch import Sampling
from baton_engine.core import EngineCore
from baton_engine.events import TokenLogprob
from baton_engine.ports import Sampler, SampleResult, StopMatch, StopMatcher
from baton_engine.request import StopParams

# The scheduler's flags of a sampling row.
GO_ON, FINISH, POISONED = 0, 1, 2


@dataclass(slots=True)
class Outcome:
    """What sampling decided, one entry per sampling row."""

    tokens: NDArray[np.int32]
    flags: NDArray[np.uint8]
    result: SampleResult | None  # None: the step failed
    stops: dict[int, StopMatch]
    failure: str = ""
    forward_us: int = 0
    sample_us: int = 0

    @staticmethod
    def failed(rows: int, failure: str) -> Outcome:
        """A step that failed: every sampling row is poisoned."""
        tokens, flags = np.zeros(rows, np.int32), np.full(rows, POISONED, np.uint8)
        return Outcome(tokens, flags, None, {}, failure)


class TokenChooser:
    """Keeps sampler and stop matcher told of whose slot is whose. On the engine's thread."""

    def __init__(
        self, core: EngineCore, sampler: Sampler, stops: StopMatcher, max_slots: int
    ) -> None:
        self._core = core
        self._sampler = sampler
        self._stops = stops
        # Whose sampling state each slot holds. Compared on every step, so that admission,
        # retraction and slot reuse need no bookkeeping of their own.
        self._slot_owner = np.zeros(max_slots, np.uint64)

    def choose(
        self, logits: torch.Tensor | None, requests: NDArray[np.uint64], sampling: Sampling
    ) -> Outcome:
        """One token per sampling row. logits: float32 [L, V], None when no row samples."""
        if logits is None or not len(sampling.rows):
            empty = np.empty(0, np.int32)
            nothing = SampleResult(empty, None, np.empty(0, np.bool_))
            return Outcome(empty, np.empty(0, np.uint8), nothing, {})
        self._adopt_slots(sampling.slots, requests)
        alive = self._slot_owner[sampling.slots] == requests
        if not alive.all():  # cancelled since the plan, before they had any sampling state
            return self._sample_some(logits, sampling, np.flatnonzero(alive))
        return self._decide(logits, sampling.slots, sampling.positions)

    def _sample_some(
        self, logits: torch.Tensor, sampling: Sampling, rows: NDArray[np.int64]
    ) -> Outcome:
        """Sample these rows only; the tokens of the others are nobody's."""
        count = len(sampling.rows)
        whole = Outcome(np.zeros(count, np.int32), np.zeros(count, np.uint8), None, {})
        poisoned = np.zeros(count, np.bool_)
        logprobs: list[TokenLogprob | None] = [None] * count
        if len(rows):
            chosen = logits[torch.from_numpy(rows).to(logits.device)]
            some = self._decide(chosen, sampling.slots[rows], sampling.positions[rows])
            whole.tokens[rows], whole.flags[rows] = some.tokens, some.flags
            whole.stops = {int(rows[i]): match for i, match in some.stops.items()}
            if some.result is not None:
                poisoned[rows] = some.result.poisoned
                for i, logprob in zip(rows, some.result.logprobs or (), strict=False):
                    logprobs[i] = logprob
        whole.result = SampleResult(whole.tokens, logprobs, poisoned)
        return whole

    def _decide(
        self, logits: torch.Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> Outcome:
        result = self._sampler.sample(logits, slots, positions)
        stop_flags, stops = self._stops.check(slots, result.tokens)
        flags = np.where(stop_flags != 0, FINISH, GO_ON).astype(np.uint8)
        flags[result.poisoned] = POISONED
        return Outcome(result.tokens.astype(np.int32, copy=False), flags, result, stops)

    def _adopt_slots(self, slots: NDArray[np.int64], requests: NDArray[np.uint64]) -> None:
        """Give slots whose request changed their new sampling and stop state."""
        for i in np.flatnonzero(self._slot_owner[slots] != requests):
            with self._core.lock:
                live = self._core.ledger.get(int(requests[i]))
                if live is None:  # cancelled since the plan; its token will be dropped
                    continue
                prompt, output = live.sampling_history()
            slot = int(slots[i])
            self._sampler.add(slot, live.request.sampling, prompt, output)
            # A first token that is handed over ends nothing here: the reader looks at it.
            stop = StopParams() if live.hands_over else live.request.stop
            self._stops.add(slot, stop, output)
            self._slot_owner[slot] = requests[i]

    def drop(self, slots: NDArray[np.int32]) -> None:
        """Forget the slots that a plan has voided."""
        for slot in slots.tolist():
            if self._slot_owner[slot]:
                self._sampler.drop(slot)
                self._stops.drop(slot)
                self._slot_owner[slot] = 0
