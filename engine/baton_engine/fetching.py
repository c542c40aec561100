"""Fetches: for each order of the scheduler, pull pages from peers until it ends, once.

On the event loop. What is pulled is told to the scheduler batch by batch; whatever happens,
the order ends in one fetch_ended, and only when nothing is in flight for it any more. A pull is
therefore never abandoned: it ends by itself (its transfer has a deadline and a fence), and the
order looks between pulls whether it is still wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import FirstToken, Handover, Peer
from baton_engine.config import EngineConfig
from baton_engine.core import EngineCore
from baton_engine.events import Hashes, PullReport
from baton_engine.planning import FetchOrder, StateOrder
from baton_engine.request import Await, RequestKey, Source
from baton_transfer import HolderLost, Pulled, PullFailure

log = logging.getLogger(__name__)


class PagePuller(Protocol):
    """What is used of baton_transfer.Puller."""

    async def pull(
        self,
        source: Peer,
        hashes: Hashes,
        targets: NDArray[np.int32],
        *,
        group: int = 0,
        handed_over: RequestKey | None = None,
    ) -> Pulled: ...

    def follow(self, holder: Peer, request_id: str, attempt: int) -> AsyncIterator[Handover]: ...

    async def hand_over(self, holder: Peer, request_id: str, attempt: int) -> bool: ...

    async def close(self) -> None: ...


class _Running:
    """One order under way. Entries [0, arrived) of it are here."""

    def __init__(self, order: FetchOrder) -> None:
        self.order = order
        self.arrived = 0
        self.states_left = len(order.states)  # groups whose state is not here
        self.ended_because = ""  # set: cancelled, the prefill worker is lost, a pull failed
        self.handover: Handover | None = None  # the prefill worker's latest word
        self.news = asyncio.Event()

    def end(self, reason: str) -> None:
        self.ended_because = self.ended_because or reason
        self.news.set()

    def hear(self, handover: Handover) -> None:
        self.handover = handover
        self.news.set()

    @property
    def total(self) -> int:
        return len(self.order.pages)

    @property
    def complete(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return self.arrived == self.total and self.states_left == 0

    @property
    def first_token(self) -> FirstToken | None:
        handover = self.handover
        has = handover is not None and handover.HasField("first_token")
        return handover.first_token if handover is not None and has else None

    def leading(self, pages: int) -> int:
        """How many entries lie below page index `pages`."""
        return int(np.searchsorted(self.order.indices, pages))


class Fetcher:
    """Runs one task per order."""

    def __init__(self, core: EngineCore, puller: PagePuller, config: EngineConfig) -> None:
        self._core = core
        self._puller = puller
        self._batch_pages = config.fetch_batch_pages
        self._await_s = config.await_ms / 1000
        self._orders: dict[int, _Running] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, orders: Sequence[FetchOrder]) -> None:
        """Start what a plan ordered."""
        for order in orders:
            running = _Running(order)
            self._orders[order.handle] = running
            self._spawn(self._run(running))

    def end(self, handle: int, reason: str) -> bool:
        """Stop fetching for a request after the pull that is under way; False: no such order."""
        running = self._orders.get(handle)
        if running is None:
            return False
        running.end(reason)
        return True

    async def close(self) -> None:
        """End all orders; returns when nothing is in flight."""
        for running in list(self._orders.values()):
            running.end("the engine stops")
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._puller.close()

    def _spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, running: _Running) -> None:
        order, first = running.order, None
        try:
            if order.prefill_lost:
                running.end("the router lost the prefill worker")
            elif order.awaits and isinstance(order.request.goal, Await):
                first = await self._from_prefill(running, order.request.goal.prefill)
            else:
                await self._from_sources(running)
        except Exception as error:
            log.exception("fetch of %s failed", order.request.key)
            running.end(f"{type(error).__name__}: {error}")
        finally:
            del self._orders[order.handle]
            self._core.fetch_ended(order.handle, first)
        if not running.complete or (order.awaits and first is None):
            self._core.count_failed_fetch()
            log.info(
                "fetch of %s ended with %d of %d pages: %s",
                order.request.key,
                running.arrived,
                running.total,
                running.ended_because or "no source has more",
            )

    # -- from whoever holds a prefix --------------------------------------------------------

    async def _from_sources(self, running: _Running) -> None:
        upto_state = await self._restore_states(running)
        for group in _groups(running.order.request.sources):
            limit = running.leading(min(group[0].pages, upto_state))
            while running.arrived < limit and not running.ended_because:
                upto = min(limit, running.arrived + self._batch_pages)
                if group[0].only:
                    whole = await self._pull_parts(running, group, upto)
                else:
                    whole = await self._pull(running, group[0].peer, upto) is None
                if not whole:
                    break

    async def _restore_states(self, running: _Running) -> int:
        """Bring a state of every group, before the tokens: those behind it are of no use. How many
        pages of tokens lead to it; 0 when a group has none."""
        order = running.order
        reach = max((source.pages for source in order.request.sources), default=0)
        for states in order.states:
            reach = min(reach, await self._restore_state(running, states))
            running.states_left -= reach > 0
        return reach

    async def _restore_state(self, running: _Running, states: StateOrder) -> int:
        """The best that anybody has, rewinding step by step."""
        for entry, index in enumerate(map(int, states.indices)):
            for source in running.order.request.sources:
                if running.ended_because:
                    return 0
                if not source.has(np.array([index])).all():
                    continue
                if await self._pull_states(running, source.peer, states, entry, entry + 1):
                    return index + 1
        return 0

    async def _pull_states(
        self, running: _Running, peer: Peer, states: StateOrder, first: int, end: int
    ) -> int:
        """Pull states [first, end) of an order: how many of them came."""
        order = running.order
        hashes, pages = states.hashes[first:end], states.pages[first:end]
        pulled = await self._puller.pull(peer, hashes, pages, group=states.group)
        self._core.note_pull(order.handle, _report(peer, pulled))
        for i, index in enumerate(states.indices[first : first + pulled.arrived].tolist()):
            page, identity = pages[i : i + 1], hashes[i : i + 1]
            if not self._core.state_arrived(order.handle, states.group, index, page, identity):
                running.end("the request is over")
        if pulled.failure is not None:
            log.info("state pull for %s from %s: %s", order.request.key, peer.name, pulled)
        return pulled.arrived

    async def _pull_parts(self, running: _Running, group: Sequence[Source], upto: int) -> bool:
        """Pull entries [arrived, upto) from those who have them between them, all at once.
        Whether all came; what came after a gap is computed again."""
        order, start = running.order, running.arrived
        indices = order.indices[start:upto].astype(np.int64)
        left = np.ones(len(indices), np.bool_)
        parts: list[tuple[Source, NDArray[np.int64]]] = []
        for source in group:
            mine = left & source.has(indices)
            left &= ~mine
            if mine.any():
                parts.append((source, start + np.flatnonzero(mine)))
        pulls = await asyncio.gather(
            *(
                self._puller.pull(source.peer, order.hashes[part], order.pages[part])
                for source, part in parts
            )
        )
        came = np.zeros(len(indices), np.bool_)
        for (source, part), pulled in zip(parts, pulls, strict=True):
            self._core.note_pull(order.handle, _report(source.peer, pulled))
            came[part[: pulled.arrived] - start] = True
            if pulled.failure is not None:
                log.info("pull for %s from %s: %s", order.request.key, source.peer.name, pulled)
        count = int(np.argmin(came)) if not came.all() else len(came)
        self._arrived(running, start, count)
        return count == len(came)

    # -- from the prefill worker that computes the prompt -----------------------------------

    async def _from_prefill(self, running: _Running, prefill: Peer) -> FirstToken | None:
        """The first token when every page is here, None when this worker must compute."""
        key = running.order.request.key
        listening = self._spawn(self._listen(running, prefill))
        told = False
        try:
            while not running.ended_because:
                running.news.clear()
                if running.first_token is not None and running.states_left:
                    # Before the last tokens: with those the prefill worker lets go of the request.
                    if not await self._await_states(running, prefill):
                        running.end(f"{prefill.name} does not have the state at the prompt's end")
                    continue
                ready = running.leading(running.handover.sealed_pages) if running.handover else 0
                if ready > running.arrived:
                    upto = min(ready, running.arrived + self._batch_pages)
                    last = upto == running.total and running.first_token is not None
                    failure = await self._pull(running, prefill, upto, key if last else None)
                    if failure is None:
                        told = told or last
                    elif failure is not PullFailure.NOT_HELD or running.first_token is not None:
                        running.end(f"pulling from {prefill.name} failed: {failure}")
                    else:  # it was retracted there and will be announced again
                        await self._wait_for_news(running)
                elif running.first_token is not None:
                    if running.arrived == running.total:
                        return running.first_token
                    running.end(f"{prefill.name} announced {ready} of {running.total} pages")
                else:
                    await self._wait_for_news(running)
            return None
        finally:
            listening.cancel()
            if not told:  # it may hold pages for us that we have or will never fetch
                self._spawn(self._puller.hand_over(prefill, *key))

    async def _await_states(self, running: _Running, prefill: Peer) -> bool:
        """Of every group the state at the prompt's end; the one to keep may be missing."""
        for states in running.order.states:
            if not await self._pull_states(running, prefill, states, 0, len(states.pages)):
                return False
            running.states_left -= 1
        return True

    async def _listen(self, running: _Running, prefill: Peer) -> None:
        """Keep the prefill worker's latest word."""
        stream = self._puller.follow(prefill, *running.order.request.key)
        try:
            async with aclosing(stream) as handovers:  # type: ignore[type-var]
                async for handover in handovers:
                    if handover.failed:
                        running.end(f"{prefill.name} failed the request")
                    running.hear(handover)
        except HolderLost as lost:
            running.end(str(lost))

    async def _wait_for_news(self, running: _Running) -> None:
        """Until the prefill worker says more, the order is ended, or patience is over."""
        try:
            async with asyncio.timeout(self._await_s):
                await running.news.wait()
        except TimeoutError:
            running.end(f"the prefill worker announced nothing for {self._await_s:g} s")

    async def _pull(
        self, running: _Running, peer: Peer, upto: int, handed_over: RequestKey | None = None
    ) -> PullFailure | None:
        """Pull entries [arrived, upto). None when all of them came."""
        order, start = running.order, running.arrived
        hashes, pages = order.hashes[start:upto], order.pages[start:upto]
        pulled = await self._puller.pull(peer, hashes, pages, handed_over=handed_over)
        self._core.note_pull(order.handle, _report(peer, pulled))
        self._arrived(running, start, pulled.arrived)
        if pulled.failure is not None:
            log.info("pull for %s from %s: %s", order.request.key, peer.name, pulled)
        return pulled.failure

    def _arrived(self, running: _Running, start: int, count: int) -> None:
        """Entries [start, start + count) are here."""
        if not count:
            return
        order = running.order
        hashes, pages = order.hashes[start : start + count], order.pages[start : start + count]
        if not self._core.pages_arrived(order.handle, int(order.indices[start]), pages, hashes):
            running.end("the request is over")
        running.arrived += count


def _groups(sources: Sequence[Source]) -> list[list[Source]]:
    """Each source by itself, those that have a prefix between them together."""
    groups: list[list[Source]] = []
    for source in sources:
        before = groups[-1][0] if groups else None
        if source.only and before is not None and before.only and before.pages == source.pages:
            groups[-1].append(source)
        else:
            groups.append([source])
    return groups


def _report(peer: Peer, pulled: Pulled) -> PullReport:
    failure = "" if pulled.failure is None else pulled.failure.value
    return PullReport(peer.name, pulled.arrived, pulled.moved_bytes, pulled.seconds, failure)
