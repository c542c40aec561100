"""KvDirectoryService: handlers validate, call the store, answer."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_kvstore.directory import HASH_BYTES, PageHash, split_hashes
from baton_kvstore.store import Store
from baton_rpc import Refusal

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class DirectoryServicer(kv_pb2_grpc.KvDirectoryServiceServicer):
    """Speaks for a Store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def Publish(self, request: pb.PublishRequest, context: Context) -> pb.PublishResponse:
        if not request.holder.name or not request.holder.address or not request.holder.epoch:
            raise Refusal(
                errors.ERROR_REASON_MISSING_FIELD,
                "Publish: holder needs name, address and epoch",
            )
        if request.sequence == 0 and not request.HasField("cache"):
            raise Refusal(
                errors.ERROR_REASON_MISSING_FIELD, "Publish: sequence 0 needs the cache identity"
            )
        added, removed = pages_of(request.added, "added"), pages_of(request.removed, "removed")
        in_order = self._store.publish(request, added, removed)
        return pb.PublishResponse(resync=not in_order)

    async def Locate(self, request: pb.LocateRequest, context: Context) -> pb.LocateResponse:
        chain = pages_of(request.page_hashes, "page_hashes")
        found = self._store.directory.locate(chain)
        return pb.LocateResponse(
            locations=[pb.LocateResponse.Location(holder=p, pages=n) for p, n in found]
        )

    async def Watch(
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        snapshot = self._store.directory.snapshot()
        async for event in self._store.watchers.watch(request.watcher, snapshot):
            yield event


def pages_of(data: bytes, field: str) -> list[PageHash]:
    """The identities in a field of a message. Raises Refusal for a torn one."""
    if len(data) % HASH_BYTES:
        raise Refusal(
            errors.ERROR_REASON_MALFORMED_MESSAGE,
            f"{field} has {len(data)} bytes, which is no multiple of {HASH_BYTES}",
        )
    return split_hashes(data)
