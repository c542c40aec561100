"""What one router has not been told yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton_rpc import Refusal

# A router that does not read is cut off here; it would hold the worker's memory hostage.
MAX_UPDATES = 65_536
# How old the pool's figures may get at a router that has no requests here.
POOL_S = 0.1


class Mailbox:
    """Gathers updates into one StepReport; steps that the stream cannot keep up with are merged.

    Used on one event loop. `put` and `note` never wait.
    """

    def __init__(self, router: str, max_updates: int = MAX_UPDATES) -> None:
        self._router = router
        self._max_updates = max_updates
        self._report = wire.StepReport()
        self._ready = asyncio.Event()
        self._told_at = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._refusal: Refusal | None = None
        self._finished = False
        self._ended = False  # the last report has been taken

    def put(self, update: wire.RequestUpdate) -> None:
        """Tell this at once."""
        if len(self._report.updates) >= self._max_updates:
            self._refusal = Refusal(
                errors.ERROR_REASON_OVERLOADED,
                f"router {self._router} has not read {self._max_updates} updates; "
                "its stream ends and its requests with it",
            )
        elif self._refusal is None:
            self._report.updates.append(update)
        self._ready.set()

    def put_all(self, updates: Iterable[wire.RequestUpdate]) -> None:
        """Tell these at once, in order."""
        for update in updates:
            self.put(update)

    def note(self, step: int, pool: wire.PoolState, draining: bool) -> None:
        """The state after a step: goes with the next report, which is soon."""
        turned = draining != self._report.draining
        self._report.step = step
        self._report.pool.CopyFrom(pool)
        self._report.draining = draining
        if turned:
            self._ready.set()
        if self._ready.is_set() or self._later is not None:
            return
        wait = self._told_at + POOL_S - time.monotonic()
        if wait <= 0:
            self._ready.set()
        else:
            self._later = asyncio.get_running_loop().call_later(wait, self._ready.set)

    def finish(self) -> None:
        """Nothing comes any more: the reports end once everything is told."""
        self._finished = True
        self._ready.set()

    async def next(self) -> wire.StepReport | None:
        """Everything since the last one; None at the end. Raises Refusal when the router read
        too slowly."""
        await self._ready.wait()
        if self._refusal is not None:
            raise self._refusal
        if not self._finished:
            self._ready.clear()
        elif self._ended:
            return None
        self._ended = self._finished
        self._forget_timer()
        report = self._report
        # Written from now on, so it must not change: the next one starts as its successor.
        self._report = wire.StepReport(step=report.step, draining=report.draining)
        self._told_at = time.monotonic()
        return report

    def close(self) -> None:
        """Nobody reads any more."""
        self._forget_timer()

    def _forget_timer(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
