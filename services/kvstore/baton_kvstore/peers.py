"""KvPeerService of the kvstore: what the disk has is brought into DRAM before it is leased."""

from baton.v1 import kv_pb2 as pb
from baton_kvstore.directory import HASH_BYTES, split_hashes
from baton_kvstore.nvme import NvmeTier
from baton_kvstore.tier import TierHolder
from baton_transfer import KvPeerServicer


class TierServicer(KvPeerServicer):
    """As every holder's, and waits for the disk; `disk` is set once there is one."""

    def __init__(self, holder: TierHolder, me: pb.Peer) -> None:
        super().__init__(holder, me)
        self.disk: NvmeTier | None = None

    async def acquire(self, request: pb.AcquireRequest) -> pb.AcquireResponse:
        """As every holder's."""
        if self.disk is None or len(request.page_hashes) % HASH_BYTES:
            return await super().acquire(request)
        unpin = await self.disk.load(split_hashes(request.page_hashes))
        try:
            return await super().acquire(request)
        finally:
            unpin()
