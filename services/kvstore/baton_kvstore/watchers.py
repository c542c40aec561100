"""Fan-out of the directory's changes: numbered without gaps, bounded, cut off when slow."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from baton.v1 import errors_pb2 as errors
from baton.v1.kv_pb2 import HolderChange, WatchResponse
from baton_rpc import Refusal


class _Watcher:
    def __init__(self, limit: int) -> None:
        self.queue: deque[WatchResponse] = deque()
        self.ready = asyncio.Event()
        self.cut_off = False
        self._limit = limit

    def tell(self, event: WatchResponse) -> None:
        if len(self.queue) >= self._limit:
            # What it has not heard is worthless now: it must start from a snapshot.
            self.queue.clear()
            self.cut_off = True
        else:
            self.queue.append(event)
        self.ready.set()


class Watchers:
    """All who watch. Used on one event loop."""

    def __init__(self, queue_limit: int) -> None:
        self._limit = queue_limit
        self._watchers: set[_Watcher] = set()
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._watchers)

    def tell(self, changes: Sequence[HolderChange]) -> None:
        """One event for everyone."""
        if not changes:
            return
        self._sequence += 1
        event = WatchResponse(sequence=self._sequence, changes=changes)
        for watcher in [w for w in self._watchers if not w.cut_off]:
            watcher.tell(event)

    async def watch(
        self, name: str, snapshot: Sequence[HolderChange]
    ) -> AsyncIterator[WatchResponse]:
        """The snapshot, then every later event. Raises Refusal STALE_EPOCH when cut off.

        `snapshot` must be the state after the last `tell`.
        """
        watcher = _Watcher(self._limit)
        self._watchers.add(watcher)
        try:
            yield WatchResponse(sequence=self._sequence, snapshot=True, changes=snapshot)
            while True:
                await watcher.ready.wait()
                watcher.ready.clear()
                while watcher.queue:
                    yield watcher.queue.popleft()
                if watcher.cut_off:
                    raise Refusal(
                        errors.ERROR_REASON_STALE_EPOCH,
                        f"watcher {name!r} fell {self._limit} events behind; watch again, "
                        "which starts with a snapshot",
                    )
        finally:
            self._watchers.discard(watcher)
