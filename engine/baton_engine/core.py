"""What the engine's thread and the event loop share: one lock, one scheduler, one outbox."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import FirstToken
from baton_engine.arena import PageChecksums
from baton_engine.events import (
    Done,
    Event,
    Failed,
    FailReason,
    FinishReason,
    GroupPages,
    Hashes,
    PoolState,
    PromptProgress,
    PullReport,
    TokenLogprob,
    TokensEmitted,
)
from baton_engine.ledger import Ledger, LiveRequest
from baton_engine.logprobs import logprob_of
from baton_engine.stopping import stop_match
from baton_scheduler import Reply, Scheduler


def now_us() -> int:
    """The engine's clock: monotonic microseconds."""
    return time.monotonic_ns() // 1000


@dataclass(slots=True)
class Outbox:
    """What the next StepEvents will say."""

    events: list[Event] = field(default_factory=list)
    sealed: list[Hashes] = field(default_factory=list)
    evicted: list[Hashes] = field(default_factory=list)
    pulls: list[PullReport] = field(default_factory=list)

    def note_evicted(self, hashes: Hashes) -> None:
        """These left the index; what was sealed before and not told yet need not be told."""
        gone = {row.tobytes() for row in hashes}
        self.sealed = [part[[row.tobytes() not in gone for row in part]] for part in self.sealed]
        self.evicted.append(hashes)

    def __bool__(self) -> bool:
        return bool(self.events or self.sealed or self.evicted or self.pulls)


@dataclass(slots=True)
class FetchTotals:
    """Counts of the fetching side, since the start."""

    pages_moved: int = 0
    bytes_moved: int = 0
    failed_fetches: int = 0


@dataclass(slots=True)
class DraftTotals:
    """Counts of speculation, since the start."""

    proposed: int = 0
    accepted: int = 0


class EngineCore:
    """Every field is read and written under `lock`, which no one holds while waiting.

    The scheduler answers in microseconds, so the event loop may take the lock while the
    engine's thread is between plan and complete with the model running.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        page_size: int,
        checksums: PageChecksums | None,
        groups: int = 1,
    ) -> None:
        """groups: of the scheduler, the tokens' included."""
        self.lock = threading.Condition(threading.Lock())
        self.scheduler = scheduler
        self.page_size = page_size
        self.checksums = checksums
        self.groups = groups
        self.ledger = Ledger()
        self.outbox = Outbox()
        self.fetched = FetchTotals()
        self.drafted = DraftTotals()
        self.draining = False
        self.failure: str | None = None
        self.stopping = False
        self._changed = False

    def wake(self) -> None:
        """Something changed that a plan may act on. Lock held."""
        self._changed = True
        self.lock.notify()

    def take_changed(self) -> bool:
        """Whether something changed since the last call. Lock held."""
        changed, self._changed = self._changed, False
        return changed

    def take_outbox(self) -> Outbox:
        """Lock held."""
        outbox, self.outbox = self.outbox, Outbox()
        return outbox

    # -- the events that end an attempt; lock held ------------------------------------------

    def finish(self, live: LiveRequest, reason: FinishReason, matched: str = "") -> None:
        """The scheduler has finished it."""
        self.outbox.events.append(Done(*live.key, reason, matched, live.cost))
        self.ledger.end(live)

    def fail(self, live: LiveRequest, reason: FailReason, message: str) -> None:
        """The scheduler has let go of it."""
        self.outbox.events.append(Failed(*live.key, reason, message))
        self.ledger.end(live)

    def cancel(self, live: LiveRequest, reason: FailReason, message: str) -> None:
        """Take it from the scheduler too; pages in use stay there until they are let go."""
        self.scheduler.cancel(live.handle)
        self.fail(live, reason, message)
        self.wake()

    def emit(
        self, live: LiveRequest, tokens: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> None:
        """The next tokens of one attempt, with their log-probs if it asked for any."""
        position = live.next_position
        cost = None if live.emitted else replace(live.cost)
        live.emitted.extend(tokens)
        told = tuple(logprob for logprob in logprobs if logprob is not None)
        self.outbox.events.append(TokensEmitted(*live.key, position, tuple(tokens), told, cost))

    def note_sealed(self, live: LiveRequest, pages: int) -> None:
        """The first `pages` pages of a HandOver attempt can be leased now."""
        if live.hands_over and pages != live.sealed_pages:
            live.sealed_pages = pages
            self.outbox.events.append(PromptProgress(*live.key, pages))

    # -- what a fetch reports; takes the lock -----------------------------------------------

    def pages_arrived(
        self, handle: int, first_index: int, pages: NDArray[np.int32], hashes: Hashes
    ) -> bool:
        """Verified pages of a chain, contiguous from what arrived before.

        False when the request no longer wants them (the fetch should end).
        """
        with self.lock:
            reply = self.scheduler.pages_arrived(handle, first_index, len(pages))
            if reply is not Reply.ACCEPTED:
                return False
            if self.checksums is not None:
                self.checksums.forget(pages)
            live = self.ledger.get(handle)
            if live is None:
                return True
            tokens = len(live.request.token_ids)
            full = min(len(pages), tokens // self.page_size - first_index)
            if full > 0:
                self.outbox.sealed.append(hashes[:full].copy())
            end = min((first_index + len(pages)) * self.page_size, tokens)
            live.cost.fetched_tokens += end - first_index * self.page_size
            self.note_sealed(live, first_index + len(pages))
            self.wake()
            return True

    def state_arrived(
        self, handle: int, group: int, index: int, page: NDArray[np.int32], identity: Hashes
    ) -> bool:
        """A verified state: `page` [1] and its `identity` [1, 16], after the last token of page
        `index`. False when the request no longer wants it."""
        with self.lock:
            reply = self.scheduler.pages_arrived(handle, index, 1, group)
            if reply is not Reply.ACCEPTED:
                return False
            if self.checksums is not None:
                self.checksums.forget(page, group)
            live = self.ledger.get(handle)
            if live is not None and (index + 1) * self.page_size <= len(live.request.token_ids):
                self.outbox.sealed.append(identity.copy())
            self.wake()
            return True

    def fetch_ended(self, handle: int, first: FirstToken | None) -> None:
        """Nothing is in flight for this fetch any more. `first` is what the prefill worker sampled,
        given only when every page of the prompt has arrived."""
        with self.lock:
            live = self.ledger.get(handle)
            token, finish = None, False
            if live is not None:
                live.awaiting = False
                if first is not None:
                    token = live.first_token = first.token_id
                    if first.HasField("logprob"):
                        live.first_logprob = logprob_of(first.logprob)
                    live.cost.first_token = first
                    finish = stop_match(live.request.stop, token) is not None
            self.scheduler.fetch_ended(handle, token, now_us(), finish=finish)
            self.wake()

    def count_failed_fetch(self) -> None:
        """A fetch ended with something missing."""
        with self.lock:
            self.fetched.failed_fetches += 1

    def note_pull(self, handle: int, pull: PullReport) -> None:
        """A pull for this request has ended, whether or not its pages can be used."""
        with self.lock:
            self.outbox.pulls.append(pull)
            self.fetched.pages_moved += pull.pages
            self.fetched.bytes_moved += pull.moved_bytes
            live = self.ledger.get(handle)
            if live is not None:
                live.cost.pages_moved += pull.pages
                live.cost.bytes_moved += pull.moved_bytes

    def pool(self) -> PoolState:
        """Lock held."""
        stats = self.scheduler.stats()
        return PoolState(
            total_pages=stats.total_pages,
            free_pages=stats.free_pages + stats.cached_pages,
            cached_pages=stats.cached_pages,
            owned_pages=stats.owned_pages,
            referenced_pages=stats.referenced_pages,
            leased_pages=stats.leased_pages,
            quarantined_pages=stats.quarantined_pages,
            running=stats.running,
            waiting=stats.waiting,
            fetching=stats.fetching,
            prefilled=stats.prefilled,
            draining=stats.draining,
            computed_tokens=stats.computed_tokens,
            generated_tokens=stats.generated_tokens,
            reused_tokens=stats.reused_tokens,
            fetched_tokens=stats.fetched_tokens,
            retractions=stats.retractions,
            pages_moved=self.fetched.pages_moved,
            bytes_moved=self.fetched.bytes_moved,
            failed_fetches=self.fetched.failed_fetches,
            beside=tuple(self._group_pages(group) for group in range(1, self.groups)),
            draft_tokens=self.drafted.proposed,
            accepted_draft_tokens=self.drafted.accepted,
        )

    def _group_pages(self, group: int) -> GroupPages:
        pages = self.scheduler.pool_stats(group)
        return GroupPages(pages.free, pages.cached, pages.owned, pages.referenced, pages.leased)


def stack_hashes(parts: Sequence[Hashes]) -> Hashes:
    """All hashes of the parts, [n, 16]."""
    return np.concatenate(parts) if parts else np.empty((0, 16), np.uint8)
