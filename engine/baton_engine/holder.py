"""The engine as a holder of pages: what KvPeerServicer asks of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import Handover
from baton_engine.core import EngineCore, now_us
from baton_engine.events import FinishReason
from baton_engine.handover_board import HandoverBoard
from baton_engine.step_loop import RanksLost
from baton_scheduler import Reply, Verdict
from baton_transfer import LeaseGrant

# A lease pins pages: what a reader asks for stays within these bounds.
_MIN_TTL_MS = 1_000
_RANKS_ANSWER_S = 5.0

log = logging.getLogger(__name__)


class EngineHolder:
    """A baton_transfer.PageHolder over the scheduler. On the event loop; never waits."""

    def __init__(self, core: EngineCore, board: HandoverBoard, max_ttl_ms: int) -> None:
        self._core = core
        self._end_fetch: Callable[[int], object] | None = None
        self._board = board
        self._max_ttl_ms = max_ttl_ms

    def ends_fetches_by(self, end_fetch: Callable[[int], object]) -> None:
        """What to call with the handle of a request that is not wanted any more."""
        self._end_fetch = end_fetch

    def grant(self, reader: str, hashes: NDArray[np.uint8], ttl_ms: int, group: int) -> LeaseGrant:
        """Lease the longest held prefix of `hashes`, uint8 [n, 16], of one group."""
        ttl_ms = min(max(ttl_ms, _MIN_TTL_MS), self._max_ttl_ms)
        with self._core.lock:
            lease = self._core.scheduler.grant(hashes, now_us(), ttl_ms * 1000, group=group)
            pages = lease.pages.copy()
            self._core.wake()  # the idle thread must look at its clock from now on
        if self._core.checksums is None:
            return LeaseGrant(lease.id, pages, None, ttl_ms)
        try:
            # Outside the lock: leased pages do not change. Known already unless the page was
            # sealed a moment ago or came from a peer; then other ranks are asked too.
            sums = self._core.checksums.of(pages, group, wait_s=_RANKS_ANSWER_S)
        except (RanksLost, TimeoutError) as error:
            log.warning("no lease for %s: checksums of another rank: %s", reader, error)
            self.release([lease.id])
            return LeaseGrant(0, np.empty(0, np.int32), None, ttl_ms)
        return LeaseGrant(lease.id, pages, sums, ttl_ms)

    def renew(self, leases: Sequence[int], ttl_ms: int) -> list[int]:
        """Move deadlines; the leases that are over."""
        ttl_us = min(max(ttl_ms, _MIN_TTL_MS), self._max_ttl_ms) * 1000
        with self._core.lock:
            now = now_us()
            return [lease for lease in leases if not self._core.scheduler.renew(lease, now, ttl_us)]

    def release(self, leases: Sequence[int]) -> list[bool]:
        """End leases; for each whether its pages stayed unchanged."""
        with self._core.lock:
            now = now_us()
            verdicts = [self._core.scheduler.release(lease, now) for lease in leases]
            self._core.wake()
        return [verdict is Verdict.VALID for verdict in verdicts]

    def handed_over(self, request_id: str, attempt: int) -> None:
        """The reader wants nothing more of this request, be it complete or not."""
        with self._core.lock:
            live = self._core.ledger.find((request_id, attempt))
            if live is None or not live.hands_over:
                return
            if self._core.scheduler.handed_over(live.handle) is not Reply.ACCEPTED:
                # Not computed yet: a reader that lost patience computes it itself.
                self._core.scheduler.cancel(live.handle)
            self._core.finish(live, FinishReason.HANDED_OVER)
            self._core.wake()
        if self._end_fetch is not None:
            self._end_fetch(live.handle)

    def watch(self, reader: str) -> AsyncIterator[Sequence[Handover]]:
        """Announcements for this reader."""
        return self._board.watch(reader)
