"""Counts the calls in flight, so that a server knows when its handlers are over.

`grpc.aio.Server.stop` returns before the handlers' `finally` blocks ran; a
process that tears down its engine at that moment pulls it from under them.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class CallsInFlight:
    """Method names of running handlers. Used on one event loop only."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()
        self._changed = asyncio.Event()

    @contextmanager
    def one(self, method: str) -> Iterator[None]:
        """Counts `method` as running while the block runs."""
        self._running[method] += 1
        try:
            yield
        finally:
            self._running[method] -= 1
            if not self._running[method]:
                del self._running[method]
            self._changed.set()

    def count(self, prefixes: tuple[str, ...]) -> int:
        """How many running methods start with one of `prefixes` ("/package.Service/")."""
        return sum(n for method, n in self._running.items() if method.startswith(prefixes))

    def names(self) -> list[str]:
        """The methods running now, sorted."""
        return sorted(self._running)

    async def over(self, prefixes: tuple[str, ...], timeout_s: float) -> bool:
        """Waits until no method of `prefixes` runs; False when `timeout_s` passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.count(prefixes):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
