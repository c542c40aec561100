"""The engine's thread: plan, run, sample, complete, tell."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baton_engine.batch import KIND, QUERY, SAMPLES, Sampling, StepInput, StepOutput, sampling_rows
from baton_engine.choosing import Outcome, TokenChooser
from baton_engine.core import EngineCore, Outbox, now_us, stack_hashes
from baton_engine.drafting import Drafting, drafting_after, note_verified, offer
from baton_engine.events import FailReason, PoolState, StepEvents, StepTimes
from baton_engine.guessing import DraftOrder
from baton_engine.planning import FetchOrder, note_plan, step_input
from baton_engine.poison import FreePagePoison
from baton_engine.ports import Sampler, StopMatcher
from baton_engine.sealing import lease_sealed, list_sealed
from baton_engine.settling import cancel_silent_rows, note_sealed, note_tokens
from baton_scheduler import Step

log = logging.getLogger(__name__)

# How often an idle engine looks at its clock while leases or holds can expire.
_EXPIRY_LOOK_S = 0.25


class RanksLost(RuntimeError):
    """The ranks no longer agree on where they are; the engine cannot go on."""


# What was asked for, and the guesses [W, k].
_Guessed = tuple[Drafting, NDArray[np.int32]]


class StepRunner(Protocol):
    """All ranks of the worker as one."""

    def run(self, step: StepInput, wishes: NDArray[np.float64] | None = None) -> StepOutput | None:
        """None for a step without rows. wishes: the sampler's. RanksLost: the group is broken."""

    def draft(self, order: DraftOrder) -> NDArray[np.int32]:
        """Guesses [W, k] after the step that ran last, -1 behind a row's last one. RanksLost."""

    def finish(self) -> None:
        """Return when what the last step wrote is in memory, on all ranks. RanksLost."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the thread hands to the event loop after a step."""

    events: StepEvents
    fetches: tuple[FetchOrder, ...]


class StepLoop:
    """Owns the runner, the sampler and the stop matcher; nobody else calls them."""

    def __init__(
        self,
        core: EngineCore,
        runner: StepRunner,
        sampler: Sampler,
        stops: StopMatcher,
        publish: Callable[[Published], None],
        max_slots: int,
        poison: FreePagePoison | None = None,
        *,
        drafts: bool = False,
        captures: bool = False,
    ) -> None:
        """drafts: the runner guesses tokens, and the scheduler takes guesses. captures: its steps
        may be captured, and then draw what they can."""
        self._core = core
        self._poison = poison
        self._runner = runner
        self._chooser = TokenChooser(core, sampler, stops, max_slots, captures=captures)
        self._publish = publish
        self._drafts = drafts
        self._step_number = 0
        self._thread = threading.Thread(target=self._run, name="baton-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    # -- the loop ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except RanksLost as lost:
            self._give_up(str(lost))
        except Exception as error:  # the last line: nothing may die here without a word
            reference = uuid.uuid4().hex[:12]
            log.exception("engine thread failed (reference %s)", reference)
            self._give_up(f"engine thread failed: {error} (reference {reference})")

    def _turn(self) -> bool:
        """One plan, and its step if it has rows. False: stop."""
        core = self._core
        with core.lock:
            if core.stopping:
                return False
            if core.failure is not None:
                raise RanksLost(core.failure)
            core.take_changed()
            started = now_us()
            if self._poison is not None:
                self._poison.fill_free(core.scheduler)
            step = core.scheduler.plan(started)
            fetches = note_plan(core, step)
            if self._poison is not None:
                for order in fetches:
                    self._poison.fill_targets(0, order.pages)
                    for states in order.states:
                        self._poison.fill_targets(states.group, states.pages)
            plan_us = now_us() - started
        self._chooser.drop(step.slot_resets)
        times = None
        runs = bool(len(step.rows))
        if runs:
            times = self._execute(step, plan_us)
        else:
            inputs = step_input(step)
            if not inputs.is_empty:
                self._runner.run(inputs)
                self._runner.finish()
        self._tell(fetches, times)
        if not runs:
            self._rest()
        return True

    def _rest(self) -> None:
        """Sleep until something changes that a plan may act on."""
        core = self._core
        with core.lock:
            if core.take_changed() or core.stopping or core.failure is not None:
                return
            stats = core.scheduler.stats()
            expiring = stats.leases or stats.prefilled
            core.lock.wait(_EXPIRY_LOOK_S if expiring else None)

    def _execute(self, step: Step, plan_us: int) -> StepTimes:
        core = self._core
        rows, requests = step.rows, step.requests.copy()
        prompt = rows[:, KIND] == 0
        prompt_tokens = int(rows[prompt, QUERY].sum())
        decode_rows = int(len(rows) - np.count_nonzero(prompt))
        outcome, guessed = self._run_step(step)

        started = now_us()
        with core.lock:
            if outcome.failure:
                cancel_silent_rows(core, step, outcome.failure)
            for row in np.flatnonzero(prompt):
                live = core.ledger.get(int(requests[row]))
                if live is not None:
                    live.cost.computed_tokens += int(rows[row, QUERY])
            sampling = requests[rows[:, SAMPLES] != 0]
            completion = core.scheduler.complete(
                step, outcome.tokens, outcome.flags, started, accepted=outcome.accepted
            )
            note_sealed(core, completion)
            sealed = lease_sealed(core, completion)
            note_tokens(core, sampling, outcome, completion)
            if guessed is not None:
                offer(core, *guessed)
        list_sealed(core, sealed)
        return StepTimes(
            decode_rows=decode_rows,
            prompt_tokens=prompt_tokens,
            plan_us=plan_us,
            forward_us=outcome.forward_us,
            sample_us=outcome.sample_us,
            draft_us=outcome.draft_us,
            complete_us=now_us() - started,
        )

    # -- model and sampler ------------------------------------------------------------------

    def _run_step(self, step: Step) -> tuple[Outcome, _Guessed | None]:
        """Forward, sample, draft. A failure poisons the whole step, never the engine."""
        inputs = step_input(step)
        sampling = sampling_rows(inputs)
        requests = step.requests[sampling.rows]
        started = now_us()
        try:
            wishes = self._chooser.wishes(requests, sampling)
            asked = now_us()
            output = self._runner.run(inputs, wishes)
            forwarded = now_us()
            outcome = self._chooser.choose(output, requests, sampling)
            sampled = now_us()
            guessed = self._draft(step, inputs, sampling, outcome) if self._drafts else None
            drafted = now_us()
            self._runner.finish()  # what is completed next may be sealed, leased and read
        except RanksLost:
            raise
        except Exception as error:
            reference = uuid.uuid4().hex[:12]
            log.exception("step %d failed (reference %s)", step.sequence, reference)
            failure = f"the step failed: {type(error).__name__} (reference {reference})"
            return Outcome.failed(len(sampling.rows), failure), None
        outcome.forward_us = forwarded - asked + now_us() - drafted
        outcome.sample_us = sampled - forwarded + asked - started
        outcome.draft_us = drafted - sampled
        return outcome, guessed

    def _draft(
        self, step: Step, inputs: StepInput, sampling: Sampling, outcome: Outcome
    ) -> _Guessed:
        """Before the step is completed: what it seals holds the drafting layer's entries too."""
        drafting = drafting_after(self._core, inputs, step.requests, sampling, outcome)
        with self._core.lock:
            note_verified(self._core, sampling, outcome)
        return drafting, self._runner.draft(drafting.order)

    # -- telling ----------------------------------------------------------------------------

    def _tell(
        self, fetches: list[FetchOrder], times: StepTimes | None, *, anyway: bool = False
    ) -> None:
        with self._core.lock:
            outbox = self._core.take_outbox()
            pool = self._core.pool()
        if outbox or fetches or times is not None or anyway:
            self._publish(self._package(outbox, pool, fetches, times))

    def _package(
        self,
        outbox: Outbox,
        pool: PoolState,
        fetches: list[FetchOrder],
        times: StepTimes | None,
    ) -> Published:
        self._step_number += 1
        events = StepEvents(
            step=self._step_number,
            events=tuple(outbox.events),
            pool=pool,
            times=times,
            sealed=stack_hashes(outbox.sealed),
            evicted=stack_hashes(outbox.evicted),
            pulls=tuple(outbox.pulls),
        )
        return Published(events, tuple(fetches))

    def _give_up(self, reason: str) -> None:
        """The engine cannot go on: fail every attempt, then say so."""
        log.error("engine stopped: %s", reason)
        with self._core.lock:
            self._core.failure = reason
            for live in self._core.ledger:
                self._core.fail(live, FailReason.INTERNAL, reason)
        self._tell([], None, anyway=True)
