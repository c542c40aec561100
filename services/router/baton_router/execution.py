"""One request from its plan to its last token: attempts, failover, cancellation.

    async with Execution(...) as execution:
        while (batch := await execution.next_tokens()) is not None:
            ...
        execution.usage(...)

An attempt runs at one decode worker, with or without a prefill worker beside
it. Whatever ends an attempt before its end (a worker dies, refuses, drains),
the next one starts with everything emitted so far. Leaving the `async with`
early (the client cancelled, its deadline passed, a stop string was found)
cancels at both workers at once.
"""

import asyncio
import logging
from dataclasses import dataclass
from types import TracebackType

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton.v1 import worker_pb2 as wire
from baton_router.attempt import Attempt
from baton_router.ledger import Gap, Ledger, NewTokens
from baton_router.placing import Placer
from baton_router.usage import Clock, total_usage
from baton_router.worker_link import WorkerLink
from baton_rpc import Refusal

log = logging.getLogger("baton.router")

# A worker that answers with one of these has done nothing: another may do it.
_ELSEWHERE = frozenset(
    {
        errors.ERROR_REASON_OVERLOADED,
        errors.ERROR_REASON_OUT_OF_PAGES,
        errors.ERROR_REASON_DRAINING,
        errors.ERROR_REASON_CANCELLED,
    }
)


@dataclass(frozen=True)
class Ending:
    """Why the tokens ended."""

    reason: pb.FinishReason
    matched_stop: str = ""


class Execution:
    """A `worker_link.Listener`. Used on one event loop."""

    def __init__(
        self, request_id: str, ledger: Ledger, placer: Placer, *, max_attempts: int
    ) -> None:
        self.request_id = request_id
        self.ledger = ledger
        self.clock = Clock()
        self.ending: Ending | None = None
        self._placer = placer
        self._max_attempts = max_attempts
        self._attempts: list[Attempt] = []
        self._refused: set[str] = set()  # decode workers that would not take this request
        self._lost: set[str] = set()  # those that were lost under it; taken again if need be
        self._deaths = 0
        self._refusal: Refusal | None = None  # the last worker's, in case no other takes it
        self._inbox: list[wire.RequestUpdate | WorkerLink] = []
        self._mail = asyncio.Event()

    # ---- worker_link.Listener

    def updated(self, link: WorkerLink, update: wire.RequestUpdate) -> None:
        """Updates of the prefill worker only matter for the books; the decode worker's are mail."""
        attempt = self._attempts[-1] if self._attempts else None
        if attempt is None or attempt.number != update.attempt:
            return
        if link is attempt.prefill:
            self._prefill_updated(attempt, update)
        elif link is attempt.decode:
            self._inbox.append(update)
            self._mail.set()

    def lost(self, link: WorkerLink) -> None:
        """A worker is gone."""
        attempt = self._attempts[-1] if self._attempts else None
        if attempt is None:
            return
        if link is attempt.decode:
            self._inbox.append(link)
            self._mail.set()
        elif link is attempt.prefill and not attempt.prompt_done:
            attempt.prefill_gone()
            self._placer.metrics.failover("prefill")
            self._mail.set()

    def _prefill_updated(self, attempt: Attempt, update: wire.RequestUpdate) -> None:
        kind = update.WhichOneof("update")
        if kind == "done":
            attempt.cost.prefill = update.done.cost
            attempt.prefill_finished()
            self._mail.set()  # usage() may be waiting for it
        elif kind == "failed":
            log.info("%s: prefill: %s", self.request_id, update.failed.message)
            attempt.prefill_gone()
            self._mail.set()

    # ---- tokens

    async def next_tokens(self) -> NewTokens | None:
        """The next tokens, None after the last. Raises Refusal when nobody can go on.

        Waits for a worker for as long as the placer does. `ending` is set when
        the last tokens are returned, or with None.
        """
        while self.ending is None:
            if not self._attempts or self._attempts[-1].over:
                await self._begin()
                continue  # it may have found that nothing is left to do
            if not self._inbox:
                self._mail.clear()
                await self._mail.wait()
            new = self._read_inbox()
            if new is not None:
                return new
        return None

    def _read_inbox(self) -> NewTokens | None:
        mail, self._inbox = self._inbox, []
        ids: list[int] = []
        logprobs: list[pb.TokenLogprob] = []
        for item in mail:
            if self._attempts[-1].over or self.ending is not None:
                break
            if isinstance(item, WorkerLink):
                self._died(f"worker {item.name} was lost")
            elif item.attempt == self._attempts[-1].number:
                new = self._apply(self._attempts[-1], item)
                if new is not None:
                    ids += new.token_ids
                    logprobs += new.logprobs
        return NewTokens(ids, logprobs) if ids else None

    def _apply(self, attempt: Attempt, update: wire.RequestUpdate) -> NewTokens | None:
        kind = update.WhichOneof("update")
        if kind == "tokens":
            return self._tokens(attempt, update.tokens)
        if kind == "admitted":
            attempt.cost.reused_tokens = update.admitted.reused_tokens
        elif kind == "done":
            attempt.cost.decode = update.done.cost
            attempt.done()
            self.ending = Ending(update.done.reason, update.done.matched_stop)
        elif kind == "failed":
            self._failed(update.failed)
        return None

    def _tokens(self, attempt: Attempt, tokens: wire.RequestTokens) -> NewTokens | None:
        if tokens.HasField("cost"):
            attempt.cost.decode = tokens.cost
        try:
            new = self.ledger.accept(tokens)
        except Gap as gap:
            log.error("%s at %s: %s", self.request_id, attempt.decode.name, gap)
            attempt.cancel()
            self._died(str(gap))
            return None
        if new.token_ids:
            attempt.prompt_computed()
            self.clock.tokens()
        return new

    # ---- attempts

    async def _begin(self) -> None:
        ledger = self.ledger
        if ledger.complete:
            # The worker died between the last token and saying that it was the last.
            self.ending = Ending(self._natural_end())
            return
        ledger.attempt += 1
        attempt = await self._placer.place(
            self.request_id,
            ledger,
            self,
            refused=self._refused,
            lost=self._lost,
            refusal=self._refusal,
        )
        self._attempts.append(attempt)

    def _natural_end(self) -> pb.FinishReason:
        last = self.ledger.emitted[-1] if self.ledger.emitted else -1
        if last in self._placer.eos_of(self.ledger):
            return pb.FINISH_REASON_EOS
        if last in self.ledger.stop_ids:
            return pb.FINISH_REASON_STOP_TOKEN
        return pb.FINISH_REASON_LENGTH

    def _died(self, why: str) -> None:
        """The attempt is over before its end; the next one goes elsewhere if it can."""
        attempt = self._attempts[-1]
        attempt.abandon()
        self._lost.add(attempt.decode_name)
        self._deaths += 1
        self._placer.metrics.failover("decode")
        if self._deaths >= self._max_attempts and not self.ledger.complete:
            raise Refusal(
                errors.ERROR_REASON_ATTEMPTS_EXHAUSTED,
                f"{self._deaths} workers were lost under this request, the last time because "
                f"{why}; it emitted {len(self.ledger.emitted)} tokens. Try again",
                {"attempts": str(self._deaths)},
            )
        log.warning("%s: %s; it goes on elsewhere", self.request_id, why)

    def _failed(self, failed: wire.RequestFailed) -> None:
        attempt = self._attempts[-1]
        attempt.abandon()
        refusal = Refusal(
            failed.reason,
            f"worker {attempt.decode.name}: {failed.message}",
            {"worker": attempt.decode.name},
        )
        if failed.reason not in _ELSEWHERE:
            raise refusal
        self._refused.add(attempt.decode_name)
        self._refusal = refusal

    # ---- the end

    def stop(self, matched: str) -> None:
        """The text holds this stop string: no more tokens are wanted."""
        self.ending = Ending(pb.FINISH_REASON_STOP_STRING, matched)

    async def usage(self, wait_s: float) -> pb.Usage:
        """What it cost. Waits at most `wait_s` for figures that nobody has sent yet."""
        last = self._attempts[-1]
        if not last.cost.exact and last.prefill is not None and last.prefill.hello is not None:
            try:
                async with asyncio.timeout(wait_s):
                    while not last.prefill_over:
                        self._mail.clear()
                        await self._mail.wait()
            except TimeoutError:
                log.debug("%s: the prefill worker's figures did not come", self.request_id)
        return total_usage(
            [attempt.cost for attempt in self._attempts],
            clock=self.clock,
            generated_tokens=len(self.ledger.emitted),
            deaths=self._deaths,
            prefill_worker=last.prefill_name,
            decode_worker=last.decode_name,
        )

    def _cancel(self, attempt: Attempt) -> None:
        afterword = self._placer.afterword(self.ledger)
        if afterword is not None:
            afterword.read(attempt.decode, self._inbox)
        attempt.cancel(None if afterword is None or afterword.over else afterword)

    async def __aenter__(self) -> "Execution":
        self._placer.turn_began()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        last = self._attempts[-1] if self._attempts else None
        if last is not None and not last.over:
            self._cancel(last)
        self._placer.turn_ended(self.ledger, last, well=self.ending is not None)
