"""Reading what a step did: sealed pages, tokens, requests that ended. All under the lock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from baton_engine.batch import SAMPLES
from baton_engine.choosing import POISONED, Outcome
from baton_engine.core import EngineCore, now_us
from baton_engine.events import FailReason, FinishReason, Prefilled
from baton_engine.ledger import LiveRequest
from baton_engine.ports import StopMatch
from baton_scheduler import Completion, Step
from baton_scheduler import FinishReason as SchedulerFinish


def cancel_silent_rows(core: EngineCore, step: Step, failure: str) -> None:
    """A failed step: rows that do not sample have no flag, so they are cancelled."""
    for handle in step.requests[step.rows[:, SAMPLES] == 0]:
        live = core.ledger.get(int(handle))
        if live is not None:
            core.cancel(live, FailReason.INTERNAL, failure)


def note_sealed(core: EngineCore, completion: Completion) -> None:
    """Tell what can be leased now; what checksums are known of those pages is of earlier bytes."""
    if not len(completion.sealed_pages):
        return
    groups = completion.sealed_groups
    if core.checksums is not None:
        for group in np.unique(groups).tolist():
            core.checksums.forget(completion.sealed_pages[groups == group], group)
    full = np.ones(len(groups), np.bool_)
    owners, indices = completion.sealed_requests, completion.sealed_indices
    start = 0
    for at in _last_of_owner(owners):
        live = core.ledger.get(int(owners[at]))
        if live is not None and live.hands_over:
            # What ends in its partial last page is leased by name, never searched for.
            tail = len(live.request.token_ids) // core.page_size
            full[start : at + 1] = indices[start : at + 1] < tail
        start = at + 1
    tokens = np.flatnonzero(groups == 0)
    for at in tokens[_last_of_owner(owners[tokens])]:
        live = core.ledger.get(int(owners[at]))
        if live is not None:
            core.note_sealed(live, int(indices[at]) + 1)
    core.outbox.sealed.append(completion.sealed_hashes[full].copy())


def _last_of_owner(owners: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each run of equal owners ends."""
    return np.flatnonzero(np.append(owners[1:] != owners[:-1], len(owners) > 0))


def note_tokens(
    core: EngineCore, requests: NDArray[np.uint64], outcome: Outcome, completion: Completion
) -> None:
    """Tell the tokens of the sampling rows, in row order, and what they ended."""
    finished = dict(
        zip(
            completion.finished_requests.tolist(),
            completion.finished_reasons.tolist(),
            strict=True,
        )
    )
    prefilled = set(completion.prefilled_requests.tolist())
    tokens, logprobs = outcome.tokens.tolist(), outcome.logprobs
    end = 0
    for i, (handle, count) in enumerate(
        zip(requests.tolist(), outcome.counts.tolist(), strict=True)
    ):
        start, end = end, end + count
        live = core.ledger.get(handle)
        if live is None:
            continue
        if outcome.flags[i] == POISONED:
            _poison(core, live, outcome)
            continue
        if not live.emitted and live.admitted_us is not None:
            live.cost.prefill_us = now_us() - live.admitted_us
        told = () if logprobs is None else logprobs[start:end]
        if live.hands_over:
            if handle in prefilled:
                live.prefilled = True
                core.outbox.events.append(
                    Prefilled(
                        *live.key,
                        live.sealed_pages,
                        tokens[start],
                        told[0] if told else None,
                        replace(live.cost),
                    )
                )
            continue
        core.emit(live, tokens[start:end], told)
        if handle in finished:
            _finish(core, live, finished[handle], outcome.stops.get(i))


def _poison(core: EngineCore, live: LiveRequest, outcome: Outcome) -> None:
    if outcome.failure:
        core.fail(live, FailReason.INTERNAL, outcome.failure)
    else:
        core.fail(
            live,
            FailReason.NUMERIC,
            f"no token can be chosen at position {live.next_position}: "
            + (
                "the logits hold NaN or infinity"
                if live.request.sampling.grammar is None
                else "the grammar allows none, or the logits hold NaN or infinity"
            ),
        )


def _finish(core: EngineCore, live: LiveRequest, reason: int, stop: StopMatch | None) -> None:
    if reason == SchedulerFinish.FLAG and stop is not None:
        core.finish(live, stop.reason, stop.matched)
    else:
        core.finish(live, FinishReason.LENGTH)
