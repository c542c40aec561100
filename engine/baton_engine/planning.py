"""Reading a scheduler's plan: who was admitted, started, retracted, and what to fetch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton_engine.batch import StepInput
from baton_engine.core import EngineCore, now_us
from baton_engine.events import Admitted, FailReason, FinishReason, Hashes
from baton_engine.ledger import LiveRequest
from baton_engine.request import EngineRequest
from baton_engine.stopping import stop_match
from baton_scheduler import FinishReason as SchedulerFinish
from baton_scheduler import Step


@dataclass(frozen=True, slots=True)
class StateOrder:
    """States of one group that peers should fill.

    Of an Await: the one at the prompt's end, then perhaps a snapshot to keep. Of others: the one
    that goes farthest, or else one that goes less far.
    """

    group: int
    indices: NDArray[np.int32]  # [n] the page of tokens after whose last one the state stands
    pages: NDArray[np.int32]  # [n] target pages of the group's arena; the same one for alternatives
    hashes: Hashes  # [n, 16]


@dataclass(frozen=True, slots=True)
class FetchOrder:
    """Pages of one request that peers should fill; ends in exactly one fetch_ended."""

    handle: int
    request: EngineRequest
    awaits: bool  # follow the prefill worker, not the sources; end with its first token
    prefill_lost: bool  # known already: end at once
    indices: NDArray[np.int32]  # [n] page indices in the chain, ascending and contiguous
    pages: NDArray[np.int32]  # [n] target pages of the arena
    hashes: Hashes  # [n, 16]
    states: tuple[StateOrder, ...] = ()  # of each group beside the tokens that needs one


def step_input(step: Step) -> StepInput:
    """The part of a plan that ranks execute; views, valid as long as the step's."""
    return StepInput(
        rows=step.rows,
        token_ids=step.token_ids,
        page_deltas=step.page_deltas,
        slot_resets=step.slot_resets,
        copies=step.copies,
        states=step.state_pages.reshape(-1, 2),
    )


def note_plan(core: EngineCore, step: Step) -> list[FetchOrder]:
    """Write the plan's news to the outbox; return the fetches to begin. Lock held."""
    if len(step.evicted_hashes):
        core.outbox.note_evicted(step.evicted_hashes.copy())
    for handle in step.retracted:
        live = core.ledger.get(int(handle))
        if live is not None:
            core.note_sealed(live, 0)
    for handle in step.expired_requests:
        live = core.ledger.get(int(handle))
        if live is not None:
            core.fail(
                live,
                FailReason.DEADLINE_EXCEEDED,
                f"the reader did not fetch the computed prompt in time: {live.request.goal}",
            )
    admitted = _note_admissions(core, step)
    _note_starts(core, step)
    return _fetch_orders(core, step, admitted)


def _note_admissions(core: EngineCore, step: Step) -> list[LiveRequest]:
    """Tell first admissions; return the Await attempts that were admitted to fetch."""
    awaiting = []
    for handle, (_, reused) in zip(
        step.admitted_requests.tolist(), step.admitted.tolist(), strict=True
    ):
        live = core.ledger.get(handle)
        if live is None:
            continue
        if live.admitted_us is None:
            live.admitted_us = now_us()
            live.cost.queue_us = live.admitted_us - live.submitted_us
            live.cost.reused_tokens = reused
            core.outbox.events.append(Admitted(*live.key, reused))
            if live.awaiting:
                awaiting.append(live)
        core.note_sealed(live, reused // core.page_size)
    return awaiting


def _note_starts(core: EngineCore, step: Step) -> None:
    """The first tokens of Await attempts are official now; some are also the last."""
    for handle in step.started_requests:
        live = core.ledger.get(int(handle))
        if live is None:
            continue
        if live.first_token is None:
            raise RuntimeError(f"request {live.key} started decoding without a first token")
        if live.first_known_us is not None:
            live.cost.handover_us = now_us() - live.first_known_us
        core.emit(live, (live.first_token,), (live.first_logprob,))
    for handle, reason in zip(step.finished_requests, step.finished_reasons, strict=True):
        live = core.ledger.get(int(handle))
        if live is not None and reason == SchedulerFinish.DEADLINE:
            core.fail(live, FailReason.DEADLINE_EXCEEDED, "the request's deadline has passed")
            continue
        if live is None or live.first_token is None:
            continue
        match = stop_match(live.request.stop, live.first_token)
        if match is not None and reason == SchedulerFinish.FLAG:
            core.finish(live, match.reason, match.matched)
        else:
            core.finish(live, FinishReason.LENGTH)


def _fetch_orders(core: EngineCore, step: Step, awaiting: list[LiveRequest]) -> list[FetchOrder]:
    orders: dict[int, FetchOrder] = {}
    for live in awaiting:  # a fetch even when every page is here: the first token is not
        orders[live.handle] = _order(step, live, np.empty(0, np.int64))
    if len(step.fetch_requests):
        bounds = np.flatnonzero(np.diff(step.fetch_requests)) + 1
        for entries in np.split(np.arange(len(step.fetch_requests)), bounds):
            handle = int(step.fetch_requests[entries[0]])
            wanted = core.ledger.get(handle)
            if wanted is None:  # over already, but the scheduler still waits for the fetch's end
                core.scheduler.fetch_ended(handle, None, now_us())
            else:
                orders[handle] = _order(step, wanted, entries)
    return list(orders.values())


def _order(step: Step, live: LiveRequest, entries: NDArray[np.int64]) -> FetchOrder:
    groups = step.fetch_groups[entries]
    states = tuple(
        StateOrder(int(group), *_entries(step, entries[groups == group]))
        for group in np.unique(groups[groups > 0])
    )
    indices, pages, hashes = _entries(step, entries[groups == 0])
    return FetchOrder(
        handle=live.handle,
        request=live.request,
        awaits=live.awaiting,
        prefill_lost=live.prefill_lost,
        indices=indices,
        pages=pages,
        hashes=hashes,
        states=states,
    )


def _entries(
    step: Step, entries: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], Hashes]:
    pages = step.fetch_pages[entries]
    return pages[:, 0], pages[:, 1], step.fetch_hashes[entries]
