"""Rank 0's half of drafting: what a step's outcome says about the next guesses, and offering them.

A guess changes nothing but the number of tokens a step brings: it is fed beside the last token,
and stands only if it is what would have been sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton_engine.batch import CONTEXT, KIND, QUERY, SAMPLES, Sampling, StepInput
from baton_engine.choosing import GO_ON, Outcome
from baton_engine.core import EngineCore
from baton_engine.guessing import FOLLOWING, KEPT, WANTED, DraftOrder
from baton_scheduler import Reply


@dataclass(frozen=True, slots=True)
class Drafting:
    """An order, and where its guesses go."""

    order: DraftOrder
    requests: NDArray[np.uint64]  # [W], the rows that want guesses
    positions: NDArray[np.int64]  # [W] index in prompt + output of the first guess


def drafting_after(
    core: EngineCore,
    step: StepInput,
    requests: NDArray[np.uint64],
    sampling: Sampling,
    outcome: Outcome,
) -> Drafting:
    """What to draft after a step with this outcome. requests: uint64 [R], of the step's rows."""
    rows, counts = step.rows, outcome.counts
    asked = np.zeros((len(rows), 3), np.int32)
    asked[:, KEPT] = rows[:, QUERY]
    decode = rows[sampling.rows, KIND] == 1
    asked[sampling.rows[decode], KEPT] = counts[decode]
    asked[sampling.rows, FOLLOWING] = outcome.tokens[np.cumsum(counts) - 1]
    asked[sampling.rows, WANTED] = outcome.flags == GO_ON
    with core.lock:
        for row in np.flatnonzero(rows[:, KIND] == 0).tolist():
            live = core.ledger.get(int(requests[row]))
            if live is None or live.hands_over:  # another worker goes on
                asked[row, WANTED] = 0
            if live is not None and not rows[row, SAMPLES]:
                follows = int(rows[row, CONTEXT] + rows[row, QUERY])
                asked[row, FOLLOWING] = live.token_at(follows)
    wanted = np.flatnonzero(asked[:, WANTED])
    positions = rows[wanted, CONTEXT].astype(np.int64) + asked[wanted, KEPT] + 1
    return Drafting(DraftOrder(asked), requests[wanted], positions)


def note_verified(core: EngineCore, sampling: Sampling, outcome: Outcome) -> None:
    """Count the guesses of a step. Lock held."""
    if sampling.guesses is None or outcome.failure:
        return
    core.drafted.proposed += int(sampling.samples.sum()) - len(sampling.samples)
    core.drafted.accepted += len(outcome.tokens) - len(outcome.flags)


def offer(core: EngineCore, drafting: Drafting, guesses: NDArray[np.int32]) -> None:
    """Give the scheduler what may follow. Lock held, the step completed."""
    known = (guesses >= 0).sum(1).tolist()
    for handle, position, row, count in zip(
        drafting.requests.tolist(), drafting.positions.tolist(), guesses, known, strict=True
    ):
        if core.scheduler.draft(handle, position, row[:count]) is Reply.REJECTED:
            raise RuntimeError(f"the scheduler rejects a guess for position {position} of {handle}")
