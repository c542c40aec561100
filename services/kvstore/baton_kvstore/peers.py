"""KvPeerService of the kvstore: what the disk has is brought into DRAM before it is leased."""

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

    async def Acquire(self, request: pb.AcquireRequest, context: Context) -> pb.AcquireResponse:
        if self.disk is None or len(request.page_hashes) % HASH_BYTES:
            return await super().Acquire(request, context)
        unpin = await self.disk.load(split_hashes(request.page_hashes))
        try:
            return await super().Acquire(request, context)
        finally:
            unpin()
