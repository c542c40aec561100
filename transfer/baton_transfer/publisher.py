"""Tells the directory what this holder has. A hint, so nothing here may fail anything else."""

import asyncio
import logging
from collections.abc import Callable

import grpc
import numpy as np
from numpy.typing import NDArray

from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_rpc import channel, refusal_of
from baton_transfer.servicer import HASH_BYTES

log = logging.getLogger("baton.transfer")

_RPC_S = 5.0
# What one message carries at most; a resync is several.
_CHUNK_PAGES = 1 << 16
# Changes that wait for an absent directory; beyond it a resync is cheaper.
_PENDING_PAGES = 1 << 18

Hashes = NDArray[np.uint8]


class DirectoryPublisher:
    """Publishes added and removed pages in batches, one message at a time.

    Sequence numbers have no gaps; whatever goes wrong ends in a resync
    (sequence 0 and everything held). An absent directory costs one quiet
    retry per heartbeat. Used on one event loop.
    """

    def __init__(
        self,
        address: str,
        me: pb.Peer,
        identity: pb.CacheIdentity,
        held: Callable[[], Hashes],
        *,
        batch_s: float = 0.02,
        heartbeat_s: float = 2.0,
        storage: bool = False,
    ) -> None:
        """`address` is the kvstore's host:port. `held` returns everything held, uint8 [n, 16].

        batch_s: how long changes are gathered before they are sent. storage: this holder is a
        kvstore's tier.
        """
        self._address = address
        self._me = me
        self._identity = identity
        self._held = held
        self._batch_s = batch_s
        self._heartbeat_s = heartbeat_s
        self._storage = storage
        self._pending: dict[bytes, bool] = {}  # hash -> held; the latest word counts
        self._sequence = 0  # of the next message; 0 is a resync
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.failures = 0  # messages that did not get through
        self.resyncs = 0  # times that everything was published

    def start(self) -> None:
        """Begins to publish what is held."""
        self._task = asyncio.create_task(self._run())

    def publish(self, added: Hashes | bytes, removed: Hashes | bytes = b"") -> None:
        """Pages that came (after) others went; uint8 [n, 16] or the same as bytes. Never waits."""
        for identity in _split(removed):
            self._pending[identity] = False
        for identity in _split(added):
            self._pending[identity] = True
        if len(self._pending) > _PENDING_PAGES:
            self._lost_track()
        self._wake.set()

    async def stop(self) -> None:
        """Withdraws everything (best effort, at most a second) and ends."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        link = channel(self._address)
        try:
            farewell = pb.PublishRequest(holder=self._me, sequence=0, cache=self._identity)
            await kv_pb2_grpc.KvDirectoryServiceStub(link).Publish(farewell, timeout=1.0)
        except grpc.aio.AioRpcError as error:
            log.debug("directory %s did not hear the farewell: %s", self._address, error.code())
        finally:
            await link.close()

    @property
    def synchronised(self) -> bool:
        """Whether the directory has been told everything so far."""
        return self._sequence > 0 and not self._pending

    async def _run(self) -> None:
        link = channel(self._address)
        try:
            stub = kv_pb2_grpc.KvDirectoryServiceStub(link)
            while True:
                heard = await self._send(stub)
                await self._pause(heard)
        finally:
            await link.close()

    async def _pause(self, heard: bool) -> None:
        if not heard:
            await asyncio.sleep(self._heartbeat_s)
            return
        if self._sequence and not self._pending:
            self._wake.clear()
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._wake.wait()
            except TimeoutError:
                return  # an empty message: we are alive
        if self._sequence:
            await asyncio.sleep(self._batch_s)

    async def _send(self, stub: kv_pb2_grpc.KvDirectoryServiceStub) -> bool:
        for request in self._messages():
            try:
                answer = await stub.Publish(request, timeout=_RPC_S)
            except grpc.aio.AioRpcError as error:
                self._failed(error)
                return False
            if answer.resync:
                again = request.sequence == 0
                self._lost_track()
                return not again
            self._sequence = request.sequence + 1
        return True

    def _messages(self) -> list[pb.PublishRequest]:
        """Everything there is to say now; at least one message, which may be empty."""
        if self._sequence == 0:
            self.resyncs += 1
            self._pending.clear()
            held = self._held()
            added = [held[i].tobytes() for i in _chunks(len(held))] or [b""]
            removed = [b""] * len(added)
        else:
            pending, self._pending = self._pending, {}
            items = list(pending.items())
            chunks = [items[i] for i in _chunks(len(items))] or [[]]
            added = [b"".join(h for h, there in chunk if there) for chunk in chunks]
            removed = [b"".join(h for h, there in chunk if not there) for chunk in chunks]
        return [
            pb.PublishRequest(
                holder=self._me,
                sequence=sequence,
                added=came,
                removed=went,
                cache=self._identity if sequence == 0 else None,
                storage=self._storage,
            )
            for sequence, (came, went) in enumerate(
                zip(added, removed, strict=True), start=self._sequence
            )
        ]

    def _failed(self, error: grpc.aio.AioRpcError) -> None:
        if self.failures == 0 or self._sequence:
            refusal = refusal_of(error)
            log.warning(
                "directory %s: %s; pages stay unpublished until it answers",
                self._address,
                refusal or error.code().name,
            )
        self.failures += 1
        self._lost_track()

    def _lost_track(self) -> None:
        self._pending.clear()
        self._sequence = 0


def _split(hashes: Hashes | bytes) -> list[bytes]:
    data = hashes if isinstance(hashes, bytes) else hashes.tobytes()
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def _chunks(count: int) -> list[slice]:
    return [slice(i, i + _CHUNK_PAGES) for i in range(0, count, _CHUNK_PAGES)]
