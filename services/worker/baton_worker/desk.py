"""Where routers' commands meet the engine's events: who started what, and who is told."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton_engine import Done, EngineRefusal, EngineRequest, Event, Failed, Grammar, StepEvents
from baton_rpc import Refusal
from baton_worker.constraints import Constraints
from baton_worker.mailbox import Mailbox
from baton_worker.requests import engine_request, page_hashes
from baton_worker.role import Role
from baton_worker.updates import error_reason, pool_message, refused, update_of

log = logging.getLogger("baton.worker")

Key = tuple[str, int]  # request id, attempt


class Attempts(Protocol):
    """What the desk asks of the engine."""

    def submit(self, request: EngineRequest) -> None: ...
    def cancel(self, request_id: str, attempt: int) -> bool: ...
    def prefill_lost(self, request_id: str, attempt: int) -> bool: ...
    def forget(self, hashes: NDArray[np.uint8]) -> int: ...


class Tally(Protocol):
    """What the desk counts."""

    def request_failed(self, reason: str) -> None: ...


@dataclass(eq=False, slots=True)
class Session:
    """One router's stream. Its end is the end of all that it started."""

    router: str
    mailbox: Mailbox
    live: set[Key] = field(default_factory=set)


class Desk:
    """Used on the event loop only; nothing here waits."""

    def __init__(
        self,
        engine: Attempts,
        role: Role,
        vocab_size: int,
        tally: Tally,
        constraints: Constraints,
    ) -> None:
        self._engine = engine
        self._constraints = constraints
        # Attempts whose constraint is being compiled, with the commands that came meanwhile.
        self._compiling: dict[Key, list[wire.Command]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._role = role
        self._vocab_size = vocab_size
        self._tally = tally
        self._sessions: set[Session] = set()
        self._owners: dict[Key, Session] = {}
        self._step = 0
        self._pool = wire.PoolState()
        self._draining = False
        self._finished = False
        self._left = asyncio.Event()  # a session has ended

    # ---- streams

    def open(self, router: str) -> Session:
        """A router has introduced itself."""
        session = Session(router, Mailbox(router))
        self._sessions.add(session)
        if self._draining:
            session.mailbox.note(self._step, self._pool, draining=True)
        if self._finished:
            session.mailbox.finish()
        log.info("router %s is here", router)
        return session

    def close(self, session: Session) -> None:
        """A stream is over: cancel what it started. Idempotent."""
        if session not in self._sessions:
            return
        self._sessions.discard(session)
        session.mailbox.close()
        log.info("router %s is gone; cancelling %d requests", session.router, len(session.live))
        for key in session.live:
            del self._owners[key]
            self._engine.cancel(*key)
        session.live.clear()
        self._left.set()

    def drain(self) -> None:
        """Tell every router, also those yet to come, to go elsewhere."""
        self._draining = True
        self.note_pool(self._pool)

    def note_pool(self, pool: wire.PoolState) -> None:
        """The pool has changed without a step."""
        self._pool = pool
        for session in self._sessions:
            session.mailbox.note(self._step, pool, self._draining)

    async def finish(self) -> None:
        """End every stream in good order; returns when all routers have been told everything."""
        self._finished = True
        for session in self._sessions:
            session.mailbox.finish()
        while self._sessions:
            self._left.clear()
            await self._left.wait()

    # ---- commands

    def obey(self, session: Session, command: wire.Command) -> None:
        """Carry out one command. Raises Refusal for one that this worker cannot read."""
        later = self._compiling.get(_key(command))
        if later is not None:
            later.append(command)
            return
        match command.WhichOneof("command"):
            case "start" if command.start.HasField("constraint"):
                self._compiling[_key(command)] = []
                task = asyncio.create_task(self._compile(session, command.start))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case "start":
                self._start(session, command.start)
            case "cancel":
                key = (command.cancel.request_id, command.cancel.attempt)
                if key in session.live:
                    self._engine.cancel(*key)
            case "prefill_lost":
                key = (command.prefill_lost.request_id, command.prefill_lost.attempt)
                if key in session.live:
                    self._engine.prefill_lost(*key)
            case "forget":
                self._engine.forget(page_hashes(command.forget))
            case _:
                raise Refusal(
                    errors.ERROR_REASON_MISSING_FIELD,
                    "a command is none of start, cancel, prefill_lost, forget; "
                    "does the router speak a newer wire version?",
                    {"field": "commands.command"},
                )

    async def _compile(self, session: Session, start: wire.StartRequest) -> None:
        key = (start.request_id, start.attempt)
        grammar, refusal = None, None
        try:
            grammar = await self._constraints.grammar(start)
        except Refusal as error:
            refusal = error
        except Exception:
            log.exception("compiling the constraint of %s failed", key)
            refusal = Refusal(errors.ERROR_REASON_INTERNAL, "the constraint could not be compiled")
        later = self._compiling.pop(key)
        if session not in self._sessions:
            return
        if refusal is not None:
            self._refuse(session, key, refusal.reason, refusal.message)
        elif any(command.HasField("cancel") for command in later):
            self._refuse(session, key, errors.ERROR_REASON_CANCELLED, "cancelled")
        else:
            self._start(session, start, grammar)
        for command in later:
            self.obey(session, command)

    def _start(
        self, session: Session, start: wire.StartRequest, grammar: Grammar | None = None
    ) -> None:
        key = (start.request_id, start.attempt)
        try:
            self._engine.submit(engine_request(start, self._role, self._vocab_size, grammar))
        except EngineRefusal as refusal:
            self._refuse(session, key, error_reason(refusal.reason), refusal.message)
        except Refusal as refusal:
            self._refuse(session, key, refusal.reason, refusal.message)
        else:
            self._owners[key] = session
            session.live.add(key)

    def _refuse(self, session: Session, key: Key, reason: errors.ErrorReason, message: str) -> None:
        self._tally.request_failed(_word(errors.ErrorReason.Name(reason)))
        session.mailbox.put(refused(*key, reason, message))

    # ---- events

    def deliver(self, step: StepEvents) -> None:
        """Everything that happened in a step, to whom it concerns."""
        for event in step.events:
            self._tell(event)
        self._step, self._pool = step.step, pool_message(step.pool)
        for session in self._sessions:
            session.mailbox.note(self._step, self._pool, self._draining)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._tally.request_failed(event.reason.value.lower())
        key = (event.request_id, event.attempt)
        session = self._owners.get(key)
        if session is None:  # its router is gone
            return
        if isinstance(event, Done | Failed):
            del self._owners[key]
            session.live.discard(key)
        update = update_of(event)
        if update is not None:
            session.mailbox.put(update)


def _key(command: wire.Command) -> Key:
    kind = command.WhichOneof("command")
    # Pages are forgotten whoever computed them; such a command, like an empty one, names nobody.
    named = command.cancel if kind in (None, "forget") else getattr(command, kind)
    return (named.request_id, named.attempt)


def _word(reason: str) -> str:
    return reason.removeprefix("ERROR_REASON_").lower()
