"""KvPeerService of the kvstore: what the disk has is brought into DRAM before it is leased."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from baton.v1 import kv_pb2 as pb
from baton_kvstore.directory import HASH_BYTES, split_hashes
from baton_kvstore.nvme import NvmeTier
from baton_kvstore.tier import TierHolder
from baton_transfer import KvPeerServicer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class TierServicer(KvPeerServicer):
    """As every holder's, and waits for the disk; `disk` is set once there is one."""

    def __init__(self, holder: TierHolder, me: pb.Peer) -> None:
        super().__init__(holder, me)
        self.disk: NvmeTier | None = None

    async def Lease(
        self, requests: AsyncIterator[pb.LeaseRequest], context: Context
    ) -> AsyncIterator[pb.LeaseResponse]:
        async for answer in super().Lease(self._brought_up(requests), context):
            yield answer

    async def _brought_up(
        self, requests: AsyncIterator[pb.LeaseRequest]
    ) -> AsyncIterator[pb.LeaseRequest]:
        """Each request once what it asks for is in DRAM, where it stays until the next one."""
        async for request in requests:
            hashes = request.acquire.page_hashes
            if self.disk is None or not hashes or len(hashes) % HASH_BYTES:
                yield request
                continue
            unpin = await self.disk.load(split_hashes(hashes))
            try:
                yield request
            finally:
                unpin()
