"""What has been sealed for whom: the holder's side of hand-overs, for WatchHandovers.

Lives on the event loop. State is cumulative, so a watcher that is slow or late is told the
latest state once; nothing queues up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import cast

from baton.v1.errors_pb2 import ErrorReason
from baton.v1.kv_pb2 import FirstToken, Handover
from baton_engine.events import Done, Event, Failed, Prefilled, PromptProgress
from baton_engine.logprobs import logprob_message
from baton_engine.request import EngineRequest, HandOver, RequestKey


@dataclass(slots=True)
class _Entry:
    reader: str
    handover: Handover
    over_at: float | None = None  # when it ended; ended ones stay a while for late watchers


class HandoverBoard:
    """Live hand-overs by reader, and who watches them."""

    def __init__(self, linger_s: float) -> None:
        """linger_s: how long a failed hand-over is still told to a watcher that comes late."""
        self._linger_s = linger_s
        self._entries: dict[RequestKey, _Entry] = {}
        self._watchers: dict[str, list[_Watcher]] = {}

    def open(self, request: EngineRequest) -> None:
        """A hand-over was accepted; nothing is sealed yet."""
        if isinstance(request.goal, HandOver):
            handover = Handover(request_id=request.request_id, attempt=request.attempt)
            self._entries[request.key] = _Entry(request.goal.reader, handover)

    def update(self, events: Sequence[Event]) -> None:
        """Take over what a step said about hand-overs, and tell their watchers."""
        self._forget_old()
        changed: dict[str, dict[RequestKey, Handover]] = {}
        for event in events:
            key = (event.request_id, event.attempt)
            entry = self._entries.get(key)
            if entry is None:
                continue
            if isinstance(event, Done):
                del self._entries[key]
                continue
            if not _write(entry.handover, event):
                continue
            if isinstance(event, Failed):
                entry.over_at = time.monotonic()
            changed.setdefault(entry.reader, {})[key] = entry.handover
        for reader, handovers in changed.items():
            for watcher in self._watchers.get(reader, ()):
                watcher.note(handovers)

    async def watch(self, reader: str) -> AsyncIterator[list[Handover]]:
        """The state of every live hand-over for this reader, then every change, batched."""
        watcher = _Watcher()
        mine = {key: e.handover for key, e in self._entries.items() if e.reader == reader}
        self._watchers.setdefault(reader, []).append(watcher)
        try:
            watcher.note(mine)
            while True:
                yield await watcher.next()
        finally:
            self._watchers[reader].remove(watcher)
            if not self._watchers[reader]:
                del self._watchers[reader]

    def _forget_old(self) -> None:
        horizon = time.monotonic() - self._linger_s
        old = [k for k, e in self._entries.items() if e.over_at is not None and e.over_at < horizon]
        for key in old:
            del self._entries[key]


class _Watcher:
    """What one watcher has not been told yet; only the latest of each attempt."""

    def __init__(self) -> None:
        self._pending: dict[RequestKey, Handover] = {}
        self._ready = asyncio.Event()

    def note(self, handovers: dict[RequestKey, Handover]) -> None:
        self._pending.update(handovers)
        if self._pending:
            self._ready.set()

    async def next(self) -> list[Handover]:
        await self._ready.wait()
        self._ready.clear()
        pending, self._pending = self._pending, {}
        # Copies: the originals go on changing while gRPC serialises.
        return [_copy(handover) for handover in pending.values()]


def _copy(handover: Handover) -> Handover:
    copy = Handover()
    copy.CopyFrom(handover)
    return copy


def _write(handover: Handover, event: Event) -> bool:
    """Bring a hand-over up to an event; False when the event says nothing about it."""
    if isinstance(event, PromptProgress):
        handover.sealed_pages = event.sealed_pages
    elif isinstance(event, Prefilled):
        handover.sealed_pages = event.sealed_pages
        handover.first_token.CopyFrom(_first_token(event))
    elif isinstance(event, Failed):
        reason = ErrorReason.Value(f"ERROR_REASON_{event.reason.value}")
        handover.failed = cast(ErrorReason, reason)
    else:
        return False
    return True


def _first_token(event: Prefilled) -> FirstToken:
    cost = event.cost
    first = FirstToken(
        token_id=event.token_id,
        cached_tokens=cost.reused_tokens + cost.fetched_tokens,
        queue_us=cost.queue_us,
        prefill_us=cost.prefill_us,
        pages_moved=cost.pages_moved,
        bytes_moved=cost.bytes_moved,
    )
    if event.logprob is not None:
        first.logprob.CopyFrom(logprob_message(event.logprob))
    return first
