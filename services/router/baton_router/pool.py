"""The workers this router knows, and what they must agree on."""

import asyncio
import logging
import secrets
from collections.abc import Callable

from baton.v1 import kv_pb2 as kv
from baton.v1 import worker_pb2 as wire
from baton_router.config import RouterConfig
from baton_router.page_index import Holder, PageIndex
from baton_router.worker_link import WorkerLink
from baton_scheduler import cache_key

log = logging.getLogger("baton.router")


class WorkerPool:
    """One link to each configured worker, all of one cache identity.

    The first worker that connects says what model, page size and layout are;
    others must say the same, until none is connected.
    """

    def __init__(
        self, config: RouterConfig, index: PageIndex, *, changed: Callable[[], None]
    ) -> None:
        self._index = index
        self._on_change = changed
        self._turn = asyncio.Event()
        self.cache: kv.CacheIdentity | None = None
        self._flushes = b""  # keys of pages from before a flush are never made again

        def link(address: str, role: wire.WorkerRole) -> WorkerLink:
            return WorkerLink(
                address,
                role,
                config.name,
                accept=self._accept,
                changed=self._changed,
                reconnect_s=config.limits.reconnect_s,
            )

        self.decode = [link(a, wire.WORKER_ROLE_DECODE) for a in config.workers.decode]
        self.prefill = [link(a, wire.WORKER_ROLE_PREFILL) for a in config.workers.prefill]

    async def run(self) -> None:
        """Keeps a stream to every worker. Ends by cancellation: the workers then cancel what
        they had of ours."""
        async with asyncio.TaskGroup() as tasks:
            for link in (*self.decode, *self.prefill):
                tasks.create_task(link.run())

    @property
    def max_context(self) -> int | None:
        """The longest context a connected decode worker takes; None without one."""
        return max((link.hello.max_context for link in self.decode if link.hello), default=None)

    @property
    def largest_pool_tokens(self) -> int | None:
        """Tokens that fit the largest pool of a connected decode worker."""
        if self.cache is None:
            return None
        pages = max((link.pool.total_pages for link in self.decode if link.hello), default=None)
        return None if pages is None else pages * self.cache.page_size

    @property
    def bytes_per_token(self) -> float:
        """What one token's cache weighs, all layers. A state weighs the same after any of them, and
        is not counted."""
        if self.cache is None:
            return 0.0
        tokens = [group for group in self.cache.groups if not group.snapshot_every]
        return sum(group.page_bytes for group in tokens) / self.cache.page_size

    @property
    def states(self) -> tuple[int, int] | None:
        """The group of recurrent states and the pages of tokens between its snapshots; None when
        the model has none."""
        for number, group in enumerate(self.cache.groups if self.cache else ()):
            if group.snapshot_every and self.cache:
                return number, group.snapshot_every // self.cache.page_size
        return None

    def cache_key(self, tenant: str) -> bytes:
        """16 bytes that key the page hashes of a tenant: pages are never shared across it."""
        fingerprint = self.cache.model_fingerprint if self.cache else ""
        return cache_key(fingerprint, tenant, *([self._flushes] if self._flushes else []))

    def forget_pages(self) -> None:
        """No page of before is found again by requests of this router."""
        self._flushes = secrets.token_bytes(16)

    def find(self, name: str) -> WorkerLink | None:
        """The connected worker of this name."""
        links = (*self.decode, *self.prefill)
        return next((link for link in links if link.hello and link.name == name), None)

    def trusted(self, holder: Holder) -> bool:
        """Whether the directory may be believed about it: not about a life that we know is over."""
        return all(
            link.hello is None or link.epoch == holder.epoch for link in self._known(holder.name)
        )

    def reachable(self, holder: Holder) -> bool:
        """Whether pages can be leased there, as far as we know: not from a worker we have lost."""
        return all(link.hello and link.epoch == holder.epoch for link in self._known(holder.name))

    async def change(self) -> None:
        """Waits until a worker comes, goes, or starts or stops to drain."""
        await self._turn.wait()

    def _known(self, name: str) -> list[WorkerLink]:
        links = (*self.decode, *self.prefill)
        return [link for link in links if link.holder and link.holder.name == name]

    def _accept(self, hello: wire.WorkerHello) -> None:
        if hello.cache.page_size < 1:
            raise ValueError("its hello has no page size")
        if not hello.worker or not hello.peer.name or not hello.peer.address:
            raise ValueError("its hello lacks the worker's name, or where its pages are leased")
        if (other := self.find(hello.peer.name)) is not None:
            raise ValueError(f"{other.address} has the same name, {hello.peer.name}")
        if self.cache is None:
            self.cache = hello.cache
        elif self.cache != hello.cache:
            raise ValueError(
                f"worker {hello.worker} does not fit the others "
                f"(model, page size, dtype, layout or wire version): it has {_line(hello.cache)}, "
                f"they have {_line(self.cache)}"
            )

    def _changed(self, link: WorkerLink) -> None:
        if link.hello is not None and link.holder is not None:
            self._index.meet(link.holder)
        elif not any(other.hello for other in (*self.decode, *self.prefill)):
            self.cache = None  # a cluster may come back with another model
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()
        self._on_change()


def _line(message: kv.CacheIdentity) -> str:
    return " ".join(str(message).split())
