"""From logits to tokens and to which requests they end, slot by slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baton_engine.batch import Sampling, StepOutput
from baton_engine.core import EngineCore
from baton_engine.events import TokenLogprob
from baton_engine.ports import Sampler, StopMatch, StopMatcher
from baton_engine.request import StopParams
from baton_engine.verifying import Drawing, Drawn

# The scheduler's flags of a sampling row.
GO_ON, FINISH, POISONED = 0, 1, 2


@dataclass(slots=True)
class Outcome:
    """What sampling decided."""

    tokens: NDArray[np.int32]  # [sum of accepted], row after row
    flags: NDArray[np.uint8]  # [S], one per sampling row
    accepted: NDArray[np.int32] | None = None  # [S] tokens each row brings; None: one each
    # None when no row asked; else one per token, None for the rows that did not ask.
    logprobs: Sequence[TokenLogprob | None] | None = None
    stops: dict[int, StopMatch] = field(default_factory=dict)  # by sampling row
    failure: str = ""  # why the step failed; empty when it did not
    forward_us: int = 0
    sample_us: int = 0
    draft_us: int = 0

    @staticmethod
    def failed(rows: int, failure: str) -> Outcome:
        """A step that failed: every sampling row is poisoned."""
        tokens, flags = np.zeros(rows, np.int32), np.full(rows, POISONED, np.uint8)
        return Outcome(tokens, flags, failure=failure)

    @property
    def counts(self) -> NDArray[np.int32]:
        """How many tokens each row brings, int32 [S]."""
        return np.ones(len(self.flags), np.int32) if self.accepted is None else self.accepted


class TokenChooser:
    """Keeps sampler and stop matcher told of whose slot is whose. On the engine's thread."""

    def __init__(
        self,
        core: EngineCore,
        sampler: Sampler,
        stops: StopMatcher,
        max_slots: int,
        *,
        captures: bool = False,
    ) -> None:
        """captures: steps may be captured, and then draw what they can."""
        self._core = core
        self._sampler = sampler
        self._stops = stops
        self._captures = captures
        # Whose sampling state each slot holds. Compared on every step, so that admission,
        # retraction and slot reuse need no bookkeeping of their own.
        self._slot_owner = np.zeros(max_slots, np.uint64)

    def wishes(
        self, requests: NDArray[np.uint64], sampling: Sampling
    ) -> NDArray[np.float64] | None:
        """Before a step: slots are told of their requests; what a captured one is to draw by."""
        self._adopt_slots(sampling.slots, requests)
        return self._sampler.wishes(*sampling.of_logits()) if self._captures else None

    def choose(
        self, output: StepOutput | None, requests: NDArray[np.uint64], sampling: Sampling
    ) -> Outcome:
        """The tokens of the sampling rows, after `wishes`. output: None without any row."""
        if output is None or not len(sampling.rows):
            return Outcome(np.empty(0, np.int32), np.empty(0, np.uint8))
        alive = self._slot_owner[sampling.slots] == requests
        drawing = Drawing(
            self._sampler, self._stops, output.logits, *sampling.of_logits(), output.drawn
        )
        if sampling.guesses is not None:
            return self._verify(drawing, sampling, sampling.guesses, alive)
        if alive.all():
            drawn = drawing.all()
        else:  # cancelled since the plan, before they had any sampling state
            drawn = Drawn.nothing(len(alive))
            drawing.into(drawn, np.flatnonzero(alive))
        flags = np.where(drawn.ended, FINISH, GO_ON).astype(np.uint8)
        flags[drawn.poisoned] = POISONED
        return Outcome(drawn.tokens, flags, None, drawn.logprobs, drawn.stops)

    def _verify(
        self,
        drawing: Drawing,
        sampling: Sampling,
        guesses: NDArray[np.int32],
        alive: NDArray[np.bool_],
    ) -> Outcome:
        """Of each row the guesses that are what would have been sampled, and one token more.

        Rows without a memory are drawn at once, at every position. What a row with one (penalties,
        a grammar, stop strings) draws depends on the tokens before, so its positions come one
        after the other, for as long as guesses hold good.
        """
        samples, slots = sampling.samples, sampling.slots
        starts = np.cumsum(samples) - samples
        row_of = np.repeat(np.arange(len(samples)), samples)
        drawn = Drawn.nothing(len(row_of))
        remembers = self._sampler.remembers(slots) | self._stops.remembers(slots)
        drawing.into(drawn, np.flatnonzero((alive & ~remembers)[row_of]))
        at = starts[alive & remembers]
        while len(at):
            drawing.into(drawn, at)
            at = at[drawn.goes_on(at, guesses[at])] + 1  # no guess follows a row's last token

        everything = np.arange(len(row_of))
        on = drawn.goes_on(everything, guesses)
        on &= alive[row_of]
        on[:-1] &= ~drawn.poisoned[1:]  # the step after this one says so
        last = np.minimum.reduceat(np.where(on, len(row_of), everything), starts)
        flags = np.where(drawn.ended[last], FINISH, GO_ON).astype(np.uint8)
        flags[drawn.poisoned[starts]] = POISONED
        kept = np.flatnonzero(everything <= last[row_of])
        logprobs = drawn.logprobs
        return Outcome(
            drawn.tokens[kept],
            flags,
            (last - starts + 1).astype(np.int32),
            None if logprobs is None else [logprobs[at] for at in kept.tolist()],
            {row: drawn.stops[at] for row, at in enumerate(last.tolist()) if at in drawn.stops},
        )

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
