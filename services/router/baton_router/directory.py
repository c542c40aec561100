"""Follows the kvstore's page directory. Its absence costs knowledge, never requests."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from itertools import islice

import grpc

from baton.v1 import kv_pb2 as kv
from baton.v1 import kv_pb2_grpc
from baton_router.page_index import Holder, PageIndex, split_hashes
from baton_rpc import channel

log = logging.getLogger("baton.router")

# A snapshot of millions of pages is taken in slices, so that streams go on beside it.
_SLICE = 8_192


class DirectoryWatch:
    """Feeds `index` from KvDirectoryService.Watch, for as long as `run` runs.

    Every kvstore knows everything, so one of `addresses` is followed, and the next one when it is
    lost.

    `trusted(holder)` says whether a holder may be believed: a worker that has
    told us itself that it lives another life is not.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        watcher: str,
        index: PageIndex,
        *,
        trusted: Callable[[Holder], bool],
        reconnect_s: float = 1.0,
    ) -> None:
        self._addresses = addresses
        self._address = addresses[0]
        self._watcher = watcher
        self._index = index
        self._trusted = trusted
        self._reconnect_s = reconnect_s
        self.connected = False

    async def run(self) -> None:
        """Watches, and dials again whenever the stream ends. Ends by cancellation."""
        for address in itertools.cycle(self._addresses):
            self._address = address
            try:
                await self._watch()
                log.info("the directory at %s ended its stream", self._address)
            except grpc.aio.AioRpcError as error:
                if self.connected:
                    log.warning("lost the directory at %s: %s", self._address, error.details())
            if self.connected:
                self.connected = False
                self._index.forget_storage()
                if len(self._addresses) > 1:
                    continue  # the next one knows it all, too
            await asyncio.sleep(self._reconnect_s)

    async def _watch(self) -> None:
        async with channel(self._address) as connection:
            stub = kv_pb2_grpc.KvDirectoryServiceStub(connection)
            expected: int | None = None
            async for event in stub.Watch(kv.WatchRequest(watcher=self._watcher)):
                if not self.connected:
                    self.connected = True
                    log.info("following the directory at %s", self._address)
                if event.snapshot:
                    self._index.forget_directory()
                elif expected is not None and event.sequence != expected:
                    log.warning("directory events %d to %d are missing", expected, event.sequence)
                    return  # a new stream starts with a snapshot
                expected = event.sequence + 1
                for change in event.changes:
                    await self._apply(change)

    async def _apply(self, change: kv.HolderChange) -> None:
        peer = change.holder
        holder = Holder(peer.name, peer.address, peer.epoch, change.storage)
        if change.gone:
            self._index.forget(holder.name, holder.epoch)
            return
        if not self._trusted(holder):
            return
        for hashes, apply in (
            (change.removed, self._index.remove),
            (change.added, self._index.add),
        ):
            pages = split_hashes(hashes)
            while part := list(islice(pages, _SLICE)):
                apply(holder, part)
                await asyncio.sleep(0)
